"""Annotation files and video files to sealed frame sets."""
