"""CLIP's byte-pair tokens, without torch: a text is cleaned, parted into words, and each word's bytes are merged.

`merges.txt.gz` beside this file lists the 48,894 pairs that CLIP merges, in their order: the first lines of the table
that OpenAI published with CLIP (MIT licence, `merges.LICENSE`). The ids are those of open_clip's `SimpleTokenizer`,
which cannot be imported without torch.
"""

import functools
import gzip
from pathlib import Path

import regex
from tokenizers.models import BPE

from distill.data.cleaning import lower

MERGES = Path(__file__).with_name("merges.txt.gz")
END_OF_WORD = "</w>"
START, END = "<start_of_text>", "<end_of_text>"
WORD = regex.compile(
    rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+",
    regex.IGNORECASE,
)


def encode(text: str) -> list[int]:
    """Return CLIP's ids of a text, without those around it."""
    return [token for word in WORD.findall(lower(text)) for token in _ids(word)]


def _ids(word: str) -> list[int]:
    if word in (START, END):
        return [size() - (2 if word == START else 1)]
    return [token.id for token in _model().tokenize("".join(map(_letters().__getitem__, word.encode())))]


def size() -> int:
    """Return how many tokens there are; the last two are those around a text."""
    return 2 * 256 + len(_merges()) + 2


@functools.cache
def _model() -> BPE:
    letters = [*_letters().values()]
    names = [*letters, *(letter + END_OF_WORD for letter in letters), *map("".join, _merges())]
    return BPE({name: row for row, name in enumerate(names)}, _merges(), end_of_word_suffix=END_OF_WORD)


@functools.cache
def _merges() -> list[tuple[str, str]]:
    lines = gzip.decompress(MERGES.read_bytes()).decode().splitlines()
    return [(first, second) for first, second in (line.split(" ") for line in lines)]


@functools.cache
def _letters() -> dict[int, str]:
    """Return the letter that stands for each byte: a printable one for itself, others above U+00FF, as in GPT-2.

    The order is that of the ids.
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(others)}
