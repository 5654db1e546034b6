"""tools/labels.py: what it says of label sets is what NumPy says of them, and it finds what is wrong."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import World, tree_bytes
from labelling import label_job, pack_shards, teacher_release, write_labels

import tools.labels
from distill.data.frames import FrameSet
from distill.data.labels import LabelSoftness, StoredLabels
from distill.data.labelset import LabelSet
from distill.errors import ArtefactError, ExpectedError
from distill.labelling import sealing
from distill.labelling.audit import agreement, check_rows, compare, statistics
from distill.labelling.recompute import recompute

ALL = ("relevance", "topk", "features")


@pytest.fixture(scope="module")
def shards(world: World, tmp_path_factory) -> Path:
    """The training frames in shards of seven."""
    return pack_shards(world, tmp_path_factory.mktemp("shards") / "frames", 7)


@pytest.fixture(scope="module")
def sets(world: World, shards: Path, tmp_path_factory) -> dict[str, Path]:
    """All tiers of two teachers, and the first one's features in half precision."""
    out = tmp_path_factory.mktemp("labels")
    return {
        "xclip": write_labels(world, "xclip", out / "xclip", frames=shards, tiers=ALL, top=5),
        "half": write_labels(world, "xclip", out / "half", "float16", frames=shards),
        "ts2net": write_labels(world, "ts2net", out / "ts2net", frames=shards),
    }


def rows_of(path: Path, shards: Path) -> list[np.ndarray]:
    """Relevance of every caption over the real frames of its video."""
    frames = FrameSet(shards)
    labels = LabelSet(path, frames)
    return [
        labels.relevance(video, caption)[: len(about.timestamps)].double().numpy()
        for video, about in enumerate(frames.videos)
        for caption in range(len(about.captions))
    ]


def show(capsys, *arguments: str | Path) -> str:
    tools.labels.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def test_statistics_equal_a_numpy_oracle(sets: dict[str, Path], shards: Path, capsys):
    found = statistics(StoredLabels(sets["xclip"]))
    rows, videos = rows_of(sets["xclip"], shards), FrameSet(shards).videos
    weights = [np.exp(row) / np.exp(row).sum() for row in rows]
    entropies = [-(weight * np.log(weight)).sum() for weight in weights]
    relative = [entropy / math.log(len(row)) for entropy, row in zip(entropies, rows, strict=True) if len(row) > 1]
    assert found.entropy == pytest.approx(np.mean(entropies)) and found.rows == len(rows)
    assert found.relative_entropy == pytest.approx(np.mean(relative))
    assert sum(found.histogram) == len(relative)
    assert found.histogram[-1] == sum(value >= 0.9 for value in relative)
    counts = [len(video.captions) for video in videos]
    assert (found.captions.least, found.captions.mean, found.captions.most) == (
        *(min(counts), pytest.approx(np.mean(counts)), max(counts)),
    )
    assert found.short == sum(len(video.timestamps) < 12 for video in videos)
    dim, words, captions = 32, 24, len(rows)
    assert found.bytes["relevance"] == captions * 12 * 4
    assert found.bytes["topk"] == captions * (6 * 8 + 8)
    assert found.bytes["features"] == 4 * (captions * (dim + words * dim) + len(videos) * (dim + 12 * dim))
    said = json.loads(show(capsys, "stats", sets["xclip"], "--json"))
    assert said["agreement"] is None and said["sets"][0]["entropy"] == found.entropy
    assert f"{found.relative_entropy:.4f}" in show(capsys, "stats", sets["xclip"])


def test_agreement_of_two_teachers_equals_a_numpy_oracle(sets: dict[str, Path], shards: Path, capsys):
    one, other = rows_of(sets["xclip"], shards), rows_of(sets["ts2net"], shards)
    found = agreement(StoredLabels(sets["xclip"]), StoredLabels(sets["ts2net"]))
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(one, other, strict=True) if len(a) > 1]
    assert found.correlation == pytest.approx(np.mean(correlations))
    assert found.same_best == np.mean([a.argmax() == b.argmax() for a, b in zip(one, other, strict=True)])
    printed = show(capsys, "stats", sets["xclip"], sets["ts2net"])
    assert f"mean correlation {found.correlation:.4f}" in printed
    same = agreement(StoredLabels(sets["xclip"]), StoredLabels(sets["half"]))
    assert same.correlation == pytest.approx(1) and same.same_best == 1


def test_differences_equal_a_numpy_oracle(sets: dict[str, Path], shards: Path, capsys):
    said = json.loads(show(capsys, "diff", sets["xclip"], sets["ts2net"], "--json"))
    off = [abs(a - b) for a, b in zip(rows_of(sets["xclip"], shards), rows_of(sets["ts2net"], shards), strict=True)]
    assert said["largest"] == pytest.approx(max(row.max() for row in off))
    assert said["mean"] == pytest.approx(np.concatenate(off).mean())
    captions = [(video.id, caption.id) for video in FrameSet(shards).videos for caption in video.captions]
    assert (said["worst_video"], said["worst_caption"]) == captions[int(np.argmax([row.max() for row in off]))]
    assert -1 <= said["coarse"]["correlation"] < 0.9 and said["coarse"]["rows"] == 8 * len(FrameSet(shards))
    half = compare(StoredLabels(sets["xclip"]), StoredLabels(sets["half"]), 0)
    assert half.largest == half.mean == 0  # relevance is fp32 in any storage
    assert half.coarse is not None and 1 - 1e-4 < half.coarse.correlation < 1


def test_sets_of_other_frames_are_not_compared(world: World, sets: dict[str, Path], tmp_path: Path):
    other = write_labels(world, "xclip", tmp_path / "other", tiers=("relevance",))
    for both in (agreement, lambda one, two: compare(one, two, 0)):
        with pytest.raises(ArtefactError, match="only labels of the same frame set"):
            both(StoredLabels(sets["xclip"]), StoredLabels(other))


@pytest.mark.parametrize("name", ["xclip", "half", "ts2net"])
def test_the_teacher_still_says_so(world: World, sets: dict[str, Path], shards: Path, name: str):
    stored = StoredLabels(sets[name])
    storage, tiers = stored.manifest.config["storage"], stored.tiers
    release = teacher_release(world, stored.manifest.config["interaction"]["kind"])
    found = recompute(stored, release, FrameSet(shards), rows=6, seed=1)
    assert {"relevance", "sentence", "frames"} <= found.keys() and ("topk" in tiers) == ("shortlist_scores" in found)
    assert found["relevance"].largest <= 1e-5
    if storage == "float16":
        assert 0 < found["sentence"].largest <= 2**-10 * found["sentence"].scale
    with pytest.raises(ArtefactError, match=f"was made by teacher {release.id}, but the one given is another"):
        recompute(stored, replace(release, id="another"), FrameSet(shards), rows=6, seed=1)
    with torch.no_grad():
        release.model.clip.visual.ln_post.weight.mul_(1 + torch.linspace(0, 0.3, 64))  # as if it had been trained on
    with pytest.raises(ArtefactError, match="more than rounding explains"):
        recompute(stored, release, FrameSet(shards), rows=6, seed=1)


def test_verify_asks_a_release(world: World, teacher: Path, shards: Path, tmp_path: Path, capsys):
    import tools.dump_soft_labels

    labels = tmp_path / "labels"
    tools.dump_soft_labels.main([str(teacher), str(shards), "--out", str(labels)])
    capsys.readouterr()
    before = tree_bytes(labels)
    asked = ("verify", labels, "--teacher", teacher, "--frames", shards, "--rows", "3")
    said = json.loads(show(capsys, *asked, "--json"))
    assert said["rows"] == sum(len(video.captions) for video in FrameSet(shards).videos)
    assert said["recomputed"]["relevance"]["largest"] <= 1e-5
    assert "largest difference" in show(capsys, *asked)
    assert tree_bytes(labels) == before
    with pytest.raises(ArtefactError, match="was made from"):
        show(capsys, "verify", labels, "--teacher", teacher, "--frames", world.frames["val"])
    with pytest.raises(ExpectedError, match="both --teacher and --frames"):
        show(capsys, "verify", labels, "--teacher", teacher)


def test_verify_finds_a_flipped_byte_and_a_dropped_row(
    world: World, shards: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    labels = write_labels(world, "xclip", tmp_path / "labels", frames=shards)
    tar = labels / "00001.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    with pytest.raises(ArtefactError, match=r"00001\.tar: sha256"):
        show(capsys, "verify", labels)
    job = label_job(world, "xclip", tmp_path / "thin", frames=shards)
    job.rows = lambda *given, rows=job.rows: {k: v[:-1] if k == "relevance" else v for k, v in rows(*given).items()}
    assert job.begin() is None
    with pytest.raises(ArtefactError, match=r"'relevance' of sample .* has no row"):
        job.label()
    monkeypatch.setattr(sealing, "measured", lambda stored: LabelSoftness())
    assert job.label() is not None  # sealed, but with a row less for every video
    with pytest.raises(ArtefactError, match=r"relevance of sample \d+ is"):
        check_rows(StoredLabels(tmp_path / "thin"))


def test_the_commands_explain_themselves(capsys):
    for command in ([], ["verify"], ["stats"], ["diff"], ["merge"]):
        with pytest.raises(SystemExit) as end:
            tools.labels.main([*command, "--help"])
        assert end.value.code == 0
    assert "hosts that share no folder" in capsys.readouterr().out
