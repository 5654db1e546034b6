"""Captions to token ids: CLIP's byte-pair tokenizer cut to `max_words`, optionally mapped to a smaller table.

As CLIP4Clip does it: start token, at most `max_words - 2` tokens, end token, zeros up to `max_words` (its `_get_text`).
The end token has the largest id of the table, so `ids.argmax` finds it.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from open_clip.tokenizer import SimpleTokenizer

from distill.errors import ArtefactError

VOCABULARY = "vocabulary.json"  # in a tower folder whose token table was pruned


class Tokenizer:
    """Turns texts into ids. `vocabulary` lists the stock ids that a pruned table kept, in the table's order.

    A pruned table's entry 0 is padding, 1 stands for every token that was not kept, and the last two are start and end.
    """

    def __init__(self, max_words: int, vocabulary: Sequence[int] | None = None):
        self.max_words = max_words
        self.vocabulary = None if vocabulary is None else list(vocabulary)
        self._row = None if vocabulary is None else {stock: row for row, stock in enumerate(vocabulary)}
        size = len(_stock().encoder) if vocabulary is None else len(vocabulary)
        self.start, self.end = size - 2, size - 1

    def __call__(self, texts: Sequence[str]) -> Int64[np.ndarray, "text word"]:
        """Ids of each text, padded with 0."""
        ids = np.zeros((len(texts), self.max_words), np.int64)
        for row, text in enumerate(texts):
            words = _spell(text)[: self.max_words - 2]
            if self._row is not None:
                words = [self._row.get(word, 1) for word in words]
            ids[row, : len(words) + 2] = [self.start, *words, self.end]
        return ids


def prune(texts: Sequence[str]) -> list[int]:
    """The smallest vocabulary that spells `texts`: padding, unknown, the tokens used, start, end."""
    bpe = _stock()
    used = sorted({token for text in texts for token in _spell(text)})
    special = len(bpe.encoder)
    # -1 cannot be produced by the stock tokenizer: rows 0 and 1 are reached as padding and as unknown only.
    return [-1, -1, *used, special - 2, special - 1]


def read_vocabulary(folder: Path) -> list[int] | None:
    """The pruned table of a tower folder, or None where the stock table is used."""
    path = folder / VOCABULARY
    if not path.is_file():
        return None
    try:
        vocabulary = json.loads(path.read_text())
    except ValueError as error:
        raise ArtefactError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(vocabulary, list) or not all(isinstance(token, int) for token in vocabulary):
        raise ArtefactError(f"{path}: expected a list of token ids")
    return vocabulary


@functools.lru_cache(maxsize=1 << 18)
def _spell(text: str) -> list[int]:
    """Stock ids of a text; captions come back every epoch, so they are kept."""
    return _stock().encode(text)


@functools.cache
def _stock() -> SimpleTokenizer:
    return SimpleTokenizer()
