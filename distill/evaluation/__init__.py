"""Retrieval metrics, and the evaluation of a model on a frame set under a named protocol."""
