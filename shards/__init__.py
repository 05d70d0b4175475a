"""Makes, reads and checks sets of tar shards for image retrieval; `shards --help` says what from."""

__version__ = "0.1.0"
