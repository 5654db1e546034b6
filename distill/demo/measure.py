"""What the demo's table says of a trained model beyond its ranks: where its weight lies, and what a query costs."""

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
    """`mass`: share of the frame weights on frames that are truly relevant to the caption, in percent, mean over all
    captions. `ms`: milliseconds to score one encoded query against the whole gallery and take the ten best (median).
    """
    texts = [caption.text for video in frames.videos for caption in video.captions]
    with torch.inference_mode():
        video = encode_videos(release.model, frames, release.num_frames)
        text = encode_texts(release.model, texts[:QUERIES], release.tokenizer)
        return {"mass": relevance_mass(release, frames, video, truth), "ms": query_ms(release, text, video)}


def relevance_mass(release: Release, frames: FrameSet, video: VideoFeatures, truth: Path) -> float:
    """Percent of the pooling weight on truly relevant frames; frames that are simply averaged weigh the same."""
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
    """Median milliseconds per query: one row of the similarity, ten best."""
    times = []
    for query in range(-3, len(text)):  # three to warm up
        one = text[slice(max(query, 0), max(query, 0) + 1)]
        start = time.perf_counter()
        release.model.similarity(one, video).topk(min(10, len(video)))
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[3:])


def _at(seconds: list[int], timestamps: tuple[float, ...], num_frames: int) -> Float[Tensor, " frame"]:
    """0/1 per packed frame from 0/1 per second."""
    values = torch.zeros(num_frames)
    for frame, at in enumerate(timestamps):
        values[frame] = seconds[min(int(at), len(seconds) - 1)]
    return values
