"""Clean texts as CLIP and its kin were trained on them: broken encodings, HTML entities, spaces, capitals, punctuation.

The same as open_clip's functions of these names (`open_clip.tokenizer.get_clean_fn`), which cannot be imported without
torch.
"""

import html
import string
from collections.abc import Callable
from typing import Literal

import ftfy

Clean = Literal["canonicalize", "lower", "whitespace"]
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def whitespace(text: str) -> str:
    """Repair a text's encoding and entities, and leave one space between its words."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def lower(text: str) -> str:
    """Do the same, and turn capitals into small letters."""
    return whitespace(text).lower()


def canonicalize(text: str) -> str:
    """Do the same, and leave out punctuation; an underscore parts words."""
    words = whitespace(text).replace("_", " ").translate(NO_PUNCTUATION).lower()
    return " ".join(words.split())


CLEAN: dict[Clean, Callable[[str], str]] = {"canonicalize": canonicalize, "lower": lower, "whitespace": whitespace}
