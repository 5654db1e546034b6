"""Less memory for the same numbers: micro-batches, recomputed blocks, compiled blocks."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ARCHITECTURE, World
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from distill import catalogue
from distill.config import read_recipe
from distill.data.batch import Batch
from distill.errors import RecipeError
from distill.experiment import prepare
from distill.model.blocks import checkpoint_blocks, compile_blocks
from distill.model.contract import RetrievalModel
from distill.model.towers import Towers
from distill.recipe import Recipe
from distill.training.lossconfig import LossConfig
from distill.training.objective import Objective
from teachers.xclip import XClipInteraction

PAIRS, FRAMES, WORDS, DIM = 32, 12, 24, 64
TEMPORAL = {"layers": 1, "init": "normal"}
MODELS = {
    "clip4clip": {"head": "seqTransf", "temporal": TEMPORAL},
    "teachclip": {"temporal": TEMPORAL},
    "prompt_switch": {"pooling": "afa"},
    "eercf": {"temporal": TEMPORAL, "frames": FRAMES, "gate": "every"},
    "glscl": {"temporal": TEMPORAL, "queries": {"heads": 4}},
    "pig": {"generator": {"selected": 4}},
    "xclip": {"temporal": TEMPORAL, "words": WORDS, "frames": FRAMES},
    "ts2net": {"temporal": {**TEMPORAL, "positions": 77}, "frames": FRAMES, "shift_layers": 1},
    "xpool": {},
}
LOSSES = {
    "contrastive": {"contrastive": {"weight": 1.0}, "coarse": {"weight": 0.0}, "fine": {"weight": 0.0}},
    "coarse": {"contrastive": {"weight": 0.0}, "coarse": {"weight": 1.0}, "fine": {"weight": 0.0}},
    "fine": {"contrastive": {"weight": 0.0}, "coarse": {"weight": 0.0}, "fine": {"weight": 1.0}},
}


def model_of(kind: str) -> RetrievalModel:
    """A tiny model in training, its random weights always the same, and large enough to tell videos apart."""
    torch.manual_seed(0)
    config = catalogue.parse_model_config({"kind": kind, "clip": {"model": "unused"}, **MODELS[kind]}, kind)
    model = catalogue.build(config, Towers.from_architecture(ARCHITECTURE)).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Captions and videos of several lengths, and a teacher's features of them."""
    torch.manual_seed(1)
    ids = torch.randint(1, 1000, (PAIRS, WORDS))
    ids[:, 0], ids[torch.arange(PAIRS), torch.randint(5, WORDS, (PAIRS,))] = 49406, 49407
    shapes = {"sentence": (DIM,), "words": (WORDS, DIM), "vector": (DIM,), "frames": (FRAMES, DIM)}
    return Batch(
        videos=torch.arange(PAIRS),
        ids=ids,
        frames=torch.randint(0, 256, (PAIRS, FRAMES, 3, 64, 64), dtype=torch.uint8),
        real=torch.arange(FRAMES) < torch.randint(6, FRAMES + 1, (PAIRS, 1)),
        labels=[
            {name: torch.randn(PAIRS, *shape) for name, shape in shapes.items()}
            | {"relevance": torch.randn(PAIRS, FRAMES)}
        ],
    )


def gradients(
    model: RetrievalModel, batch: Batch, losses: str | None = None, accumulate: int = 1
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The losses of a step with labels (or with the model's own losses alone), and every parameter's gradient."""
    teachers = [(XClipInteraction(DIM, WORDS, FRAMES, 0.01), 1.0)] if losses else []
    config = LossConfig.model_validate(LOSSES[losses]) if losses else LossConfig()
    given = batch if losses else replace(batch, labels=[])
    objective = Objective(model, teachers, config, bf16=False, accumulate=accumulate)
    torch.manual_seed(2)  # as the loop does at every step
    parts = objective(given)
    parts["total"].backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {name: value.item() for name, value in parts.items()}, found


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest error of a parameter's gradient beside its norm.

    Gradients that are zero but for rounding (of a bias that a softmax cancels) must stay so.
    """
    assert found.keys() == expected.keys()
    noise = 1e-6 * max(value.norm() for value in expected.values())
    zero = {name for name, value in expected.items() if value.norm() < noise}
    assert all(found[name].norm() < 2 * noise for name in zero)
    kept = expected.keys() - zero
    return max(float((found[name] - expected[name]).norm() / expected[name].norm()) for name in kept)


def peak(folder: Path, model: RetrievalModel, batch: Batch, accumulate: int = 1) -> int:
    """The most bytes that a step holds at once beyond what was there before it, as torch's allocator reports them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        gradients(model, batch, accumulate=accumulate)
    recorded.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    live = most = 0
    for event in sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"]):
        live += event["args"]["Bytes"]
        most = max(most, live)
    return most


@pytest.mark.parametrize("losses", LOSSES)
def test_the_gradient_of_4_x_8_is_that_of_32(batch: Batch, losses: str):
    whole, expected = gradients(model_of("teachclip"), batch, losses)
    parts, found = gradients(model_of("teachclip"), batch, losses, accumulate=4)
    assert parts == pytest.approx(whole, rel=1e-6)
    assert furthest(found, expected) < 1e-5


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_trains_alike_in_micro_batches(batch: Batch, kind: str):
    """In double precision, so that nothing can hide behind the tolerance; models that draw noise included."""
    pairs = torch.arange(8)
    few = replace(
        batch, videos=torch.arange(8), ids=batch.ids[pairs], frames=batch.frames[pairs], real=batch.real[pairs]
    )
    whole, expected = gradients(model_of(kind).double(), few)
    parts, found = gradients(model_of(kind).double(), few, accumulate=4)
    assert parts == pytest.approx(whole, rel=1e-9)
    assert furthest(found, expected) < 1e-9


def test_micro_batches_need_less_memory(batch: Batch, tmp_path: Path):
    whole = peak(tmp_path, model_of("teachclip"), batch)
    parts = peak(tmp_path, model_of("teachclip"), batch, accumulate=8)
    gradient = sum(parameter.nbytes for parameter in model_of("teachclip").parameters())
    assert parts - gradient < 0.2 * (whole - gradient)  # an eighth of the activations, the features, the pixels


@pytest.mark.parametrize("kind", ["teachclip", "prompt_switch", "pig", "ts2net"])
def test_recomputed_blocks_give_the_same_bits_for_less_memory(batch: Batch, kind: str, tmp_path: Path):
    whole, expected = gradients(model_of(kind), batch)
    model = model_of(kind)
    before = model.state_dict().keys()
    checkpoint_blocks(model)
    parts, found = gradients(model, batch)
    assert model.state_dict().keys() == before
    assert parts == whole
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert 0 < saved(model, batch) < 0.6 * saved(model_of(kind), batch)


def saved(model: RetrievalModel, batch: Batch) -> int:
    """Bytes that the towers keep for their backward, counted once where several operations keep the same tensor."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        text, video = model.encode_text(batch.ids), model.encode_video(batch.frames, batch.real)
        model.encode_pair(batch.ids, text, video)
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="no C++ compiler: nothing to compile with")
@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
def test_compiled_blocks_give_the_same_gradient(batch: Batch, monkeypatch: pytest.MonkeyPatch):
    """The text tower, whose two blocks share one compilation, also where they are recomputed."""
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    # Under `default` torch's compiler writes code for vectors and leaves their header out (torch 2.15).
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    whole, expected = gradients(model_of("teachclip"), batch)
    model = model_of("teachclip")
    compile_blocks(model.clip.text)
    checkpoint_blocks(model.clip.text)
    parts, found = gradients(model, batch)
    assert parts == pytest.approx(whole, rel=1e-5)
    assert furthest(found, expected) < 1e-5


def test_what_cannot_be_carried_out_is_refused(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = world.recipe("compiled", "teachclip", tmp_path)
    with pytest.raises(RecipeError, match="compile: true, but zero: 3"):
        read_recipe(recipe, ["train.compile=true", "train.zero=3"], Recipe)
    monkeypatch.setenv("CXX", "nowhere")
    with pytest.raises(RecipeError, match=r"train\.compile: true, but the C\+\+ compiler nowhere is not there"):
        prepare(read_recipe(recipe, ["train.compile=true"], Recipe))
    with pytest.raises(RecipeError, match=r"data\.batch_size: 8 .* 3 micro-batches each .*; use a multiple of 3"):
        prepare(read_recipe(recipe, ["train.accumulate=3"], Recipe))
