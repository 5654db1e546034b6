"""Stored inputs, weights and outputs of the authors' models, and how this project computes the same outputs."""
