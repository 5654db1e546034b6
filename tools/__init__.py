"""Commands: each parses, calls one function of `distill`, prints one result."""
