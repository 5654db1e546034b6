"""Turn texts into token ids with CLIP's byte-pair tokenizer, and say how many are too long for a model.

Towers that were trained with another one have a `tokenizer.json` (distill/data/jsontokens.py). CLIP's layout is
CLIP4Clip's (its `_get_text`): start token, at most `max_words - 2` tokens, end token, zeros up to `max_words`. The end
token has the largest id of the table, so `ids.argmax` finds it. A smaller token table than CLIP's has a vocabulary, to
whose rows the ids are mapped.
"""

import functools
import logging
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from pydantic import RootModel, StrictInt

from distill.data.bpe import Bpe, stock
from distill.log import progress
from distill.records import read_json

log = logging.getLogger(__name__)
CONTEXT = 77  # tokens that CLIP's own text tower reads, start and end included
VOCABULARY = "vocabulary.json"  # in a tower folder whose token table was pruned


class TextTokenizer(ABC):
    """Turns texts into ids; `max_words` are the tokens of a text, those around it and padding included."""

    max_words: int
    room: int  # tokens of `max_words` that are left for a text's own
    vocabulary: list[int] | None = None  # of a pruned table of CLIP's tokens

    @abstractmethod
    def __call__(self, texts: Sequence[str]) -> Int64[np.ndarray, "text word"]:
        """Return the ids of each text, cut and padded to `max_words`."""

    @abstractmethod
    def spelled(self, text: str) -> list[int]:
        """Return what stands for the whole text, without the tokens around it: equal for texts that read the same."""

    @abstractmethod
    def surely_fits(self, text: str) -> bool:
        """Return whether a text fits, where that shows without spelling all of it."""

    def is_cut(self, text: str) -> bool:
        """Return whether the end of a text does not fit."""
        return not self.surely_fits(text) and len(self.spelled(text)) > self.room


class Tokenizer(TextTokenizer):
    """CLIP's tokenizer for texts of at most `max_words` tokens.

    `vocabulary` lists CLIP's ids that a pruned table kept, in the table's order. Entry 0 of a pruned table is padding,
    entry 1 stands for every token that was not kept, and the last two are start and end. `bpe` is CLIP's table where
    open_clip is not there to be asked.
    """

    def __init__(self, max_words: int, vocabulary: Sequence[int] | None = None, bpe: Bpe | None = None):
        self.max_words, self.room = max_words, max_words - 2  # start and end
        self.vocabulary = None if vocabulary is None else list(vocabulary)
        self._row = None if vocabulary is None else {stock: row for row, stock in enumerate(vocabulary)}
        self._bpe = bpe
        self._known: dict[str, int] = {}  # tokens of words

    @functools.cached_property
    def end(self) -> int:
        """The id of the end token, the largest; the start token's stands before it."""
        return (self._table.size if self.vocabulary is None else len(self.vocabulary)) - 1

    @property
    def _table(self) -> Bpe:
        return self._bpe or stock()

    def __call__(self, texts: Sequence[str]) -> Int64[np.ndarray, "text word"]:
        """Return the ids of each text, padded with 0."""
        ids = np.zeros((len(texts), self.max_words), np.int64)
        for row, text in enumerate(texts):
            words = _spell(text, self._table)[: self.room]
            if self._row is not None:
                words = [self._row.get(word, 1) for word in words]
            ids[row, : len(words) + 2] = [self.end - 1, *words, self.end]
        return ids

    def spelled(self, text: str) -> list[int]:
        """Return CLIP's own ids of the whole text, whatever table they are mapped to."""
        return _spell(text, self._table)

    def surely_fits(self, text: str) -> bool:
        """Return whether a plain text fits by its words: one that is not known yet has at most as many tokens as
        characters, mostly far fewer."""
        if not _is_plain(text):
            return False
        words = text.split()
        if sum(self._known.get(word) or len(word) for word in words) < self.room:
            return True
        self._known.update((word, len(self._table.encode(word))) for word in words)
        return False


def prune(texts: Sequence[str]) -> list[int]:
    """Return the smallest vocabulary that spells `texts`: padding, unknown, the tokens used, start, end."""
    used = sorted({token for text in texts for token in _spell(text, stock())})
    special = stock().size
    # CLIP's tokenizer never produces -1, so rows 0 and 1 are used as padding and as unknown only.
    return [-1, -1, *used, special - 2, special - 1]


def warn_of_cuts(texts: Sequence[str], tokenizer: TextTokenizer, where: str, mend: str, kind: str = "captions") -> None:
    """Log one line if texts do not fit a tokenizer: how many lose their end, how many become equal by it.

    A text counts as often as it stands in `texts`. It becomes equal where another one, spelled otherwise, is cut to the
    same tokens or has just these. `mend` says what to do next, `kind` what the texts are, in the plural.
    """
    if not log.isEnabledFor(logging.WARNING):  # the other processes of a job: the first one says it for all
        return
    room = tokenizer.room
    whole: dict[tuple[int, ...], Counter[tuple[int, ...]]] = defaultdict(Counter)  # what is left -> what it was
    for text in progress(texts, f"measure {len(texts)} {kind}"):
        if tokenizer.surely_fits(text):
            continue
        spelled = tuple(tokenizer.spelled(text))
        if len(spelled) >= room:
            whole[spelled[:room]][spelled] += 1
    cut = {left: sum(n for spelled, n in was.items() if len(spelled) > room) for left, was in whole.items()}
    if number := sum(cut.values()):
        equal = sum(n for left, n in cut.items() if len(whole[left]) > 1)
        log.warning(
            f"{where}: {number:,} of {len(texts):,} {kind} are cut at {tokenizer.max_words} tokens (start and end "
            f"included), {equal:,} of them become equal to others by it; {mend}"
        )


class _Vocabulary(RootModel[list[StrictInt]]):
    """The token ids that a pruned token table has kept, by its rows."""


def read_vocabulary(folder: Path) -> list[int] | None:
    """Return the pruned vocabulary of a tower folder, or None if it uses CLIP's full table."""
    path = folder / VOCABULARY
    return read_json(path, _Vocabulary, "expected a list of token ids").root if path.is_file() else None


def _spell(text: str, table: Bpe) -> list[int]:
    """Return CLIP's ids of a text. The words of a plain text are spelled one by one: most of them are cached."""
    if _is_plain(text):
        return [token for word in text.split() for token in table.encode(word)]
    return table.encode(text)


def _is_plain(text: str) -> bool:
    """Return whether CLIP's tokenizer changes nothing of a text but spaces and capitals before it spells it."""
    return text.isascii() and text.isprintable() and "&" not in text  # "&" may begin an HTML entity
