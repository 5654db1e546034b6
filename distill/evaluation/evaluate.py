"""The evaluation of a model on a frame set: every video and caption is encoded once, by all processes together, and
ranks are taken in both directions."""

from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from distill import comm
from distill.data.frames import FrameSet
from distill.data.loader import VideoDataset, load_batches, real
from distill.data.tokens import Tokenizer
from distill.evaluation.metrics import ranks_t2v, ranks_v2t, summarise
from distill.log import progress
from distill.model.contract import RetrievalModel
from distill.model.features import TextFeatures, VideoFeatures
from distill.ranking.executor import of_texts, of_videos
from distill.ranking.two_stage import ranking

Side = TypeVar("Side", TextFeatures, VideoFeatures)
VIDEO_BATCH = 64  # videos encoded at once
TEXT_BATCH = 256  # captions encoded, or scored with all videos, at once


@dataclass(frozen=True)
class Scores:
    """Ranks, counted from 0, and their summary: `metrics["t2v"]["R@1"]` in percent, `MdR` and `MnR` from 1."""

    t2v: Int[Tensor, " text"]
    v2t: Int[Tensor, " video"]
    video_of_text: Int[Tensor, " text"]
    metrics: dict[str, dict[str, float]]


def evaluate(
    model: RetrievalModel,
    frames: FrameSet,
    tokenizer: Tokenizer,
    *,
    bf16: bool = False,
    stems: Tensor | None = None,
    workers: int = 0,
) -> Scores:
    """Rank all videos of `frames` for all its captions, and the reverse.

    A collective: all processes must call it, and all return the same scores. `stems` [video, frame, ...] are the cached
    outputs of the frozen stem, in place of pixels.
    """
    device = comm.device()
    training = model.training
    model.eval()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        text = encode_texts(model, texts_of(frames), tokenizer)
        video = encode_videos(model, frames, stems=stems, workers=workers)
    similarity = score(model, text, video)  # outside autocast: ranks need fp32
    model.train(training)
    video_of_text = video_numbers(frames)
    t2v, v2t = ranks_t2v(similarity, video_of_text), ranks_v2t(similarity, video_of_text)
    return Scores(t2v, v2t, video_of_text, {"t2v": summarise(t2v), "v2t": summarise(v2t)})


def texts_of(frames: FrameSet) -> list[str]:
    """Return all captions, video by video: the rows of the similarity."""
    return [caption.text for video in frames.videos for caption in video.captions]


def video_numbers(frames: FrameSet) -> Int64[Tensor, " text"]:
    """Return for each of `texts_of` the number of its video."""
    return torch.arange(len(frames)).repeat_interleave(torch.tensor([len(video.captions) for video in frames.videos]))


def encode_texts(model: RetrievalModel, texts: list[str], tokenizer: Tokenizer) -> TextFeatures:
    """Return the features of all texts, on this process's device; each process encodes its share."""
    parts = []
    for rows in progress(_chunks(len(texts), TEXT_BATCH), f"encode {len(texts)} captions (batches)"):
        ids = torch.from_numpy(tokenizer([texts[row] for row in rows]))
        parts.append(model.encode_text(ids.to(comm.device())))
    return _gather(TextFeatures.cat(parts), len(texts))


def encode_videos(
    model: RetrievalModel, frames: FrameSet, *, stems: Tensor | None = None, workers: int = 0
) -> VideoFeatures:
    """Return the features of all videos, on this process's device, from `stems` (see `evaluate`) where given."""
    device, batches = comm.device(), _chunks(len(frames), VIDEO_BATCH)
    if stems is None:
        loaded = load_batches(VideoDataset(frames), batches, workers)
    else:
        loaded = ((stems[rows], real(frames, rows)) for rows in batches)
    shown = progress(loaded, f"encode {len(frames)} videos (batches)", len(batches))
    parts = [model.encode_video(pixels.to(device), mask.to(device)) for pixels, mask in shown]
    return _gather(VideoFeatures.cat(parts), len(frames))


def score(
    model: RetrievalModel, text: TextFeatures, video: VideoFeatures, *, scaled: bool = False
) -> Float[Tensor, "text video"]:
    """Return the model's similarity of every text with every video, or with `scaled` its logits, in fp32 on the CPU.

    Each process scores its share of the rows.
    """
    pairs = model.logits if scaled else model.similarity
    batches = progress(_chunks(len(text), TEXT_BATCH), f"score {len(text)} x {len(video)} pairs (batches)")
    with torch.no_grad():
        parts = [pairs(text[torch.tensor(rows)], video) for rows in batches]
    return comm.gather_rows(torch.cat(parts).float(), len(text)).cpu()


@torch.no_grad()
def two_stage(
    model: RetrievalModel, text: TextFeatures, video: VideoFeatures, candidates: int
) -> tuple[Float[Tensor, "text video"], Float[Tensor, "text video"]]:
    """Return the scores by which texts rank videos, and by which videos rank texts, in a two-stage search, on the CPU.

    Only `candidates` of every query get the full score, so the first scores compare within a row only, the second
    within a column. Neither is the other's transpose: a video retrieves texts of its own.
    """
    by_text, by_video = model.query_vectors(text), model.index_vectors(video)
    of_text = ranking(of_texts(model.similarity, text, video), by_text, by_video, candidates)
    of_video = ranking(of_videos(model.similarity, text, video), by_video, by_text, candidates)
    return of_text.cpu(), of_video.T.cpu()


def _gather(features: Side, total: int) -> Side:
    tables = {}
    for name, value in features.tensors().items():  # collectives carry fp32, not bf16, and uint8, not bool
        rows = comm.gather_rows(value.float() if value.is_floating_point() else value.to(torch.uint8), total)
        tables[name] = rows.bool() if value.dtype == torch.bool else rows
    return type(features)(**tables)


def _chunks(total: int, size: int) -> list[list[int]]:
    """Return this process's share of so many rows, in batches."""
    rows = comm.share(total)
    return [rows[start : start + size] for start in range(0, len(rows), size)]
