"""Drawn videos, and for each what a decoder of every frame says that a player shows at every second.

make videos                                      200 videos, a table, exit code 1 if a frame or a second differs
python tests/videos --count 50 --seed 7
"""
