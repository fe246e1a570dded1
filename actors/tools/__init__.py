"""The standard tools, and the registry that names them."""
