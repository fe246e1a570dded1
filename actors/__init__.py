"""Everything with a mailbox, and what it does."""
