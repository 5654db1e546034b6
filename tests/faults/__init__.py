"""Random `kill -9` over packing, label dumps and training; after restarts there must be what a whole run gives.

make faults                                      at least 200 kills, a table, exit code 1 if anything differs
python tests/faults --kills 30 --seed 7 --jobs train --json faults.json
"""
