"""Formats and batches: videos, frame sets, label sets, the batch plan, the loader."""
