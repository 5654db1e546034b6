"""A step reads from the device once and gathers once; the next batch is fetched meanwhile, and no bit differs."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import World, launch, make_towers, metrics
from labelling import write_labels
from reads import SPOILT, Watch

from distill.bench.drawn import draw_frames
from distill.data.batch import Batch
from distill.errors import ExpectedError
from distill.training.ahead import Ahead

BATCH = Batch(torch.arange(2), torch.zeros(2, 4, dtype=torch.int64), None, torch.ones(2, 3, dtype=torch.bool), [])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that learns from labels, and from videos and captions beside the pairs; equal videos are masked."""
    folder = tmp_path_factory.mktemp("steps")
    sizes = {"train": 16, "val": 4, "test": 8}
    frames = {
        split: draw_frames(folder / split, videos=videos, captions=2, num_frames=12, size=64, seed=videos).path
        for split, videos in sizes.items()
    }
    world = World(folder, folder, frames, make_towers(folder / "towers"))
    labels, unlabelled, texts = (
        str(write_labels(world, "xclip", folder / f"labels-{split}", frames=path)) for split, path in frames.items()
    )
    data = {"unlabelled": str(frames["val"]), "unlabelled_size": 4, "texts": str(frames["test"]), "texts_size": 8}
    taught = [{"path": labels, "unlabelled": unlabelled, "texts": texts}]
    data["same_video"] = "mask"
    return world.recipe("student", "teachclip", folder, labels=taught, data=data, train={"stem_cache_gb": 0.0})


def counted(processes: int, *wanted: str) -> list[dict]:
    """Return what tests/reads.py says of every training."""
    said = launch(processes, "tests/reads.py", *wanted).stdout
    return [json.loads(line) for line in said.splitlines() if line.startswith('{"steps"')]


def test_a_step_reads_once_and_gathers_what_the_losses_need(recipe: Path):
    """Two processes. What the losses need is gathered in one collective whatever stands beside the pairs, and rows of
    the teacher's logits in another; the features' gradient, DeepSpeed's mean of the weights' gradients and the hosts'
    word about signals are three more."""
    plain, zero = counted(2, str(recipe), f"{recipe},name=zero,train.zero=2")
    number = plain["steps"]
    reads = {"engine.py:step": number, "comm.py:largest": number}  # the latter of a number that hosts exchange
    assert number == 4 and without_the_first_count(plain["reads"]) == reads
    once = ("comm.py:backward", "comm.py:largest", "deepspeed")
    found = without_the_first_count(plain["collectives"])
    assert found == {**dict.fromkeys(once, number), "comm.py:forward": 2 * number}
    # ZeRO knows the norm when the weights have changed, and reads it itself
    assert zero["reads"].pop("deepspeed") and zero["reads"].pop("engine.py:_moved") == number
    assert without_the_first_count(zero["reads"]) == reads


def without_the_first_count(places: dict[str, int]) -> dict[str, int]:
    """The same without the operations of a run's first step, which all processes add up."""
    assert places.pop("comm.py:total") == 1
    return places


def test_a_batch_that_is_fetched_ahead_changes_no_bit_and_a_read_that_is_added_is_counted(recipe: Path):
    """The run that is spoilt shows that the count above can fail."""
    runs = {"ahead": "", "late": ",late", "tolist": ",tolist"}
    found = counted(1, *(f"{recipe},name={name}{how}" for name, how in runs.items()))
    for name, one in zip(runs, found, strict=True):
        spoilt = {"reads.py:<lambda>": one["steps"]} if name in SPOILT else {}
        assert one["reads"] == {"engine.py:step": one["steps"]} | spoilt
        assert metrics(recipe.parent / name) == metrics(recipe.parent / "ahead")


@pytest.mark.parametrize("method", SPOILT)
def test_every_way_to_read_is_seen(method: str):
    tensor = torch.ones(1)
    with Watch().looking() as watch:
        ((tensor + 1).clamp_(max=1) @ tensor).to(tensor.device, torch.float64).float()
        tensor[torch.tensor([0])].log_softmax(-1)
    assert not watch.reads
    with Watch().looking() as watch:
        SPOILT[method](tensor)
    assert sum(watch.reads.values()) == 1


def batches(number: int, error: Exception | None = None) -> Iterator[tuple[Batch, str]]:
    for step in range(number):
        yield replace(BATCH, ids=BATCH.ids + step), str(step)
    if error is not None:
        raise error


def test_the_next_batch_is_fetched_once_and_none_is_lost_or_doubled():
    placed: list[int] = []

    def place(batch: Batch) -> Batch:
        placed.append(int(batch.ids[0, 0]))
        return batch

    ahead, seen, waits = Ahead(batches(4), place), [], []
    for batch, word in ahead:
        assert int(batch.ids[0, 0]) == int(word) == len(seen)
        seen.append(word)
        assert placed == [*range(len(seen))]
        if len(seen) % 2:  # others are taken when they are due
            ahead.fetch()
            assert placed == [*range(min(len(seen) + 1, 4))]
        waits.append(ahead.waited())
        assert ahead.waited() == 0, "told once"
    assert seen == ["0", "1", "2", "3"]
    assert [wait > 0 for wait in waits] == [True, False, True, False], "of both fetches before, and of none"


def test_what_a_loader_says_is_raised_where_its_batch_is_due():
    ahead = Ahead(batches(1, ExpectedError("a shard is damaged")), lambda batch: batch)
    next(ahead)
    ahead.fetch()  # within the step before
    with pytest.raises(ExpectedError, match="a shard is damaged"):
        next(ahead)


STOPPED = """
import torch
from torch import nn
from distill import comm
from distill.errors import ExpectedError
from distill.training import engine
from distill.training.optim import OptimConfig

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, batch):
        score = self.layer(torch.ones(1, 2)).sum()
        loss = score * float("nan") if batch == "loss" else (score * 0).sqrt()
        return {"total": loss, "first": score.detach()}

engine.start(5)
for zero in range(4):
    for what in ("loss", "gradient"):
        model = Model()
        one = engine.Engine(model, model, OptimConfig(lr=1e-3, clip_lr=1e-3, head_lr=1e-3), zero, 1)
        before, called = one.weights(), []
        try:
            one.step(what, 0, 1, meanwhile=lambda: called.append(1))
        except ExpectedError as error:
            same = all(torch.equal(value, one.weights()[name]) for name, value in before.items())
            print(zero, what, same, called, str(error).partition(" is ")[0], flush=True)
comm.close()
"""


def test_a_loss_or_a_norm_that_is_no_number_stops_the_step_before_weights_change(tmp_path: Path):
    """Under ZeRO the norm is known after they did, and DeepSpeed itself then leaves them as they are."""
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED)
    said = [line for line in launch(1, script).stdout.splitlines() if line[:1].isdigit()]
    names = {"loss": "loss part total", "gradient": "gradient norm"}
    assert said == [f"{zero} {what} True [1] step 1: {names[what]}" for zero in range(4) for what in names]
