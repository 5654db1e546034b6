"""Pages about finished runs: one HTML file each, which needs nothing beside it."""
