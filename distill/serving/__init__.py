"""The HTTP server of a gallery: a page to search it by, the same as JSON, and the videos."""
