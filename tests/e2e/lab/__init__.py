"""What builds nodes out of real programs and drives them."""
