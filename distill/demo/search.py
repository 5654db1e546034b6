"""The search for settings of the label losses: a small declared grid per student, judged on validation alone.

The test split is not opened: its figures are for the study, once. What is chosen stands in the recipes.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.demo.trials import STUDENTS, TEACHER, Trial

GRID = (("pearson", 1.0), ("pearson", 4.0), ("kl", 2.0), ("kl", 4.0), ("kl", 8.0))  # distance, temperature
UNTESTED = ("data.test=null",)


def rows(students: Sequence[str]) -> tuple[Trial, ...]:
    """Return a row for every student (by its recipe) and setting, and the teacher of all."""
    found = [replace(TEACHER, changes=UNTESTED)]
    for student in (one for one in STUDENTS if one.recipe in students):
        for distance, temperature in GRID:
            changes = (f"losses.coarse.distance={distance}", f"losses.coarse.temperature={temperature}", *UNTESTED)
            key, title = f"{distance}-{temperature:g}", f"{student.title}, {distance} at {temperature:g}"
            found.append(Trial(f"{student.recipe}-{key}", title, student.recipe, changes, ("xclip",)))
    return tuple(found)


def validated(folder: Path) -> dict[str, float]:
    """Return R@1 of both directions on validation, and their mean, of a run at the validation where that is highest."""
    found = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        if "val" in (row := json.loads(line)):
            both = {name: row["val"][name]["R@1"] for name in ("t2v", "v2t")}
            found.append({**both, "mean": statistics.fmean(both.values())})
    return max(found, key=lambda each: each["mean"])


def results(rows: Sequence[Trial], folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return what validation says of each row, the mean over seeds; the best setting of every student is chosen."""
    found: list[dict[str, Any]] = []
    for row in (row for row in rows if not row.teaches):
        seeds = [validated(folder / row.folder) for folder in folders]
        means = {name: statistics.fmean(each[name] for each in seeds) for name in seeds[0]}
        found.append({"key": row.key, "title": row.title, "recipe": row.recipe, **means})
    best: dict[str, float] = {}
    for row in found:
        best[row["recipe"]] = max(best.get(row["recipe"], 0.0), row["mean"])
    return [{**row, "chosen": row["mean"] == best[row["recipe"]]} for row in found]


def table(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the results as lines of cells."""
    lines = [["", "T2V R@1", "V2T R@1", "mean", ""]]
    for row in found:
        cells = [f"{row[name]:.1f}" for name in ("t2v", "v2t", "mean")]
        lines.append([row["title"], *cells, "chosen" if row["chosen"] else ""])
    return lines
