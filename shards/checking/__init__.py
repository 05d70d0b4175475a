"""A set reread: what is broken in it, and how it is mended."""
