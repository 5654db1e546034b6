"""Galleries of video vectors, and ranking them for a query."""

from distill.retrieval.gallery import CaptionHit, Gallery, Hit

__all__ = ["CaptionHit", "Gallery", "Hit"]
