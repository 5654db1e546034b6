"""Galleries of video vectors, and ranking them for a query."""
