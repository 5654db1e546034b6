"""Turn texts into token ids as a `tokenizer.json` says, for towers that were not trained with CLIP's tokenizer.

SigLIP reads Gemma's or T5's tokens, CLIPA BERT's. The file travels with a tower folder and with a release; the ids are
those of open_clip's `HFTokenizer` of the same file.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from pydantic import Field
from tokenizers import Tokenizer

from distill.config import Config, validate
from distill.data.cleaning import CLEAN, Clean
from distill.data.tokens import TextTokenizer
from distill.errors import ArtefactError, check_regular

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"


class Spelling(Config):
    """How a `tokenizer.json` is used; an architecture carries it."""

    clean: Clean = "whitespace"  # of texts
    pad: int = Field(ge=0)  # id after a text
    end: int | None = Field(default=None, ge=0)  # id that ends a text; None: none does
    left_out: int | None = Field(default=None, ge=0)  # id in whose place stands 0 (CLIPA's separator)


class JsonTokenizer(TextTokenizer):
    """A tokenizer for texts of at most `max_words` tokens, read from the content of a `tokenizer.json`.

    `rows`: how many tokens the text tower knows.
    """

    def __init__(self, max_words: int, content: str, spelling: Spelling, where: str, rows: int):
        self.max_words, self.content, self.spelling = max_words, content, spelling
        self._where, self._rows = where, rows
        self._tokenizer = parsed(content, where)
        self._tokenizer.no_padding()
        self._clean = CLEAN[spelling.clean]
        self.room = max_words - self._tokenizer.num_special_tokens_to_add(False)
        if self.room < 1:
            raise ArtefactError(f"{where}: no word fits {max_words} tokens; raise data.max_words")

    def __call__(self, texts: Sequence[str]) -> Int64[np.ndarray, "text word"]:
        """Return the ids of each text, padded."""
        self._tokenizer.enable_truncation(self.max_words)
        ids = np.full((len(texts), self.max_words), self.spelling.pad, np.int64)
        with _sound(self._where):
            spelled = self._tokenizer.encode_batch([self._clean(text) for text in texts])
        for row, found in enumerate(spelled):
            ids[row, : len(found.ids)] = found.ids
        if self.spelling.left_out is not None:
            ids[ids == self.spelling.left_out] = 0
        if ids.max(initial=0) >= self._rows:
            raise ArtefactError(
                f"{self._where}: gives numbers up to {ids.max()}, but the text tower knows {self._rows} tokens; use "
                f"the tokenizer that it was trained with"
            )
        return ids

    def spelled(self, text: str) -> list[int]:
        """Return the ids of a whole text, without those around it."""
        self._tokenizer.no_truncation()
        with _sound(self._where):
            return self._tokenizer.encode(self._clean(text), add_special_tokens=False).ids

    def settings(self) -> dict[str, str]:
        """Return what `tokenizer_config.json` says, for `read_spelling` and for Hugging Face's own reader."""
        named = {"pad_token": self.spelling.pad, "eos_token": self.spelling.end, "sep_token": self.spelling.left_out}
        words = {name: self._tokenizer.id_to_token(number) for name, number in named.items() if number is not None}
        return {"tokenizer_class": "PreTrainedTokenizerFast", **{k: word for k, word in words.items() if word}}

    def surely_fits(self, text: str) -> bool:
        """Return whether a text is so short that it fits: nearly no token is shorter than a byte."""
        return 2 * len(text.encode(errors="surrogatepass")) < self.room


def parsed(content: str, where: str) -> Tokenizer:
    """Return the tokenizer of a file's content; raise `ArtefactError` for one that is none."""
    with _sound(where):
        return Tokenizer.from_str(content)


@contextmanager
def _sound(where: str) -> Iterator[None]:
    """Turn what the library raises inside the block into an `ArtefactError`."""
    try:
        yield
    except Exception as error:
        raise ArtefactError(f"{where}: not a tokenizer that can be read ({error}); restore it") from None
    except BaseException as error:  # the library is written in Rust, whose panics are no `Exception`
        if type(error).__name__ != "PanicException":
            raise
        raise ArtefactError(f"{where}: not a tokenizer that can be read ({error}); restore it") from None


def read_content(folder: Path) -> str:
    """Return the content of a folder's `tokenizer.json`."""
    return _text(folder / FILE)


def read_spelling(folder: Path, options: dict[str, Any]) -> Spelling:
    """Return how the `tokenizer.json` of a tower folder is used.

    `options` are open_clip's `tokenizer_kwargs`; the ids of padding, end and separator are looked up by their names in
    `tokenizer_config.json`, as Hugging Face's folders have it. Raises `ArtefactError` for what is missing or unknown.
    """
    where, settings = folder / SETTINGS, _settings(folder / SETTINGS)
    tokenizer = parsed(read_content(folder), str(folder / FILE))
    known = {"clean", "strip_sep_token"}
    if odd := sorted(options.keys() - known):
        raise ArtefactError(f"{folder}: text_cfg.tokenizer_kwargs: {odd[0]}: expected {' or '.join(sorted(known))}")

    def token(name: str) -> int | None:
        said = settings.get(name)
        word = said.get("content") if isinstance(said, dict) else said
        found = tokenizer.token_to_id(word) if isinstance(word, str) else None
        if found is None and word is not None:
            raise ArtefactError(f"{where}: {name}: {word!r} is no token of {FILE} beside it; restore either")
        return found

    pad, sep, end = token("pad_token"), token("sep_token"), token("eos_token")
    if pad is None:
        raise ArtefactError(f"{where}: names no pad_token, with which texts are filled up; add it")
    stripped = options.get("strip_sep_token", False)
    if not isinstance(stripped, bool):
        raise ArtefactError(
            f"{folder}: text_cfg.tokenizer_kwargs: strip_sep_token: {stripped!r}: expected true or false"
        )
    found = {
        "clean": options.get("clean", "whitespace"),
        "pad": pad,
        "end": None if stripped else (sep if end is None else end),
        "left_out": sep if stripped else None,
    }
    return validate(found, Spelling, where=f"{folder}: text_cfg.tokenizer_kwargs")


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path}: cannot be read ({error}); restore it") from None
    if not isinstance(found, dict):
        raise ArtefactError(f"{path}: expected a mapping; restore it")
    return found


def _text(path: Path) -> str:
    if not path.is_file():
        raise ArtefactError(f"{path.parent}: holds no {path.name}, by which these towers read texts; add it")
    check_regular(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path}: cannot be read ({error}); restore it") from None
