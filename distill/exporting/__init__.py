"""Exports a release as ONNX graphs, which are measured against its weights before they are sealed."""
