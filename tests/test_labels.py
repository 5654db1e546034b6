"""Labels from shards equal the live teacher, whatever wrote them, and foreign or damaged labels are refused."""

from pathlib import Path

import pytest
import torch
from conftest import World, one_line_error, python, steps
from labelling import random_teacher, write_labels
from safetensors.torch import load as load_tensors

import distill.release
from distill import catalogue
from distill.data.batch import Batch
from distill.data.datasets import PairDataset
from distill.data.frames import FrameSet
from distill.data.labels import Storage
from distill.data.labelset import LabelSet
from distill.errors import ArtefactError
from distill.model.contract import teacher_logits
from distill.model.features import TextFeatures
from distill.model.towers import Towers
from distill.release.release import Release
from distill.training.lossconfig import LossConfig
from distill.training.objective import Objective
from students.teachclip import TeachClip

PAIRS = [(0, 0), (3, 1), (5, 0), (8, 2), (11, 0), (14, 1), (19, 0), (25, 0)]


@pytest.fixture(scope="module")
def labels(world: World, teacher: Path, tmp_path_factory) -> dict[str, Path]:
    """Label sets of the training frames, by storage."""
    out = tmp_path_factory.mktemp("labels")
    for storage in ("float32", "float16"):
        dump(teacher, world.frames["train"], out / storage, "--dtype", storage)
    return {storage: out / storage for storage in ("float32", "float16")}


def dump(teacher: Path, frames: Path, out: Path, *options: str):
    return python("tools/dump_soft_labels.py", teacher, frames, "--out", out, "--batch", "8", *options)


def student(release: Release) -> TeachClip:
    torch.manual_seed(7)
    towers = Towers.from_architecture(release.config.architecture, freeze_vision=2)
    config = catalogue.parse_model_config(
        {
            "kind": "teachclip",
            "clip": {"model": "towers", "freeze_vision": 2},
            "temporal": {"layers": 1, "init": "normal"},
        },
        "test",
    )
    model = catalogue.build(config, towers)
    assert isinstance(model, TeachClip)
    return model


def loss_and_gradient(objective: Objective, batch: Batch) -> tuple[dict[str, float], torch.Tensor]:
    objective.zero_grad()
    parts = objective(batch)
    parts["total"].backward()
    gradient = torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])
    return {name: value.item() for name, value in parts.items()}, gradient


@torch.no_grad()
def live_rows(release: Release, frames: FrameSet, batch: Batch) -> dict[str, torch.Tensor]:
    """Return what the teacher says of this very batch, straight from its towers."""
    text = release.model.encode_text(batch.ids)
    video = release.model.encode_video(batch.frames, batch.real)
    frame_features = video.frames
    assert frame_features is not None and text.words is not None
    sentence = torch.nn.functional.normalize(text.sentence, dim=-1)
    unit_frames = torch.nn.functional.normalize(frame_features, dim=-1)
    relevance = torch.einsum("pd,pfd->pf", sentence, unit_frames)  # the paper's formula again, not the project's code
    return {
        "relevance": relevance,
        "sentence": text.sentence,
        "words": text.words,
        "frames": frame_features,
        "vector": video.vector,
    }


@pytest.mark.parametrize(("storage", "tolerance"), [("float32", 1e-6), ("float16", 2e-3)])
def test_loss_and_gradient_from_labels_equal_the_live_teachers(
    world: World, teacher: Path, labels: dict[str, Path], storage: str, tolerance: float
):
    frames, release = FrameSet(world.frames["train"]), distill.release.load(teacher)
    label_set = LabelSet(labels[storage], frames)
    stored = PairDataset(frames, [label_set], release.tokenizer, pixels=True).__getitems__(PAIRS)
    live = Batch(stored.videos, stored.ids, stored.frames, stored.real, [live_rows(release, frames, stored)])
    interaction = catalogue.scoring_head(label_set)
    model = student(release)
    from_labels, gradient = loss_and_gradient(Objective(model, [(interaction, 1.0)], LossConfig(), bf16=False), stored)
    from_teacher, wanted = loss_and_gradient(
        Objective(model, [(release.model.interaction, 1.0)], LossConfig(), bf16=False), live
    )
    assert from_labels.keys() == from_teacher.keys() == {"total", "contrastive", "coarse", "fine"}
    for name, value in from_teacher.items():
        assert abs(from_labels[name] - value) <= tolerance * abs(value), name
    assert (gradient - wanted).norm() <= tolerance * wanted.norm()


@pytest.mark.parametrize("kind", ["ts2net", "xpool"])
@pytest.mark.parametrize(("storage", "tolerance"), [("float32", 1e-6), ("float16", 2e-3)])
def test_labels_of_every_teacher_equal_the_live_one(
    world: World, teacher: Path, tmp_path: Path, kind: str, storage: Storage, tolerance: float
):
    """Against the teacher itself, asked for this very batch, and a formula of the relevance written here."""
    frames, live = FrameSet(world.frames["train"]), random_teacher(world, kind)
    label_set = LabelSet(write_labels(world, kind, tmp_path / kind, storage), frames)
    tokenizer = distill.release.load(teacher).tokenizer
    batch = PairDataset(frames, [label_set], tokenizer, pixels=True).__getitems__(PAIRS)
    interaction = catalogue.scoring_head(label_set)
    assert batch.frames is not None
    with torch.no_grad():
        text, video = live.encode_text(batch.ids), live.encode_video(batch.frames, batch.real)
        found = teacher_logits(interaction, batch.labels[0])
        wanted = live.logits(text, video)
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()
    assert video.frames is not None
    if kind == "xpool":
        head = live.interaction.pooling
        query = head.q_proj(head.norm1(text.sentence))
        raw = torch.einsum("pd,pfd->pf", query, head.k_proj(head.norm1(video.frames))) / query.shape[-1] ** 0.5
    else:
        raw = torch.cosine_similarity(text.sentence[:, None], video.frames, dim=-1)
    assert (batch.labels[0]["relevance"] - raw).abs().max() <= 1e-5  # relevance is fp32 in any storage


def test_labels_are_keyed_by_caption_and_frames(world: World, labels: dict[str, Path], teacher: Path):
    frames, release = FrameSet(world.frames["train"]), distill.release.load(teacher)
    label_set = LabelSet(labels["float32"], frames)
    video, caption = 4, 1
    ids = torch.from_numpy(release.tokenizer([frames.videos[video].captions[caption].text]))
    alone: TextFeatures = release.model.encode_text(ids)
    rows = label_set.batch([(video, caption)])
    torch.testing.assert_close(rows["sentence"], alone.sentence, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(label_set.relevance(video, caption), rows["relevance"][0])


def test_every_caption_and_video_is_encoded_once(world: World, teacher: Path, tmp_path: Path):
    printed = dump(teacher, world.frames["train"], tmp_path / "labels").stdout
    frames = FrameSet(world.frames["train"])
    texts = {caption.text for video in frames.videos for caption in video.captions}
    assert f"({len(texts)} distinct)" in printed
    assert f"encoded here: {len(texts)} captions, {len(frames)} videos" in printed


def test_labels_of_other_frames_are_refused(world: World, labels: dict[str, Path]):
    with pytest.raises(ArtefactError, match="labels were made from frames"):
        LabelSet(labels["float16"], FrameSet(world.frames["val"]))


def test_a_recipe_says_which_tier_the_coarse_loss_reads(world: World, teacher: Path, tmp_path: Path):
    dump(teacher, world.frames["train"], tmp_path / "thin", "--tiers", "topk", "--top", "5")
    recipe = world.recipe("student", "teachclip", tmp_path, labels=[str(tmp_path / "thin")])
    one_line_error(python("distill/run.py", recipe, check=False), "features", "--tiers relevance topk features")
    python("distill/run.py", recipe, f"labels=[{{path: {tmp_path / 'thin'}, coarse: topk}}]")
    assert all(step["coarse"] > 0 for step in steps(tmp_path / "student"))


def test_the_interaction_travels_with_the_labels(labels: dict[str, Path], teacher: Path):
    model = load_tensors((teacher / "model.safetensors").read_bytes())
    for name, value in load_tensors((labels["float16"] / "interaction.safetensors").read_bytes()).items():
        torch.testing.assert_close(value, model[f"interaction.{name}"], rtol=0, atol=0)
