"""Captions that a model cuts are counted in one line wherever they are packed, labelled, trained on or evaluated."""

import logging
from pathlib import Path

import pytest
import torch
from conftest import World
from labelling import teacher_release

from distill.config import read_recipe
from distill.data.frames import FrameSet
from distill.data.sampler import Clip4ClipSampler
from distill.evaluation.measure import evaluate_model
from distill.evaluation.result import Subject
from distill.experiment import prepare
from distill.labelling.job import LabelJob, LabelJobConfig
from distill.packing.packing import PackConfig, pack
from distill.recipe import Recipe

LONG = " ".join(["a person walks slowly through the green forest and then"] * 3)  # 30 tokens, and 32 with start and end


@pytest.fixture(scope="module")
def packed(world: World, tmp_path_factory) -> Path:
    """Three videos: two captions that differ after the 24th token, and one that no CLIP reads to its end."""
    folder = tmp_path_factory.mktemp("long")
    videos = sorted(path.name for path in (world.corpus / "videos").iterdir())
    captions = [f"{LONG} left", f"{LONG} right", " ".join(["short"] * 76)]
    rows = "".join(f"{video},{caption}\n" for video, caption in zip(videos, captions, strict=False))
    (folder / "long.csv").write_text(f"video,caption\n{rows}")
    return folder


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "are cut at" in record.getMessage()]


def test_each_step_says_how_many_captions_are_cut(world: World, packed: Path, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    config = PackConfig(sampler=Clip4ClipSampler(kind="clip4clip", num_frames=12), size=64)
    pack(packed / "long.csv", "csv", world.corpus / "videos", packed / "frames", config, workers=1)
    assert lines(caplog) == [
        f"{packed / 'long.csv'}: 1 of 3 captions are cut at 77 tokens (start and end included), 0 of them become equal "
        f"to another caption by it; no CLIP reads more, and a recipe may take fewer (data.max_words)"
    ]
    frames, teacher = FrameSet(packed / "frames"), teacher_release(world, "xclip")
    cut = f"{frames.path}: 3 of 3 captions are cut at 24 tokens (start and end included), 2 of them become equal"

    caplog.clear()
    labels = LabelJobConfig(tiers=["relevance"], storage="float32", batch=8, precision="fp32")
    assert LabelJob(teacher, frames, tmp_path / "labels", labels).begin() is None
    assert len(lines(caplog)) == 1 and lines(caplog)[0].startswith(cut)

    caplog.clear()
    path = world.recipe("long", "clip4clip", tmp_path, data={"train": str(packed / "frames")})
    prepare(read_recipe(path, [], Recipe))
    assert [line.startswith(cut) for line in lines(caplog)] == [True], "and none for the sets of which none is cut"

    caplog.clear()
    subject = Subject(release="r", release_id="r", model="xclip", frames="f", frames_id="f")
    bank = FrameSet(world.frames["train"])
    with torch.inference_mode():
        evaluate_model(subject, teacher.model, teacher.tokenizer, frames, "demo", dsl=False, bank=bank)
    assert [line.startswith(cut) for line in lines(caplog)] == [True]
