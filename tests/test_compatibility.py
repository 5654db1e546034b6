"""Artefacts of commit 5368ee6 open with the present version, keep their ids and give the answers that they gave then.

tests/artefacts/5368ee6/README.md says how they were made. What is stored or hashed must be equal; what a model computes
may differ by `CLOSE`, because kernels differ between processors.
"""

import json
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch

from distill.data.building import CLAIM, finished
from distill.data.frames import FrameSet
from distill.data.labelset import LabelSet
from distill.errors import ExpectedError
from distill.labelling.job import LabelJob, LabelJobConfig
from distill.labelling.sealing import merge_labels
from distill.labelling.teacher import TeacherRelease
from distill.manifest import NAME, Manifest
from distill.release.release import load
from distill.retrieval import Gallery, generation, upkeep
from distill.training import checkpoint

FOLDER = Path(__file__).parent / "artefacts" / "5368ee6"
EXPECTED = json.loads((FOLDER / "expected.json").read_bytes())
QUERIES = ["a red square", "something blue moves"]
GALLERIES = {"gallery": "teachclip", "tokens": "eercf"}
CLOSE = 1e-5  # of numbers around 1; the closest two scores of a ranking are 8e-5 apart


def close(found, expected):
    """Compares nested answers: numbers to `CLOSE`, everything else exactly."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        return all(close(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(close(*pair) for pair in zip(found, expected, strict=True))
    return found == (pytest.approx(expected, abs=CLOSE) if isinstance(expected, float) else expected)


@pytest.mark.parametrize("name", EXPECTED["ids"])
def test_a_manifest_keeps_its_id(name):
    data = (FOLDER / name / NAME).read_bytes()
    assert Manifest.model_validate_json(data).id == EXPECTED["ids"][name]


def test_a_frame_set_holds_the_same_videos_and_frames():
    frames = FrameSet(FOLDER / "frames")
    assert frames.manifest.id == EXPECTED["ids"]["frames"]
    found = json.loads(json.dumps([asdict(video) for video in frames.videos]))
    assert all(said.pop("source") is None for video in found for said in video["captions"]), "it knew no sources"
    assert found == EXPECTED["videos"]
    for number, means in enumerate(EXPECTED["pixel_means"]):
        assert frames.pixels(number).mean((1, 2, 3)) == pytest.approx(means, abs=0.5)  # decoders of JPEG may round
    assert finished(FOLDER / "frames", "00000").tar == frames.manifest.files["00000.tar"]


@pytest.mark.parametrize("tier", ["features", "topk"])
def test_a_label_set_says_the_same(tier):
    frames = FrameSet(FOLDER / "frames")
    labels = LabelSet(FOLDER / "labels", frames, coarse=tier)
    rows = labels.batch([(video, caption) for video in range(len(frames)) for caption in range(2)])
    found = {name: [list(value.shape), sha256(value.numpy().tobytes()).hexdigest()] for name, value in rows.items()}
    assert found == EXPECTED["labels"][tier]


def test_the_parts_of_a_label_job_are_joined_into_the_same_set(tmp_path):
    copytree(FOLDER / "labels", tmp_path / "part")
    (tmp_path / "part" / NAME).unlink()
    joined = merge_labels([tmp_path / "part"], tmp_path / "joined")
    assert without_softness(joined).id == EXPECTED["ids"]["labels"]


def without_softness(manifest: Manifest) -> Manifest:
    """The manifest of a label set as it was sealed before sets knew which temperature suits them."""
    config = dict(manifest.config)
    assert manifest.version == 2 and config.pop("softness").keys() == {"fine", "coarse"}
    return manifest.model_copy(update={"version": 1, "config": config})


def test_a_label_job_claims_and_seals_what_it_did(tmp_path):
    """Every key and value that the claim and the manifest record; and the labels, but for rounding."""
    old = LabelSet(FOLDER / "labels", frames := FrameSet(FOLDER / "frames"), coarse="topk")
    config = LabelJobConfig(
        tiers=["features", "topk", "relevance"], storage="float16", batch=32, precision="fp32", workers=1, top=3
    )
    job = LabelJob(TeacherRelease.of(load(FOLDER / "xclip")), frames, tmp_path, config)
    assert job.begin() is None
    assert (tmp_path / CLAIM).read_bytes() == (FOLDER / "labels" / CLAIM).read_bytes()
    manifest = job.label()
    assert without_softness(manifest).model_dump(exclude={"files"}) == old.manifest.model_dump(exclude={"files"})
    assert manifest.files["interaction.safetensors"] == old.manifest.files["interaction.safetensors"]
    new, pairs = LabelSet(tmp_path, frames, coarse="topk"), [(video, 1) for video in range(len(frames))]
    found, expected = new.batch(pairs), old.batch(pairs)
    assert list(found) == list(expected) and torch.equal(found["shortlist"], expected["shortlist"])
    for name in ("relevance", "shortlist_best", "shortlist_tail"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=CLOSE)


@pytest.mark.parametrize("kind", EXPECTED["releases"])
def test_a_release_gives_the_same_features_and_scores(kind):
    loaded = load(FOLDER / kind)
    assert loaded.manifest.id == EXPECTED["ids"][kind]
    frames = np.arange(4 * 32 * 32 * 3, dtype=np.uint32).reshape(4, 32, 32, 3) * 7 % 256
    with torch.inference_mode():
        text, video = loaded.encode_text(QUERIES), loaded.model.encode_video(*padded(frames.astype(np.uint8)))
        found = {
            "ids": loaded.tokenizer(QUERIES).tolist(),
            "sentence": text.sentence.tolist(),
            "vector": video.vector.tolist(),
            "similarity": loaded.model.similarity(text, video).tolist(),
        }
    assert close(found, EXPECTED["releases"][kind])


def padded(frames):
    """One video of as many frames as the releases take, and its mask."""
    return torch.from_numpy(frames.transpose(0, 3, 1, 2).copy())[None], torch.ones(1, len(frames), dtype=torch.bool)


@pytest.mark.parametrize("name", GALLERIES)
def test_a_gallery_gives_the_same_hits(name):
    gallery = Gallery.open(FOLDER / name, load(FOLDER / GALLERIES[name]))
    found = {
        "search": [[asdict(hit) for hit in hits] for hits in gallery.search(QUERIES, 3)],
        "like": [asdict(hit) for hit in gallery.like("blue", 2)],
        "captions": [asdict(hit) for hit in gallery.search_captions("red", 3)],
    }
    # Without frames beside its vectors a gallery has the seconds of then; tokens hold frames, which the query weighs.
    weighed_by = {"gallery": "video", "tokens": "query"}[name]
    expected = json.loads(json.dumps(EXPECTED["galleries"][name]))
    for hits, answers, by in (
        (found["like"], expected["like"], "video"),
        *((*pair, weighed_by) for pair in zip(found["search"], expected["search"], strict=True)),
    ):
        assert [[hit.pop(new) for new in ("fits", "weighed_by", "others")] for hit in hits] == [[None, by, ()]] * len(
            hits
        )
        for hit in (*hits, *answers) if by == "query" else ():
            del hit["seconds"], hit["weights"]
    assert close(json.loads(json.dumps(found)), expected)


@pytest.mark.parametrize("name", GALLERIES)
def test_a_gallery_is_changed_into_the_same_generations(name, tmp_path):
    copytree(FOLDER / name, tmp_path / "copy")
    ids = [upkeep.delete(tmp_path / "copy", ["white"]).id, upkeep.compact(tmp_path / "copy").id]
    assert ids == EXPECTED["changed"][name]
    assert generation.read(tmp_path / "copy").id == ids[-1]
    upkeep.verify(tmp_path / "copy")


def test_a_checkpoint_whose_batches_had_another_order_is_refused_in_one_line():
    with pytest.raises(
        ExpectedError, match=r"order of batches \(plan 1, here 2\).*finish it with that version, or delete"
    ):
        checkpoint.latest(FOLDER / "checkpoints")
