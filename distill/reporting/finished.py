"""A finished run as its folder tells it: recipe, losses, validations, the test, and what the test left for a report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, FiniteFloat
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distill.errors import ArtefactError, check_regular
from distill.manifest import Manifest, read_manifest
from distill.records import View, parsed, read_json, read_small
from distill.release.release import PROVENANCE, READ
from distill.release.stated import Stated, Summary
from distill.training.folder import RELEASE, TEST, TEST_RANKS

METRICS, ANSWERS = "metrics.jsonl", "test_answers.safetensors"
AGAIN = "restore it, or train again"
SIDES = ("t2v", "v2t")
LARGEST = 1 << 30  # bytes of a file of tensors
LONGEST = 1 << 53  # beyond it no number of a run is meant
# axes of the tensors of a test
RANKED = {"t2v": ("text",), "v2t": ("video",), "video_of_text": ("text",)}
RANKED |= {"second_t2v": ("text",), "second_v2t": ("video",)}
ANSWERED = {
    "first": ("text", "rank"),
    "first_scores": ("text", "rank"),
    "own_scores": ("text",),
    "relevance": ("text", "frame"),
    "pooling": ("video", "frame"),
    "taught": ("pair", "two"),
    "taught_student": ("pair", "frame"),
    "taught_teacher": ("set", "pair", "frame"),
}


class _Row(View):
    """A row of metrics.jsonl: an optimisation step, or a validation."""

    step: int = Field(ge=1, lt=LONGEST)
    val: dict[str, dict[str, FiniteFloat]] | None = None


class Tested(View):
    """`test.json`: metrics by direction, and those of a second look."""

    t2v: Summary
    v2t: Summary
    second_look: dict[str, Summary] | None = None


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a run that left a release. What a run did not leave is None or empty."""

    folder: Path
    release: Manifest
    provenance: Stated
    steps: list[dict[str, float]]
    validations: list[tuple[int, dict[str, Summary]]]  # after a step: metrics by direction
    test: Tested | None
    ranks: dict[str, Tensor]
    answers: dict[str, Tensor]
    test_frames: str  # id of the frame set whose answers these are; "": not known

    @classmethod
    def read(cls, folder: Path) -> "FinishedRun":
        """Read a run's folder; raise `ArtefactError` for one without a release, and for files that are damaged."""
        if not (folder / RELEASE).is_dir():
            expected = "a run that has ended, with its release"
            raise ArtefactError(f"{folder}: no folder {RELEASE} in it, expected {expected}; let it train to its end")
        release = read_manifest(folder / RELEASE, "release", *READ)
        steps, validations = _metrics(folder / METRICS)
        tested = folder / TEST
        ranks, _ = _tensors(folder / TEST_RANKS)
        answers, about = _tensors(folder / ANSWERS)
        provenance = read_json(folder / RELEASE / PROVENANCE, Stated, AGAIN)
        test = provenance.frames().get("test")
        run = cls(
            folder=folder,
            release=release,
            provenance=provenance,
            steps=steps,
            validations=validations,
            test=read_json(tested, Tested, AGAIN) if tested.is_file() else None,
            ranks=ranks,
            answers=answers,
            test_frames=about.get("frames", "" if test is None else test.id or ""),
        )
        run._check()
        return run

    @cached_property
    def kind(self) -> str:
        """The kind of its model."""
        return str(self.release.config.get("model", "model"))

    @property
    def best(self) -> int | None:
        """The step after which the weights were best on validation (T2V R@1, the first of equal ones)."""
        scores = [(metrics.get("t2v", {}).get("R@1", -1.0), -step) for step, metrics in self.validations]
        return -max(scores)[1] if scores else None

    def setting(self, *keys: str) -> Any:
        """Return a value of the recipe; None where it has none."""
        found: Any = self.provenance.recipe
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    @property
    def label_sets(self) -> list[str]:
        """The paths of its label sets."""
        named = self.setting("labels")
        return [
            str(label.get("path")) for label in (named if isinstance(named, list) else []) if isinstance(label, dict)
        ]

    def texts(self, side: str) -> Tensor:
        """Return the group (video) of every query of a direction."""
        return self.ranks["video_of_text"] if side == "t2v" else torch.arange(len(self.ranks["v2t"]))

    def _check(self) -> None:
        """Refuse ranks and answers of other shapes, or that contradict one another."""
        if not self.ranks:
            return
        known = {"text": len(self.ranks.get("t2v", ())), "video": len(self.ranks.get("v2t", ()))}
        known |= {"pair": len(self.answers.get("taught", ())), "two": 2}
        _check_shapes(self.folder / TEST_RANKS, self.ranks, RANKED, known, ("t2v", "v2t", "video_of_text"))
        _check_shapes(self.folder / ANSWERS, self.answers, ANSWERED, known)
        videos = known["video"]
        limits = dict.fromkeys(RANKED, videos)
        _check_whole(self.folder / TEST_RANKS, self.ranks, limits)
        _check_whole(self.folder / ANSWERS, self.answers, {"first": videos})


def _check_shapes(
    path: Path,
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, tuple[str, ...]],
    known: Mapping[str, int],
    needed: Sequence[str] = (),
) -> None:
    """Refuse tensors that are missing, of other axes, or not finite; an axis that is not known may be of any length."""
    for name, axes in expected.items():
        found = tensors.get(name)
        if found is None and name not in needed:
            continue
        shape = () if found is None else tuple(found.shape)
        fits = len(shape) == len(axes) and all(
            known.get(axis, size) == size for axis, size in zip(axes, shape, strict=True)
        )
        if found is None or not fits or not found.isfinite().all():
            there = "missing" if found is None else f"{list(shape)}"
            raise ArtefactError(f"{path}: {name} is {there}, expected finite numbers by {', '.join(axes)}; {AGAIN}")


def _check_whole(path: Path, tensors: Mapping[str, Tensor], limits: Mapping[str, int]) -> None:
    """Refuse numbers of videos and ranks that are none."""
    for name, limit in limits.items():
        found = tensors.get(name)
        if found is None:
            continue
        if found.is_floating_point() or (found.numel() and not 0 <= int(found.min()) <= int(found.max()) < limit):
            raise ArtefactError(f"{path}: {name} does not hold numbers below {limit}; {AGAIN}")


def _metrics(path: Path) -> tuple[list[dict[str, float]], list[tuple[int, dict[str, Summary]]]]:
    """Return the steps and the validations of metrics.jsonl, in its order."""
    steps, validations = [], []
    if not path.exists():
        return [], []
    for number, line in enumerate(read_small(path, AGAIN).splitlines(), 1):
        row = parsed(_Row, line, f"{path}: line {number}", AGAIN)
        if row.val is not None:
            validations.append((row.step, row.val))
        else:
            steps.append({name: float(value) for name, value in json.loads(line).items() if _plain(value)})
    return steps, validations


def _plain(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LONGEST


def _tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file, and its metadata; none of a file that is not there."""
    if not path.exists():
        return {}, {}
    check_regular(path)
    if path.stat().st_size > LARGEST:
        raise ArtefactError(f"{path}: {path.stat().st_size:,} bytes, expected at most {LARGEST:,}; {AGAIN}")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"{path}: not readable as safetensors ({error}); {AGAIN}") from None
