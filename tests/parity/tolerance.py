"""Tolerances as the sidecars state them, in words, and the distance that each of them limits.

A tolerance is a number, the word exact, a sentence such as "1e-4 on similarity (logit units), 1e-5 elsewhere", or a
table of these by precision or by output. What no clause names has the smallest number that is stated; integers and
booleans are always exact.
"""

import re
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
NUMBER = r"(?<![\w.-])(\d+(?:\.\d+)?(?:e-?\d+)?)(?![\w.])"
LARGEST = r" to the largest (?:absolute value )?of the (?:output|tensor)"
KIND = rf"(?: (?P<kind>(?i:absolute|relative))(?:(?P<total> to the abs-sum)|(?P<largest>{LARGEST}))?)?"
BOUNDS = r"bounds of \d+ draws"  # a kind gives the nearest number that can be drawn, which must be the bound itself
BETWEEN_CLAUSES = r";|,(?=[^,;]*[ ,]\d)"  # a comma without a number behind it stands between names
CLAUSES = (  # what a clause may look like, once its brackets are gone
    rf"{NUMBER}{KIND} (?P<rest>elsewhere|float64|float32)",
    rf"{NUMBER}{KIND}(?: on (?P<names>.+))?",
    rf"(?P<names>\S.*?) {NUMBER}{KIND}",
)
UNIT = "largest deviation over the largest absolute value of the output"
GROUPS = {  # words for several outputs
    "everything": r".*",
    "metrics": r".*\b(R\d+|MedianR|MeanR|Std_Rank)",
    "losses": r"infonce|coarse|fine|total|loss_.*|pearson_.*|retrieval|generation",
    "matrices": r"video|(weak|strong)_(frame|patch)|similarity|two_stage_.*",
    "scores": r"s1|s2|logits|similarity",
    "gradients": r"grad\..*|gradient_norms",
    "unit vectors": r"(video|text)_queries|video_embedding|text_embedding_unit",
    "un-normalised features": r"(text|word|frame)_embedding|contextual_frames",
    "scaled terms": r"sentence_video|word_video|sentence_frame|word_frame|logits",
}


@dataclass(frozen=True)
class Limit:
    """The largest error that outputs of these names may have."""

    names: tuple[str, ...]  # none: whatever no other limit names
    value: float
    kind: str = "absolute"  # or "relative", or "relative to the abs-sum", or "... to the largest"
    precision: str | None = None  # None: every one

    def holds_for(self, output: str) -> bool:
        """Whether an output is meant by one of the names."""
        return any(_means(name, output) for name in self.names)

    def error(self, found: Tensor, expected: Tensor) -> float:
        """The largest error, in the limit's own terms."""
        assert found.shape == expected.shape, f"{list(found.shape)} came out, {list(expected.shape)} expected"
        if not found.is_floating_point():
            return float((found != expected).sum())
        found, expected = found.double(), expected.double()
        difference = (found - expected).abs()
        if self.kind == "relative to the abs-sum":
            difference = difference / expected[..., 1:2]  # the columns are the sum and the sum of magnitudes
        elif self.kind == "relative to the largest":
            difference = difference / expected.abs().max()
        elif self.kind == "relative":
            difference = difference / expected.abs()
        difference = difference.where(found != expected, 0.0)
        return float(difference.nan_to_num(torch.inf).max())


@dataclass(frozen=True)
class Tolerance:
    """All limits of a fixture."""

    limits: tuple[Limit, ...]

    def measured(self, unit: str) -> "Tolerance":
        """Return the limits, plain ones in the unit that a sidecar says its deviations are in."""
        if unit != UNIT:
            return self
        plain = {"absolute": "relative to the largest"}
        return Tolerance(tuple(replace(limit, kind=plain.get(limit.kind, limit.kind)) for limit in self.limits))

    def precisions(self) -> list[str]:
        """Return what to compute in: the precisions that are named, else single."""
        named = [name for name in PRECISIONS if any(limit.precision == name for limit in self.limits)]
        return named or ["float32"]

    def limit(self, output: str, expected: Tensor, precision: str) -> Limit:
        """The limit on one output in one precision."""
        if not expected.is_floating_point():
            return Limit((), 0.0)
        limits = [limit for limit in self.limits if limit.precision in (None, precision)]
        named = [limit for limit in limits if limit.holds_for(output)]
        if named:
            return named[0]
        rest = [limit for limit in limits if not limit.names]
        return rest[0] if rest else Limit((), min(limit.value for limit in limits))

    def check_names(self, outputs: list[str]) -> None:
        """Every name that a limit has must mean some output; a word for several may mean none."""
        for limit in self.limits:
            for name in limit.names:
                assert name in GROUPS or any(_means(name, output) for output in outputs), (
                    f"tolerance: no output is meant by {name!r}"
                )


def parse(stated: Any) -> Tolerance:
    """Reads a tolerance, or raises ValueError."""
    if isinstance(stated, dict):
        limits = []
        for name, value in stated.items():
            where = {"precision": name} if name in PRECISIONS else {"names": tuple(name.split(", "))}
            limits += [Limit(**{**vars(limit), **where}) for limit in _limits(value)]
        return Tolerance(tuple(limits))
    return Tolerance(tuple(_limits(stated)))


def _limits(stated: Any) -> list[Limit]:
    if isinstance(stated, (int, float)) and not isinstance(stated, bool):
        return [Limit((), float(stated))]
    if stated == "exact" or re.fullmatch(BOUNDS, str(stated)):
        return [Limit((), 0.0)]
    if not isinstance(stated, str):
        raise ValueError(f"tolerance {stated!r}: neither a number nor words")
    clauses = [clause.strip() for clause in re.split(BETWEEN_CLAUSES, re.sub(r"\([^)]*\)", "", stated))]
    limits = [_limit(re.sub(r"\s+", " ", clause), stated) for clause in clauses if re.search(NUMBER, clause)]
    if not limits:
        raise ValueError(f"tolerance {stated!r}: no number in it")
    return limits


def _limit(clause: str, stated: str) -> Limit:
    for pattern in CLAUSES:
        found = re.fullmatch(pattern, clause)
        if found:
            said = found.groupdict()
            names = tuple(name.removeprefix("the ") for name in re.split(r", | and ", said.get("names") or "") if name)
            kind = (
                (said["kind"] or "absolute").lower()
                + (said["total"] or "")
                + (" to the largest" if said["largest"] else "")
            )
            rest = said.get("rest")
            precision = rest if rest in PRECISIONS else None
            number = re.search(NUMBER, clause)
            assert number is not None
            return Limit(() if names in (("everything",), ("others",)) else names, float(number[1]), kind, precision)
    raise ValueError(f"tolerance {stated!r}: the clause {clause!r} is not understood")


def _means(name: str, output: str) -> bool:
    """A group, a pattern, or a run of the words that the output's name is made of (`logits` of `meanpool_logits`)."""
    if name in GROUPS:
        return bool(re.fullmatch(GROUPS[name], output))
    if "*" in name:
        return fnmatch(output, name)
    wanted, words = _words(name), _words(output)
    return any(words[start : start + len(wanted)] == wanted for start in range(len(words)))


def _words(name: str) -> list[str]:
    return [word.rstrip("0123456789") for word in re.split(r"[._]", name)]
