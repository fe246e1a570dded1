"""The command line: each file parses and prints one group of commands and holds no logic."""
