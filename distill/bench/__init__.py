"""Measures what retrieval costs: counted operations, time, bytes, and how much a shortcut finds."""
