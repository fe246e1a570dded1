"""What lasts: SQLite and files; nothing in here runs by itself."""
