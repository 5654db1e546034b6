"""What a release says of itself, derived again: hashes, ids, metrics, sizes, and the numbers of its card."""
