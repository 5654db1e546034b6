"""Sampling a video: packing, indexing and `Release.encode_video` show a model the same pixels of it."""

import io
import tarfile

import numpy as np
import pytest
import torch
from conftest import frames_at
from PIL import Image
from test_gallery import two_stage_release
from test_release import FRAMES, make, release

from distill.data import sampling
from distill.data.frames import FrameSet
from distill.data.sampler import Clip4ClipSampler, PromptSwitchSampler
from distill.data.sampling import attempt, sample_one, sample_video
from distill.data.video import write_video
from distill.errors import VideoError
from distill.packing.downloads import open_video
from distill.packing.packing import PackConfig, pack
from distill.release.release import load
from distill.retrieval import Gallery
from distill.retrieval.indexing import build_gallery

SIZE, FPS = FRAMES["size"], 4
NUMBERED = PromptSwitchSampler(kind="prompt_switch", num_frames=6, prompts=3)
MODELS = {
    "teachclip": None,  # one stage
    "eercf": {"kind": "eercf", "frames": 4},
    "glscl": {"kind": "glscl", "recall": "coarse"},
}


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Three videos of noise with a tint each: nearly three times the model's size, and nothing that JPEG keeps."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for tint, name in enumerate(("one", "two", "three")):
        frames = rng.integers(0, 200, (5 * FPS, 24, 32, 3), np.uint8).repeat(4, axis=1).repeat(4, axis=2)
        frames[..., tint] += 55
        write_video(folder / "videos" / f"{name}.mp4", frames, fps=FPS)
    (folder / "all.csv").write_text("video,caption\n" + "".join(f"{name}.mp4,x\n" for name in ("one", "two", "three")))
    return folder


def packed(folder, out, sampler, size=SIZE):
    pack(folder / "all.csv", "csv", folder / "videos", out, PackConfig(sampler=sampler, size=size), workers=1)
    return FrameSet(out)


def fitted(frame):
    """CLIP's resize and centre crop, written out for frames of 128 x 96 pixels."""
    return Image.fromarray(frame).resize((43, 32), Image.Resampling.BICUBIC).crop((5, 0, 37, 32))


def seen_by(loaded, video, monkeypatch):
    """The pixels and the mask that the model is given for a video."""
    given = []
    encode = loaded.encode_frames
    with monkeypatch.context() as patch:
        patch.setattr(loaded, "encode_frames", lambda *frames: given.append(frames) or encode(*frames))
        loaded.encode_video(video)
    return given[0]


@pytest.mark.parametrize("kind", MODELS)
def test_a_file_finds_its_own_row(kind, noise, tmp_path):
    if kind == "teachclip":
        release(tmp_path / "release", *make(kind))
        loaded = load(tmp_path / "release")
    else:
        loaded = two_stage_release(tmp_path / "release", **MODELS[kind])
    build_gallery(loaded, noise / "videos", tmp_path / "gallery")
    gallery = Gallery.open(tmp_path / "gallery", loaded)
    assert gallery.reranks == (kind != "teachclip")
    for name in ("one", "two", "three"):
        own, other, _ = gallery.like(noise / "videos" / f"{name}.mp4", 3)
        assert own.video == name and own.score == pytest.approx(1, abs=1e-6)
        assert other.score < 1 - 1e-4, "another video is told apart"
        with torch.inference_mode():
            vector = loaded.model.index_vectors(loaded.encode_video(noise / "videos" / f"{name}.mp4"))
        stored = torch.from_numpy(gallery.table.vectors(np.array([gallery.row(name)])))
        assert torch.allclose(vector, stored, rtol=0, atol=1e-6)
        frames, _ = frames_at(noise / "videos" / f"{name}.mp4", [0, 4, 8, 16])
        with torch.inference_mode():
            plain = loaded.model.index_vectors(loaded.encode_video(np.stack([np.asarray(fitted(f)) for f in frames])))
        assert not torch.allclose(plain, stored, rtol=0, atol=1e-5), "without the JPEG the vector is another"


def test_packed_frames_are_the_pixels_that_encode_video_shows_the_model(noise, tmp_path, monkeypatch):
    release(tmp_path / "release", *make())
    loaded = load(tmp_path / "release")
    frames = packed(noise, tmp_path / "frames", loaded.config.frames.sampler)
    for number, video in enumerate(frames.videos):
        path = noise / "videos" / video.source
        pixels, real = seen_by(loaded, path, monkeypatch)
        assert pixels[0, real[0]].numpy().tobytes() == frames.pixels(number).tobytes()
        uncut = np.stack(frames_at(path, [round(second * FPS) for second in video.timestamps])[0])
        assert uncut.shape[1:] == (96, 128, 3)
        assert torch.equal(seen_by(loaded, uncut, monkeypatch)[0], pixels), "pictures that are cut pass the same JPEG"


def numbered(path, count=24):
    """A video whose frames tell their number by their red."""
    frames = np.zeros((count, 48, 64, 3), np.uint8)
    frames[..., 0] = 10 * np.arange(count, dtype=np.uint8)[:, None, None]
    write_video(path, frames, fps=FPS)


def numbers(sampled):
    """The frame numbers of what was sampled, by its pixels and by its seconds."""
    by_pixels = [round(float(frame[0].mean()) / 10) for frame in sampled.pixels()]
    assert by_pixels == [round(second * FPS) for second in sampled.timestamps]
    return by_pixels


def test_spans_come_from_one_pass_with_repeats_and_in_the_samplers_order(tmp_path, monkeypatch):
    numbered(tmp_path / "a.mp4")
    passes = []
    decode = sampling.decode
    monkeypatch.setattr(sampling, "decode", lambda *given: passes.append(given) or decode(*given))
    spans = [None, (2.0, 4.0), (5.0, 5.75), (0.0, 6.0)]
    found = sample_video(tmp_path / "a.mp4", spans, NUMBERED, SIZE)
    assert len(passes) == 1
    wanted = [NUMBERED.indices(24, 4.0, *(span or ())) for span in spans]
    assert [numbers(one) for one in found] == wanted
    assert wanted[0] != sorted(wanted[0]) and len(set(wanted[2])) < len(wanted[2]), "out of order, and repeated"
    assert found[0] == found[3], "a span of all is the whole file"
    for one, span in zip(found, spans, strict=True):
        assert sample_video(str(tmp_path / "a.mp4"), [span], NUMBERED, SIZE) == [one]
        assert one.duration == pytest.approx(6.0)


def test_a_member_of_a_tar_is_sampled_like_the_file(tmp_path):
    numbered(tmp_path / "a.mp4")
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        tar.add(tmp_path / "a.mp4", "clips/a.mp4")
    spans = [None, (1.0, 3.0)]
    with open_video(tmp_path, "00000.tar/clips/a.mp4") as member:
        inside = sample_video(member, spans, Clip4ClipSampler(kind="clip4clip"), SIZE)
    assert inside == sample_video(tmp_path / "a.mp4", spans, Clip4ClipSampler(kind="clip4clip"), SIZE)


def test_frames_are_stored_as_jpegs_of_quality_95_with_full_colour(noise):
    (sampled,) = sample_video(noise / "videos" / "one.mp4", [None], Clip4ClipSampler(kind="clip4clip"), SIZE)
    (frame,), _ = frames_at(noise / "videos" / "one.mp4", [0])
    buffer = io.BytesIO()
    fitted(frame).save(buffer, "JPEG", quality=95, subsampling="4:4:4")
    assert sampled.jpegs[0] == buffer.getvalue()


def test_a_span_without_frames_is_refused_and_an_attempt_returns_the_reason(tmp_path):
    numbered(tmp_path / "a.mp4")
    asked = tmp_path / "a.mp4", [None, (90.0, 95.0)], NUMBERED, SIZE
    whole, empty = sample_video(*asked)
    assert isinstance(empty, VideoError)
    assert str(empty) == "no frame between 90 and 95 s; its frames are shown from 0.000 to 6.000 s"
    assert attempt(sample_one, asked[0], (90.0, 95.0), NUMBERED, SIZE).args == empty.args
    assert attempt(sample_one, asked[0], None, NUMBERED, SIZE) == whole, "an empty span costs only itself"
