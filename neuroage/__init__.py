"""From a table of scans and ages to a brain-age model one can trust."""

__version__ = "0.1.0"
