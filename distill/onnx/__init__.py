"""Releases as ONNX graphs: what an export leaves beside a release, and a text side that runs without torch."""
