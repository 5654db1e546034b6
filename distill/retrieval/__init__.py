"""Galleries of video vectors, and ranking them for a query."""

from distill.retrieval.gallery import Gallery
from distill.retrieval.hits import CaptionHit, Hit

__all__ = ["CaptionHit", "Gallery", "Hit"]
