"""What an upgrade knows before it changes anything: what is there, what is to be, which version may follow which, and what is kept."""
