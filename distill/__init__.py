"""Distils heavy text-to-video retrieval teachers into compact students that anyone can search with."""

__version__ = "0.2.0"
