"""The whole arrow on real video files, each step a command in its own process: what is searched for is found."""

import json
from pathlib import Path

import pytest
from conftest import ROOT, World, python

TOWERS = ROOT / "recipes" / "demo" / "clip"


@pytest.fixture(scope="module")
def student(world: World, tmp_path_factory) -> Path:
    """A student distilled from a teacher that was trained on the same clips, both from the demo's own CLIP."""
    out = tmp_path_factory.mktemp("arrow")
    changes = (f"model.clip.model={TOWERS}", "model.clip.freeze_vision=5", "optim.head_lr=1.0e-3", "data.batch_size=16")
    python("distill/run.py", world.recipe("teacher", "xclip", out, train={"epochs": 10, "validate_every": 5}), *changes)
    python("tools/dump_soft_labels.py", out / "teacher" / "release", world.frames["train"], "--out", out / "labels")
    train = {"epochs": 10, "validate_every": 5}
    recipe = world.recipe("student", "teachclip", out, labels=[str(out / "labels")], train=train)
    python("distill/run.py", recipe, *changes)
    return out / "student" / "release"


def test_a_query_finds_its_video_and_the_seconds_that_show_it(world: World, student: Path, tmp_path: Path):
    gallery = tmp_path / "gallery"
    python("tools/index.py", student, world.frames["test"], "--out", gallery, "--videos", world.corpus / "videos")
    corpus = json.loads((world.corpus / "MSRVTT_data.json").read_text())
    truth = json.loads((world.corpus / "relevance.json").read_text())["content"]
    tests = {video["video_id"] for video in corpus["videos"] if video["split"] == "test"}
    queries = [row for row in corpus["sentences"] if row["video_id"] in tests]
    by_video = {row["video_id"]: row["caption"] for row in queries}
    found = shown = 0
    for video, caption in list(by_video.items())[:6]:
        hits = json.loads(python("tools/search.py", gallery, caption, "--k", "5", "--json").stdout)
        assert len(hits) == 5 and all(Path(hit["source"]).is_file() for hit in hits)
        if video in [hit["video"] for hit in hits]:
            found += 1
            start, end = next(hit["seconds"] for hit in hits if hit["video"] == video)
            shown += any(start <= second < end for second in truth[video])
    assert found >= 4, f"{found} of 6 queries found their video among the first 5 of {len(tests)}"
    assert shown == found
