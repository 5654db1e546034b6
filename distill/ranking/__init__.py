"""Ranking by inner product, and again by a model's full score; knows no gallery."""
