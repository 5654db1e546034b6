"""Captions and queries that a model cuts are counted in one line wherever they are packed, encoded or trained on."""

import logging
from pathlib import Path

import pytest
import torch
from conftest import World
from fastapi.testclient import TestClient
from labelling import teacher_release
from test_gallery import corpus  # noqa: F401 a fixture
from test_release import make, release

from distill.config import read_recipe
from distill.data.frames import FrameSet
from distill.data.sampler import Clip4ClipSampler
from distill.evaluation.measure import evaluate_model
from distill.evaluation.result import Subject
from distill.experiment import prepare
from distill.labelling.job import LabelJob, LabelJobConfig
from distill.packing.packing import PackConfig, pack
from distill.recipe import Recipe
from distill.release.release import load
from distill.retrieval import Gallery
from distill.serving.application import application
from tools import dump_soft_labels, index, search
from tools import gallery as gallery_tool

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
        f"to others by it; no CLIP reads more, and a recipe may take fewer (data.max_words)"
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


@pytest.fixture(scope="module")
def gallery(corpus, tmp_path_factory) -> Path:  # noqa: F811
    """A gallery of three clips with a caption each that a release of 16 tokens does not read to its end."""
    folder = tmp_path_factory.mktemp("searched")
    rows = "".join(f"{path.name},{LONG} {path.stem}\n" for path in sorted((corpus / "videos").iterdir()))
    (folder / "all.csv").write_text(f"video,caption\n{rows}")
    config = PackConfig(sampler=Clip4ClipSampler(kind="clip4clip", num_frames=4), size=32)
    pack(folder / "all.csv", "csv", corpus / "videos", folder / "frames", config, workers=1)
    release(folder / "release", *make())
    release(folder / "teacher", *make("xclip"))
    return folder


def test_indexing_searching_and_calibrating_say_how_many_queries_are_cut(gallery: Path, tmp_path: Path, capsys):
    made, frames, queries = str(gallery / "gallery"), str(gallery / "frames"), tmp_path / "queries.txt"
    queries.write_text(f"{LONG} left\n{LONG} right\na dog\n")
    at = "at 16 tokens (start and end included)"
    calls = {
        f"{frames}: 3 of 3 captions are cut {at}, 3": (
            index.main,
            [str(gallery / "release"), frames, "--out", made, "--captions"],
        ),
        f"{frames}: 3 of 3 captions are cut {at}, 3 of them become equal to others by it; labels": (
            dump_soft_labels.main,
            [str(gallery / "teacher"), frames, "--out", str(tmp_path / "labels"), "--plan"],
        ),
        f"QUERY: 1 of 1 queries are cut {at}, 0": (search.main, [made, LONG]),
        f"{queries}: 2 of 3 queries are cut {at}, 2": (search.main, [made, "--queries", str(queries), "--json"]),
        f"{frames}: 3 of 3 queries are cut {at}, 3": (gallery_tool.main, [made, "calibrate", frames]),
    }
    for line, (main, arguments) in calls.items():
        main(arguments)
        said = [line for line in capsys.readouterr().err.splitlines() if "are cut at" in line]
        assert len(said) == 1 and line in said[0], said
    search.main([made, "a dog"])
    search.main([made, "--like", "red"])
    assert "are cut at" not in capsys.readouterr().err


def test_the_server_says_of_each_query_whether_it_was_cut(gallery: Path, tmp_path: Path):
    index.main([str(gallery / "release"), str(gallery / "frames"), "--out", str(tmp_path / "gallery")])
    app = application(Gallery.open(tmp_path / "gallery", load(gallery / "release")))
    exact = " ".join(["a"] * 14)  # and start and end: as many as it reads
    with TestClient(app) as client:
        asked = {"queries": [LONG, "a dog", exact, f"{exact} a"], "k": 1}
        answers = client.post("/search", json=asked).json()["results"]
    assert [answer["cut"] for answer in answers] == [True, False, False, True]
