"""What runs a turn: the interface of every backend, and the constitutional runtime that wraps one."""
