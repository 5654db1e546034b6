"""Two columns of the demo's table: the frame weight on relevant frames, and the milliseconds of a query."""

import json
import statistics
import time
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from distill.data.frames import FrameSet
from distill.evaluation.evaluate import encode_texts, encode_videos
from distill.model.features import TextFeatures, VideoFeatures
from distill.release.release import Release

QUERIES = 50  # timed one by one


def measure_release(release: Release, frames: FrameSet, truth: Path) -> dict[str, float]:
    """Return `mass` (`relevance_mass`) and `ms` (`query_ms`) of a release on a frame set of the demo.

    `truth` is the corpus's `relevance.json`.
    """
    texts = [caption.text for video in frames.videos for caption in video.captions]
    with torch.inference_mode():
        video = encode_videos(release.model, frames)
        text = encode_texts(release.model, texts[:QUERIES], release.tokenizer)
        return {"mass": relevance_mass(release, frames, video, truth), "ms": query_ms(release, text, video)}


def relevance_mass(release: Release, frames: FrameSet, video: VideoFeatures, truth: Path) -> float:
    """Return the percent of the frame weights on frames that are relevant to the caption, the mean over all captions.

    A model that averages frames weights all alike.
    """
    relevant = json.loads(truth.read_text())["captions"]
    if video.relevance is None or release.pool_temperature is None:
        weights = torch.full((len(frames), release.num_frames), 1 / release.num_frames)
    else:
        weights = (video.relevance.float() / release.pool_temperature).softmax(-1)
    shares = [
        float(weights[row] @ _at(relevant[about.id][caption.id], about.timestamps, release.num_frames))
        for row, about in enumerate(frames.videos)
        for caption in about.captions
    ]
    return 100 * statistics.fmean(shares)


def query_ms(release: Release, text: TextFeatures, video: VideoFeatures) -> float:
    """Return the median milliseconds to score one encoded query with all videos and take the ten best."""
    times = []
    for query in range(-3, len(text)):  # the first three warm up
        one = text[slice(max(query, 0), max(query, 0) + 1)]
        start = time.perf_counter()
        release.model.similarity(one, video).topk(min(10, len(video)))
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[3:])


def _at(seconds: list[int], timestamps: tuple[float, ...], num_frames: int) -> Float[Tensor, " frame"]:
    """Return 0 or 1 for every packed frame, from 0 or 1 for every second."""
    values = torch.zeros(num_frames)
    for frame, at in enumerate(timestamps):
        values[frame] = seconds[min(int(at), len(seconds) - 1)]
    return values
