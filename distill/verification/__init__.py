"""The claims of a release, derived again: hashes, ids, metrics, sizes, and the numbers of its card."""
