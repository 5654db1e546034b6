"""Frame sets and files of drawn pictures, of any size, for the benches of training and of one device.

The time to decode a JPEG depends on its bytes, so the pictures have about the detail of photographs: each is a window
on a texture whose amplitudes fall with the frequency, and the window moves from frame to frame. Everything follows from
the seed.
"""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from distill.data.building import ShardContent, build, claim, split
from distill.data.frames import FrameSet
from distill.data.pictures import encode_jpeg
from distill.data.sampler import Clip4ClipSampler
from distill.data.sampling import SampledVideo
from distill.data.video import write_video
from distill.data.videos import Caption
from distill.log import progress
from distill.packing.clips import Clip
from distill.packing.packing import frame_sample, seal_frames

TEXTURES = 8
PER_SHARD = 32  # videos
DETAIL = 1.2  # amplitude = frequency ** -DETAIL
CONTRAST = 50.0  # standard deviation of the pixels
WORDS = (
    "a man woman dog child is are runs talks plays sings cooks in on with the red old big small car kitchen street "
    "field guitar ball game food water news song and then while two people"
)


def draw_frames(out: Path, *, videos: int, captions: int, num_frames: int, size: int, seed: int = 0) -> FrameSet:
    """Draw, seal and open a frame set of `videos` videos with `captions` distinct captions of eleven words each."""
    sampler = Clip4ClipSampler(kind="clip4clip", num_frames=num_frames).model_dump(mode="json")
    settings = {"sampler": sampler, "size": size, "drawn": videos, "captions": captions, "seed": seed}
    claim(out, settings, command="tools/bench.py")
    rng = np.random.default_rng(seed)
    textures = [_texture(2 * size, rng) for _ in range(TEXTURES)]

    def shard(name: str, rows: range) -> ShardContent:
        samples = {}
        for row in rows:
            texts = tuple(Caption(f"{row}#{n}", _caption(row, n, rng)) for n in range(captions))
            clip = Clip(video=f"drawn{row}", captions=texts, source=f"drawn{row}.png")
            pictures = _windows(textures[row % TEXTURES], num_frames, size, rng)
            jpegs, timestamps = [encode_jpeg(picture, size) for picture in pictures], [*map(float, range(num_frames))]
            samples[f"{name}{row:05d}"] = frame_sample(clip, SampledVideo(jpegs, timestamps, float(num_frames)))
        report = {"skipped": [], "captions": captions * len(rows), "frames": num_frames * len(rows)}
        return ShardContent(samples, report)

    records = [
        build(out, name, lambda name=name, rows=rows: shard(name, rows))
        for name, rows in progress(list(split(videos, PER_SHARD)), f"draw {videos} videos (shards)")
    ]
    seal_frames(out, settings, records)
    return FrameSet(out)


def draw_videos(out: Path, *, videos: int, seconds: int, rate: int, size: tuple[int, int], seed: int = 0) -> None:
    """Draw files of so many frames a second and of this width and height: the same windows, which move more slowly."""
    rng, (width, height) = np.random.default_rng(seed), size
    textures = [_texture(2 * width, rng) for _ in range(TEXTURES)]
    out.mkdir(parents=True)
    for row in progress(range(videos), f"draw {videos} files (videos)", videos):
        pictures = _windows(textures[row % TEXTURES], seconds, width, rng)
        shown = np.stack([picture[:height] for picture in pictures]).repeat(rate, axis=0)
        write_video(out / f"drawn{row}.mp4", shown, rate)


def _texture(size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "row column 3"]:
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    frequency[0, 0] = np.inf
    grey = rng.standard_normal((size, size, 1))
    noise = grey + 0.3 * rng.standard_normal((size, size, 3))  # colours differ less than brightness
    drawn = np.fft.ifft2(np.fft.fft2(noise, axes=(0, 1)) / frequency[..., None] ** DETAIL, axes=(0, 1)).real
    return np.clip(128 + CONTRAST * drawn / drawn.std(), 0, 255).astype(np.uint8)


def _windows(
    texture: UInt8[np.ndarray, "row column 3"], num_frames: int, size: int, rng: np.random.Generator
) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    (row, column), (down, right) = rng.integers(0, size, 2), rng.integers(-5, 6, 2)
    corners = [np.clip((row + n * down, column + n * right), 0, size) for n in range(num_frames)]
    return [texture[y : y + size, x : x + size] for y, x in corners]


def _caption(video: int, number: int, rng: np.random.Generator) -> str:
    return " ".join([*rng.choice(WORDS.split(), 9), str(video), str(number)])
