"""The wordings of the demo's queries, and how often queries of each find their video.

Clips of two shots are told in their order, in the other order, or by names alone (`distill/demo/corpus.py`); all other
queries are about one scene.
"""

from collections.abc import Sequence

import numpy as np

from distill.demo.corpus import plan
from distill.demo.record import Record
from distill.demo.trials import Trial

JOINED = {"A, then B": ", then ", "B after A": " after ", "a and then b": " and then "}  # A: what moves how; a: a name
ONE = "one scene"


def queries(clips: int) -> list[str]:
    """Return the captions of the test split of the corpus of so many training clips, in the order of its frame set."""
    return [sentence.text for clip in plan(clips, seed=0) if clip.split == "test" for sentence in clip.sentences]


def wording(query: str) -> str:
    """Return the name of a query's wording."""
    return next((name for name, joint in JOINED.items() if joint in query), ONE)


def table(rows: Sequence[Trial], seeds: Sequence[Record]) -> list[list[str]]:
    """Return text-to-video R@1 in percent by wording, mean over seeds, as lines of cells."""
    found = np.array([wording(query) for query in queries(seeds[0].clips)])
    members = {name: found == name for name in (*JOINED, ONE)}
    lines = [["T2V R@1", *(f"{name} ({of.sum():,})" for name, of in members.items())]]
    for row in rows:
        first = np.stack([seed.ranks[f"{row.key}/t2v"].numpy() == 0 for seed in seeds])
        lines.append([row.title, *(f"{100 * first[:, of].mean():.1f}" for of in members.values())])
    return lines
