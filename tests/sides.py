"""The text side of a release without its weights: vectors that were computed beforehand. PyTorch is not imported."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill.data.tokens import Tokenizer


class Side:
    """Stands in for an exported release's text side; FOLDER/side.json holds its id and the vectors of some queries."""

    def __init__(self, folder: Path):
        self.path, self.tokenizer = folder / "release", Tokenizer(77)
        known = json.loads((folder / "side.json").read_text())
        self.id, self.known = known["id"], known["vectors"]

    def vectors(self, queries: Sequence[str]) -> np.ndarray:
        """The vectors of queries, which must be known."""
        return np.array([self.known[query] for query in queries], np.float32)
