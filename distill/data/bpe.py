"""CLIP's byte-pair tokens, without torch: a text is cleaned, parted into words, and each word's bytes are merged.

Which pairs of letters are merged, and in which order, is CLIP's published table. It is read from open_clip's package,
which is not imported for it, because that imports torch. A student that was exported as ONNX graphs carries the table,
so that it needs no open_clip. The ids are those of open_clip's `SimpleTokenizer`.
"""

import functools
import gzip
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import regex
from tokenizers.models import BPE

from distill.data.cleaning import lower
from distill.errors import ArtefactError, ExpectedError

TABLE = "bpe_simple_vocab_16e6.txt.gz"  # of open_clip: a heading, and more pairs than CLIP uses
PAIRS = 48_894  # that CLIP merges
LARGEST = 2**21  # bytes of a file of as many pairs
END_OF_WORD = "</w>"
START, END = "<start_of_text>", "<end_of_text>"
WORD = regex.compile(
    rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+",
    regex.IGNORECASE,
)


class Bpe:
    """The tokens of one table of pairs; the last two of its `size` ids are those around a text."""

    def __init__(self, merges: Sequence[tuple[str, str]]):
        self._letters = _letters()
        letters = [*self._letters.values()]
        names = [*letters, *(letter + END_OF_WORD for letter in letters), *map("".join, merges)]
        self._model = BPE({name: row for row, name in enumerate(names)}, list(merges), end_of_word_suffix=END_OF_WORD)
        self.size = len(names) + 2
        self.encode = functools.lru_cache(maxsize=1 << 18)(self._encode)  # words come back, in every epoch too

    def _encode(self, text: str) -> list[int]:
        """Return CLIP's ids of a text, without those around it."""
        return [token for word in WORD.findall(lower(text)) for token in self._ids(word)]

    def _ids(self, word: str) -> list[int]:
        if word in (START, END):
            return [self.size - (2 if word == START else 1)]
        return [token.id for token in self._model.tokenize("".join(map(self._letters.__getitem__, word.encode())))]


@functools.cache
def stock() -> Bpe:
    """Return CLIP's own tokens; raises `ExpectedError` where open_clip is not installed."""
    return Bpe(stock_merges())


def stock_merges() -> list[tuple[str, str]]:
    """Return the pairs that CLIP merges, in their order, from open_clip's package."""
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise ExpectedError("open_clip is not installed, which has CLIP's tokens; run pip install open_clip_torch")
    lines = gzip.decompress((Path(package.submodule_search_locations[0]) / TABLE).read_bytes()).decode().splitlines()
    return _pairs(lines[1 : PAIRS + 1])


def merges_text(merges: Sequence[tuple[str, str]]) -> str:
    """Return pairs as a file that `read_bpe` reads: one a line."""
    return "".join(f"{first} {second}\n" for first, second in merges)


def read_bpe(path: Path) -> Bpe:
    """Return the tokens of a file of pairs; raises `ArtefactError` for anything else."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"more than {LARGEST:,} bytes")
        return Bpe(_pairs(path.read_text(encoding="utf-8").splitlines()))
    except Exception as error:  # `tokenizers` raises Exception itself for pairs that make no table
        raise ArtefactError(f"{path}: not a table of pairs to merge ({error}); restore it") from None


def _pairs(lines: Sequence[str]) -> list[tuple[str, str]]:
    return [(first, second) for first, second in (line.split(" ") for line in lines)]


def _letters() -> dict[int, str]:
    """Return the letter that stands for each byte: a printable one for itself, others above U+00FF, as in GPT-2.

    The order is that of the ids.
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(others)}
