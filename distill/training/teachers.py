"""The teachers of a training: what each says of a batch, by the scoring heads of the label sets.

A teacher may compare every word with every frame, and a global batch of B pairs has B x B comparisons. So every
process scores its own texts alone, against all videos: of stored features those of videos travel, of logits the rows,
while words, the largest part, stay where they were read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from distill.data.batch import Batch
from distill.data.labels import LIST
from distill.model.contract import FEATURES, Interaction, teacher_logits
from distill.training.lossconfig import LossConfig, Temperatures
from distill.training.tables import gather, numbered


@dataclass(frozen=True, kw_only=True)
class TeacherScores:
    """One teacher's scores of a global batch: its logits, and the raw relevance of the frames of the matched pairs."""

    logits: Float[Tensor, "text video"] | None  # None where the coarse loss has no weight
    relevance: Float[Tensor, "pair frame"] | None  # None where the label set holds none
    sentence: Float[Tensor, "pair dim"] | None = None  # None where the loss of sentences has no weight
    weight: float = 1.0  # beside the other teachers
    temperatures: Temperatures = field(default_factory=Temperatures)  # that `auto` stands for


class Teachers:
    """The scoring heads of a recipe's label sets with the weights of their losses, in the order of a batch's labels."""

    def __init__(
        self,
        heads: Sequence[tuple[Interaction, float]],
        config: LossConfig,
        temperatures: Sequence[Temperatures] = (),  # those that `auto` stands for
    ):
        self._heads = tuple(heads)
        self._config = config
        self._temperatures = list(temperatures) or [Temperatures()] * len(self._heads)

    @torch.no_grad()
    def scores(self, batch: Batch) -> list[TeacherScores]:
        """Return what each teacher says of the global batch: pairs first, then what is beside them. A collective."""
        pairs = gather(numbered([self.shared(rows) for rows in batch.labels]))
        logits = self._logits(batch, [pairs.get(str(place), {}) for place in range(len(batch.labels))])
        known = zip(self._heads, self._temperatures, logits, strict=False)  # a batch may come without labels
        return [
            TeacherScores(
                logits=scored,
                relevance=pairs.get(str(place), {}).get("relevance"),
                sentence=pairs.get(str(place), {}).get("sentence"),
                weight=weight,
                temperatures=own,
            )
            for place, ((_, weight), own, scored) in enumerate(known)
        ]

    def shared(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what all processes need of the labels of one's pairs."""
        config, found = self._config, {}
        if config.coarse.weight:
            found = {name: rows[name] for name in FEATURES["video"] if name in rows}
            if LIST in rows:
                found[LIST] = rows[LIST][:, :1]  # the matched video, which is a column
        if config.fine.weight and "relevance" in rows:
            found["relevance"] = rows["relevance"]
        if config.sentence.weight:
            found["sentence"] = rows["sentence"]
        return found

    def _logits(self, batch: Batch, pairs: Sequence[dict[str, Tensor]]) -> list[Tensor | None]:
        """Return each teacher's logits of all texts and all videos, given what is known of the videos of all pairs."""
        if not self._config.coarse.weight:
            return [None for _ in batch.labels]
        nothing: list[dict[str, Tensor]] = [{} for _ in batch.labels]
        more, beside = nothing, nothing
        if batch.unpaired:
            more, beside = batch.unpaired.text_labels or nothing, batch.unpaired.video_labels or nothing
        seen = gather(numbered(beside))
        rows = [
            teacher_logits(head, _joined(own, texts), _joined(videos, seen.get(str(place), {})))
            for place, ((head, _), own, texts, videos) in enumerate(
                zip(self._heads, batch.labels, more, pairs, strict=False)
            )
        ]
        paired = len(batch.videos)
        found = [_gathered([each[:paired] for each in rows])]
        if batch.unpaired and len(batch.unpaired.ids):
            found.append(_gathered([each[paired:] for each in rows]))
        return [torch.cat(parts) for parts in zip(*found, strict=True)]


def _gathered(rows: Sequence[Tensor]) -> list[Tensor]:
    """Return all processes' rows of each teacher's logits."""
    return [table["logits"] for table in gather(numbered([{"logits": each} for each in rows])).values()]


def _joined(rows: dict[str, Tensor], more: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return two tables below each other; the second may be empty, and may lack fields that the first has."""
    return {name: torch.cat([rows[name], more[name]]) for name in more if name in rows} if more else rows
