"""`python -m parity.steps FIXTURE OUT ZERO ...`: the steps of a training fixture by the project's Engine, in float32.

The teachers' logits are given, so their scoring head is one that gives back what is stored: rows of logits times the
identity. A process of its own, because the Engine joins a process group.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from distill import comm
from distill.data.batch import Batch
from distill.model.contract import Interaction
from distill.model.features import TextFeatures, VideoFeatures
from distill.training.engine import Engine, start
from distill.training.objective import Objective
from parity.fixture import Fixture
from parity.measures import PARTS, loss_config
from parity.training import Trace, check_unchanged, optim_config, student


class Stored(Interaction):
    """Scores that were made elsewhere: the sentence is the row of logits, the video the column's unit vector."""

    def config(self) -> dict[str, Any]:
        """Nothing to build."""
        return {}

    def forward(self, text: TextFeatures, video: VideoFeatures, scaled: bool = True) -> Tensor:
        """The stored logits."""
        return text.sentence @ video.vector.T

    def relevance(self, text: TextFeatures, video: VideoFeatures) -> Tensor:
        """Labels bring their relevance along."""
        raise AssertionError("never asked")


def batch(fixture: Fixture, step: int) -> Batch:
    """One step's batch, with the teachers' rows."""
    logits, labels = (fixture.input(f"teacher_{name}", torch.float32)[step] for name in ("logits", "relevance"))
    pairs = logits.shape[-1]
    rows = [
        {"sentence": scores, "vector": torch.eye(pairs), "relevance": label.log()}
        for scores, label in zip(logits, labels, strict=True)
    ]
    ids, frames = fixture.tensors["input.input_ids"][step], fixture.input("video", torch.float32)[step]
    return Batch(videos=torch.arange(pairs), ids=ids, frames=frames, real=fixture.real(), labels=rows)


def steps(fixture: Fixture, zero: int) -> dict[str, Tensor]:
    """Everything that the fixture records, under one ZeRO stage."""
    model = student(fixture)
    teachers = fixture.tensors["input.teacher_logits"].shape[1]
    heads = [(Stored().requires_grad_(False), 1.0) for _ in range(teachers)]
    objective = Objective(model, heads, loss_config(fixture), bf16=False)
    engine = Engine(objective, model, optim_config(fixture), zero, len(fixture.real()))
    trace = Trace(fixture, model)
    trace.weights(engine.weights())
    before = trace.last
    for step in range(len(fixture.tensors["input.video"])):
        given = batch(fixture, step)
        with torch.no_grad():
            logits = model.logits(model.encode_text(given.ids), model.encode_video(given.frames, given.real))
        parts = engine.step(given, step, fixture.hyper["t_total"])
        trace.weights(engine.weights())
        recorded = {theirs: parts[ours] for theirs, ours in PARTS.items()}
        scale = trace.last["clip.logit_scale"][0]
        trace.step({**recorded, "grad_norm": parts["grad_norm"], "student_logits": logits, "logit_scale": scale})
    check_unchanged(fixture, before, trace.last)
    return trace.outputs()


def main(path: str, out: str, *stages: str) -> None:
    """One file per stage."""
    start(timeout_minutes=5)
    for zero in stages:
        found = steps(Fixture(Path(path)), int(zero))
        save_file({name: value.contiguous() for name, value in found.items()}, Path(out) / f"{zero}.safetensors")
    comm.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
