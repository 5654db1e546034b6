"""Compact retrieval models: one vector per video; strangers to one another."""
