"""The record of one seed of a study: figures and ranks of its rows in one small file, where its runs take gigabytes.

A study takes many hours. From records it goes on in another sitting, or on another machine, with the rows that are
missing, and its intervals can be computed again by anybody. The project keeps its own in docs/study.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from distill.errors import ArtefactError
from distill.publishing import publish
from distill.records import View, parsed

SIDES = ("t2v", "v2t")
Figures = dict[str, Any]  # of a row: "title", the metrics of both directions, and what the demo measures


class _Row(View):
    figures: Figures
    recipes: dict[str, Any]


class _Table(View):
    clips: int
    rows: dict[str, _Row]


@dataclass(frozen=True)
class Record:
    """The findings of the rows of one seed, all of which answered the same queries."""

    clips: int  # training clips of the corpus
    figures: Mapping[str, Figures]  # by the row's key
    recipes: Mapping[str, dict[str, Any]]  # by the row's key: the recipe of its run and of its teachers, as resolved
    ranks: Mapping[str, Int[Tensor, " query"]]  # "KEY/t2v", "KEY/v2t": ranks from 0; "video_of_text"

    def holds(self, key: str, recipes: dict[str, Any]) -> bool:
        """Return whether a row is here that was trained by these very recipes."""
        return self.recipes.get(key) == recipes

    def joined(self, other: "Record") -> "Record":
        """Return both; rows of `other` replace those of the same key."""
        return Record(
            self.clips,
            {**self.figures, **other.figures},
            {**self.recipes, **other.recipes},
            {**self.ranks, **other.ranks},
        )


def write(path: Path, record: Record) -> None:
    """Publishes a record; ranks are stored in 16 bits, which a gallery of the demo does not fill."""
    ranks = {name: value.to(torch.int16) for name, value in record.ranks.items()}
    assert all(torch.equal(ranks[name].to(value.dtype), value) for name, value in record.ranks.items()), "too many"
    rows = {key: {"figures": record.figures[key], "recipes": record.recipes[key]} for key in record.figures}
    publish(path, save(ranks, {"study": json.dumps({"clips": record.clips, "rows": rows}, sort_keys=True)}))


def read(path: Path) -> Record:
    """Return a record; raises `ArtefactError` for a file that is none, or is damaged."""
    mend = "delete it, and its rows are trained again"
    try:
        with safe_open(path, "pt") as file:
            about = (file.metadata() or {}).get("study", "")
            names = file.keys()
            ranks = {name: file.get_tensor(name).long() for name in names}
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"{path}: not the record of a study: {error}; {mend}") from None
    table = parsed(_Table, about.encode(), path, mend)
    lengths = {name: set(ranks.get(f"{key}/{name}", torch.empty(0)).shape for key in table.rows) for name in SIDES}
    if "video_of_text" not in ranks or lengths["t2v"] - {ranks["video_of_text"].shape} or len(lengths["v2t"]) > 1:
        raise ArtefactError(f"{path}: damaged: its rows did not answer the same queries; {mend}")
    figures = {key: row.figures for key, row in table.rows.items()}
    return Record(table.clips, figures, {key: row.recipes for key, row in table.rows.items()}, ranks)
