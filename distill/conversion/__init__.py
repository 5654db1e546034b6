"""Checkpoints of the authors' code to releases of this project."""
