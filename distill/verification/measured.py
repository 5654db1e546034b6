"""Metrics of a release, measured again, and how far rounding may move them.

Kernels of another processor add in another order, so that scores that are nearly equal may change places. In float32
one query in a thousand may do so, in bfloat16 one in a hundred; a median must lie between the ranks that so many
queries can reach, and a mean rank may be off by the same share.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from distill.data.frames import FrameSet
from distill.evaluation.choosing import chosen, look_again
from distill.evaluation.evaluate import Encoded, check_captions, encode, rank
from distill.evaluation.metrics import Ranks
from distill.release.release import Release
from distill.release.stated import Metrics, Summary
from distill.verification.claims import Claim, compared, unchecked

SHARE = {"fp32": 0.001, "bf16": 0.01}  # of queries that rounding may move
DIRECTIONS = ("t2v", "v2t")


class Measured:
    """A release on one frame set: its ranks, and with the second look that it carries."""

    def __init__(self, release: Release, frames: FrameSet, precision: str):
        check_captions(frames)
        self.precision, look = precision, release.second_look
        self.seen: Encoded = encode(
            release.model,
            release.accept(frames),
            release.tokenizer,
            bf16=precision == "bf16",
            all_features=look is not None,
        )
        self.model, self.plain = release.model, rank(release.model.similarity, self.seen)
        self.second = None if look is None else look_again(look, self.seen)

    def metrics(self) -> dict[str, Any]:
        """Return the metrics as a release records them."""
        return self.plain.metrics | ({} if self.second is None else {"second_look": self.second.metrics})

    def claims(self, name: str, stated: Metrics) -> list[Claim]:
        """Compare stated metrics, by direction, with what was measured."""
        found = self._of(name, {"t2v": stated.t2v, "v2t": stated.v2t}, self.plain)
        if self.second is not None:
            found += self._of(f"{name}: second look", stated.second_look, self.second)
        return found

    def _of(self, name: str, stated: Mapping[str, Summary], ranks: Ranks) -> list[Claim]:
        return [
            self._claim(f"{name}: {way} {metric}", metric, value, ranks.metrics[way].get(metric), getattr(ranks, way))
            for way in DIRECTIONS
            for metric, value in stated.get(way, {}).items()
        ]

    def _claim(self, name: str, metric: str, stated: float, measured: float | None, ranks: Tensor) -> Claim:
        if measured is None:
            return unchecked(name, stated, "this version measures no such metric")
        if stated == measured:
            return compared(name, stated, measured)
        if not _within(metric, stated, measured, ranks, self.precision):
            return Claim(name, stated, measured, "differs")
        return Claim(name, stated, measured, "holds", "within rounding")

    def second_look(self, stated: Any) -> Claim:
        """Choose the second look of a release again, on the validation frames that this is."""
        found = chosen(self.model, self.seen)
        return compared("second look, as validation chooses it", str(stated), str(found))

    def check_ranks(self, path: Path) -> list[Claim]:
        """Compare the ranks that a run left beside its release (`test_ranks.safetensors`)."""
        try:
            stored = load_file(path)
        except (OSError, SafetensorError) as error:
            return [Claim(path.name, "ranks", f"not readable ({error})", "differs")]
        claims = []
        for prefix, ranks in (("", self.plain), ("second_", self.second)):
            for direction in DIRECTIONS if ranks is not None else ():
                expected, found = stored.get(f"{prefix}{direction}"), getattr(ranks, direction).cpu()
                same = expected is not None and expected.shape == found.shape
                moved = int((expected != found).sum()) if same else len(found)
                few = same and moved <= int(SHARE[self.precision] * len(found))
                stated, said = f"{len(found)} ranks", f"{len(found) - moved} equal"
                claims.append(Claim(f"{path.name}: {prefix}{direction}", stated, said, "holds" if few else "differs"))
        return claims


def _within(metric: str, stated: float, measured: float, ranks: Tensor, precision: str) -> bool:
    """Return whether rounding explains a difference of two metrics of so many ranks, counted from 0."""
    share, total = SHARE[precision], len(ranks)
    moved = int(share * total)
    if metric == "MdR":
        ordered, middle = torch.sort(ranks.double()).values + 1, total // 2
        low, high = ordered[max(0, middle - 1 - moved)], ordered[min(total - 1, middle + moved)]
        return bool(moved) and float(low) <= stated <= float(high)
    if metric == "MnR":
        return abs(stated - measured) <= share * measured
    return abs(stated - measured) * total / 100 <= moved + 1e-6
