"""The whole arrow on real video files, each step a command in its own process: what is searched for is found."""

import json
from pathlib import Path

import pytest
from conftest import ROOT, World, python
from safetensors.torch import load_file

import distill.release
from distill.data.frames import FrameSet
from distill.data.labels import StoredLabels
from distill.retrieval.gallery import Gallery

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


@pytest.mark.slow
def test_queries_find_their_videos_and_the_seconds_that_show_them(world: World, student: Path, tmp_path: Path):
    gallery = tmp_path / "gallery"
    python("tools/index.py", student, world.frames["test"], "--out", gallery, "--videos", world.corpus / "videos")
    opened = Gallery.open(gallery, distill.release.load(student))
    truth = json.loads((world.corpus / "relevance.json").read_text())["content"]
    queries = [
        (caption.text, video.id) for video in FrameSet(world.frames["test"]).videos for caption in video.captions
    ]
    answers = opened.search([text for text, _ in queries], k=5)
    found = [
        next(hit for hit in hits if hit.video == video)
        for hits, (_, video) in zip(answers, queries, strict=True)
        if video in [hit.video for hit in hits]
    ]
    assert len(found) > 3 * len(queries) * 5 / len(opened), (
        f"{len(found)} of {len(queries)}: not thrice what chance finds"
    )
    shown = [any(hit.seconds[0] <= second < hit.seconds[1] for second in truth[hit.video]) for hit in found]
    assert sum(shown) > 0.8 * len(shown)
    assert all(Path(hit.source).is_file() for hit in found)

    printed = json.loads(python("tools/search.py", gallery, queries[0][0], "--k", "5", "--json").stdout)
    assert [hit["video"] for hit in printed] == [hit.video for hit in answers[0]]


@pytest.mark.slow
def test_the_report_shows_the_teacher_beside_the_student(student: Path, world: World):
    run = student.parent
    page, teacher = (run / "report.html").read_text(), json.loads((run.parent / "teacher" / "test.json").read_text())
    assert "teacher (teacher)" in page, "the teacher's run has this name, and stands beside the student's"
    for side in ("t2v", "v2t"):
        assert f"{teacher[side]['R@1']:.1f} <small>" in page
    kept = load_file(run / "test_answers.safetensors")
    assert page.count('class="weights"') == len(kept["taught"]) == 4
    frames, labels = FrameSet(world.frames["train"]), StoredLabels(run.parent / "labels")
    release = distill.release.load(student)
    for row, (video, caption) in enumerate(kept["taught"].tolist()):
        relevance = labels.tensor(frames.videos[video].key, "relevance", caption)
        assert kept["taught_teacher"][0, row].tolist() == pytest.approx(relevance.softmax(0).tolist(), abs=1e-5)
        seen = release.encode_video(frames.pixels(video))
        weights = (seen.relevance[0] / release.pool_temperature).softmax(0)
        assert kept["taught_student"][row].tolist() == pytest.approx(weights.tolist(), abs=1e-4)
    assert kept["pooling"].sum(1).tolist() == pytest.approx([1.0] * len(kept["pooling"]), abs=1e-4)
