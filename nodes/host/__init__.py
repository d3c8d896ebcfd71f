"""Everything learned about the host, one subject a file."""
