"""The stills of the demo: single pictures with names, on which the demo's small CLIP is pretrained.

A still looks like one frame of a shot: the same backgrounds, sizes and noise, and mostly the artefacts of a compressed
file. All emoji occur, also those of the split `unseen`: they are unseen in videos.
"""

import io
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from distill.data.building import ShardContent, build, claim, split
from distill.data.pictures import encode_jpeg
from distill.data.sampler import Clip4ClipSampler
from distill.data.sampling import SampledVideo
from distill.data.tokens import prune
from distill.data.videos import Caption
from distill.demo.corpus import BACKGROUNDS, Claim, describe, plan
from distill.demo.draw import NOISE, SIZE, add_noise, backdrop, paste
from distill.demo.emoji import EMOJI
from distill.log import progress
from distill.manifest import Manifest
from distill.packing.clips import Clip
from distill.packing.packing import frame_sample, seal_frames
from distill.workers import worker_pool

NAME_ONLY = 0.7  # of the captions
COMPRESSED = 0.75  # of the pictures
PER_SHARD = 5000  # stills


def render_stills(numbers: range, seed: int) -> Iterator[tuple[np.ndarray, str]]:
    """Yield a picture (uint8 [64, 64, 3]) and a caption for each number; every emoji occurs once before any twice."""
    for number in numbers:
        round_, place = divmod(number, len(EMOJI))
        rng = np.random.default_rng([seed, 2, number])
        emoji = EMOJI[np.random.default_rng([seed, 3, round_]).permutation(len(EMOJI))[place]]
        background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
        image = backdrop(background, rng)
        size, turned = rng.uniform(18, 50), rng.random() < 0.25  # an eighth of the shots spin; other tilts are slight
        room = max(3.0, (64 - size) / 2)
        x, y = 32 + rng.uniform(-room, room, size=2)
        paste(image, emoji.char, x, y, size, rng.uniform(-180, 180) if turned else rng.uniform(-8, 8))
        picture = add_noise(np.asarray(image, dtype=np.float32), NOISE, rng)
        if rng.random() < COMPRESSED:
            picture = _compressed(picture, int(rng.integers(60, 90)))
        yield picture, emoji.phrase if rng.random() < NAME_ONLY else describe(Claim(emoji, background=background))


def pack_stills(out: Path, count: int, seed: int) -> Manifest:
    """Draw and seal a frame set of stills: one frame a video, every video with one caption."""
    settings = {
        "sampler": Clip4ClipSampler(kind="clip4clip", num_frames=1).model_dump(mode="json"),
        "size": SIZE,
        "stills": count,
        "seed": seed,
    }
    claim(out, settings, command="tools/make_stills.py")
    jobs = list(split(count, PER_SHARD))
    with worker_pool(min(len(jobs), os.cpu_count() or 1)) as pool:
        running = [pool.submit(build, out, name, partial(_shard, name, rows, seed)) for name, rows in jobs]
        records = [future.result() for future in progress(running, "draw stills (shards)")]
    return seal_frames(out, settings, records)


def corpus_vocabulary() -> list[int]:
    """Return the ids of the tokens that spell every caption the corpus can have."""
    # Every motion, background and wording occurs in 1,000 clips; the names of all emoji are added.
    texts = [sentence.text for clip in plan(1000, seed=0) for sentence in clip.sentences]
    return prune([*texts, *(emoji.phrase for emoji in EMOJI)])


def _shard(name: str, rows: range, seed: int) -> ShardContent:
    samples = {}
    for number, (picture, caption) in enumerate(render_stills(rows, seed)):
        video = f"{name}-{number}"
        clip = Clip(video=video, captions=(Caption(video, caption),), source=f"{video}.png")
        samples[f"{name}{number:05d}"] = frame_sample(clip, SampledVideo([encode_jpeg(picture, SIZE)], [0.0], 1.0))
    return ShardContent(samples, {"skipped": [], "captions": len(rows), "frames": len(rows)})


def _compressed(picture: np.ndarray, quality: int) -> np.ndarray:
    """Return the picture after JPEG, whose halved colours and blocks resemble those of H.264."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))
