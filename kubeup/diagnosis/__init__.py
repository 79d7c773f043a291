"""What is wrong, told from the machine alone."""
