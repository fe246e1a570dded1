"""What is said and agreed: pure data and functions, no I/O, no clock, no randomness."""
