"""Parts that teachers and students share: towers, temporal head, aggregation, similarity."""
