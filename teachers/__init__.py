"""Heavy retrieval models whose labels students learn from; strangers to one another."""
