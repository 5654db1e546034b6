"""Kinds of captions that can be told in any corpus, each as a set of queries: how long, how many events, which words.

Rules are simple on purpose, so that a reader can check them. Words are runs of letters and digits; the list of words
that join events is English.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from distill.evaluation.duplicates import of_several, words

LENGTHS = ((1, 5), (6, 10), (11, 20), (21, None))  # words
JOINTS = ("then", "after", "before", "while", "until", "finally", "next", "afterwards", "later", "followed by")
JOINT = re.compile(rf"\b({'|'.join(JOINTS)})\b", re.IGNORECASE)
THIRDS = ("first", "middle", "last")


@dataclass(frozen=True)
class Kind:
    """One kind of captions: its group (one of a few ways to divide all), its name, and which captions belong."""

    group: str
    name: str
    members: Bool[np.ndarray, " text"]


def kinds(
    captions: Sequence[str],
    videos: Sequence[int],
    known: set[str] | None,
    moments: Float[np.ndarray, " text"] | None,
) -> list[Kind]:
    """Return the kinds of captions that have members, and only groups that divide.

    `videos` has the video of every caption, `known` the words of the training captions (None: not at hand), and
    `moments` where in its video each caption's moment is, from 0 to 1.
    """
    found = [Kind("length", _range(low, high), _between(captions, low, high)) for low, high in LENGTHS]
    joined = np.array([bool(JOINT.search(caption)) for caption in captions], bool)
    found += [Kind("events", "one event", ~joined), Kind("events", "joined by “then”, “after”, “while” …", joined)]
    shared = np.array(of_several(captions, videos), bool)
    found += [Kind("ambiguity", "of one video", ~shared), Kind("ambiguity", "same words for several videos", shared)]
    if known is not None:
        new = np.array([any(word not in known for word in words(caption)) for caption in captions], bool)
        found += [Kind("words", "all words seen in training", ~new), Kind("words", "with a word never seen", new)]
    if moments is not None:
        third = np.minimum(2, (3 * moments).astype(int))
        found += [Kind("moment", f"{name} third of the video", third == place) for place, name in enumerate(THIRDS)]
    there = [kind for kind in found if kind.members.any()]
    divided = Counter(kind.group for kind in there)
    return [kind for kind in there if divided[kind.group] > 1]


def _range(low: int, high: int | None) -> str:
    return f"more than {low - 1} words" if high is None else f"{low} to {high} words"


def _between(captions: Sequence[str], low: int, high: int | None) -> Bool[np.ndarray, " text"]:
    counts = np.array([max(1, len(words(caption))) for caption in captions])
    return (counts >= low) & (counts <= (high or counts.max(initial=low)))
