"""Turn captions into token ids with CLIP's byte-pair tokenizer, optionally mapped to a smaller token table.

The layout is CLIP4Clip's (its `_get_text`): start token, at most `max_words - 2` tokens, end token, zeros up to
`max_words`. The end token has the largest id of the table, so `ids.argmax` finds it.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from open_clip.tokenizer import SimpleTokenizer
from pydantic import RootModel, StrictInt

from distill.records import read_json

VOCABULARY = "vocabulary.json"  # in a tower folder whose token table was pruned


class Tokenizer:
    """A tokenizer for texts of at most `max_words` tokens.

    `vocabulary` lists CLIP's ids that a pruned table kept, in the table's order. Entry 0 of a pruned table is padding,
    entry 1 stands for every token that was not kept, and the last two are start and end.
    """

    def __init__(self, max_words: int, vocabulary: Sequence[int] | None = None):
        self.max_words = max_words
        self.vocabulary = None if vocabulary is None else list(vocabulary)
        self._row = None if vocabulary is None else {stock: row for row, stock in enumerate(vocabulary)}
        size = len(_stock().encoder) if vocabulary is None else len(vocabulary)
        self.start, self.end = size - 2, size - 1

    def __call__(self, texts: Sequence[str]) -> Int64[np.ndarray, "text word"]:
        """Return the ids of each text, padded with 0."""
        ids = np.zeros((len(texts), self.max_words), np.int64)
        for row, text in enumerate(texts):
            words = _spell(text)[: self.max_words - 2]
            if self._row is not None:
                words = [self._row.get(word, 1) for word in words]
            ids[row, : len(words) + 2] = [self.start, *words, self.end]
        return ids


def prune(texts: Sequence[str]) -> list[int]:
    """Return the smallest vocabulary that spells `texts`: padding, unknown, the tokens used, start, end."""
    used = sorted({token for text in texts for token in _spell(text)})
    special = len(_stock().encoder)
    # CLIP's tokenizer never produces -1, so rows 0 and 1 are used as padding and as unknown only.
    return [-1, -1, *used, special - 2, special - 1]


class _Vocabulary(RootModel[list[StrictInt]]):
    """The token ids that a pruned token table has kept, by its rows."""


def read_vocabulary(folder: Path) -> list[int] | None:
    """Return the pruned vocabulary of a tower folder, or None if it uses CLIP's full table."""
    path = folder / VOCABULARY
    return read_json(path, _Vocabulary, "expected a list of token ids").root if path.is_file() else None


@functools.lru_cache(maxsize=1 << 18)
def _spell(text: str) -> list[int]:
    """Return CLIP's ids of a text; cached, because captions come back every epoch."""
    return _stock().encode(text)


@functools.cache
def _stock() -> SimpleTokenizer:
    return SimpleTokenizer()
