"""The demo: a corpus of emoji in motion, and the commands that train and compare models on it."""
