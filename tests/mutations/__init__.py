"""Damaged and hostile files, given to every reader: each is refused in one line that names it, or does no harm.

make mutations                                   2,000 mutations, a table, exit code 1 if anything else happens
python tests/mutations --count 500 --seed 7 --json mutations.json
"""
