"""Recipes: one YAML each, data only."""
