"""What is wrong with a node that lives, told from all that is known of it, and how to hand that on."""
