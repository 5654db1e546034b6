"""Compact retrieval models: one vector to search a video by, and in some tokens to rerank with."""
