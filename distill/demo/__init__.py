"""The embedded demo corpus: emoji in motion."""
