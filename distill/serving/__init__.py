"""A gallery behind HTTP: a page, the same as JSON, and the videos."""
