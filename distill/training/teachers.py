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
from distill.training.tables import Tables, gather, numbered


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

    def shared(self, batch: Batch) -> Tables:
        """Return what all processes need of a share's labels: what is said of videos, and of the pairs' frames."""
        found = numbered("pair", [self._of_pairs(rows) for rows in batch.labels])
        return found if batch.unpaired is None else found | numbered("video", batch.unpaired.video_labels)

    @torch.no_grad()
    def scores(self, batch: Batch, known: Tables) -> list[TeacherScores]:
        """Return what each teacher says of the global batch: pairs first, then what is beside them. A collective.

        `known` are all processes' `shared` tables.
        """
        pairs = [known.get(f"pair labels {place}", {}) for place in range(len(batch.labels))]
        logits = self._logits(batch, known) if self._config.coarse.weight and pairs else [None] * len(pairs)
        return [
            TeacherScores(
                logits=scored,
                relevance=rows.get("relevance"),
                sentence=rows.get("sentence"),
                weight=weight,
                temperatures=own,
            )
            for (_, weight), own, scored, rows in zip(self._heads, self._temperatures, logits, pairs, strict=False)
        ]  # a batch may come without labels

    def _of_pairs(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the part of one teacher's labels of pairs that the losses need on all processes."""
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

    def _logits(self, batch: Batch, known: Tables) -> list[Tensor]:
        """Return each teacher's logits of all texts and all videos: this process's rows, and those of the others."""
        more = batch.unpaired.text_labels if batch.unpaired else []
        paired, own = len(batch.videos), {}
        for place, (rows, (head, _)) in enumerate(zip(batch.labels, self._heads, strict=False)):
            assert LIST not in rows or batch.unpaired is None, "shortlists rank the videos of pairs"
            texts = _joined("text", rows, more[place] if more else {})
            videos = _joined("video", known[f"pair labels {place}"], known.get(f"video labels {place}", {}))
            scored = teacher_logits(head, texts, videos)
            parts = {"pair": scored[:paired], "text": scored[paired:]}
            own |= {f"{side} {place}": {"logits": rows} for side, rows in parts.items() if len(rows)}
        found = gather(own)
        sides = [[found.get(f"{side} {place}") for side in ("pair", "text")] for place in range(len(batch.labels))]
        return [torch.cat([rows["logits"] for rows in both if rows]) for both in sides]


def _joined(side: str, rows: dict[str, Tensor], more: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the features of one side, those of `more` below those of the pairs; `more` may be empty."""
    return {name: torch.cat([rows[name], more[name]]) for name in FEATURES[side] if name in rows} if more else rows
