"""The evaluation of a model on a frame set: every video and caption is encoded once, by all processes together, and
ranks are taken in both directions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from distill import comm
from distill.data.datasets import VideoDataset
from distill.data.frames import FrameSet
from distill.data.loader import load_batches
from distill.data.ondemand import Chosen
from distill.data.padding import real
from distill.data.tokens import TextTokenizer
from distill.errors import ArtefactError, first_few
from distill.evaluation.counting import Counted, count_ranks
from distill.log import progress
from distill.model.contract import RetrievalModel, Teacher
from distill.model.features import TextFeatures, VideoFeatures
from distill.ranking.executor import Similarity, of_texts, of_videos
from distill.ranking.two_stage import ranking

Side = TypeVar("Side", TextFeatures, VideoFeatures)
VIDEO_BATCH = 64  # videos encoded at once
TEXT_BATCH = 256  # captions encoded, or scored with all videos, at once


@dataclass(frozen=True)
class Encoded:
    """A frame set as a model sees it, on this process's device."""

    text: TextFeatures  # of `texts_of`
    video: VideoFeatures
    video_of_text: Int[Tensor, " text"]


def rank(pairs: Similarity, seen: Encoded, first: int = 0) -> Counted:
    """Rank all videos of a frame set for all its captions, and the reverse, and keep the `first` best of every caption.

    A collective, which all processes return alike.
    """

    def parts() -> Iterator[Tensor]:  # outside autocast: ranks need fp32
        return _scored(pairs, seen.text, seen.video)

    return count_ranks(parts, TEXT_BATCH, len(seen.video), seen.video_of_text, first)


def encode(
    model: RetrievalModel,
    frames: FrameSet,
    tokenizer: TextTokenizer,
    *,
    bf16: bool = False,
    stems: Tensor | None = None,
    workers: int = 0,
    all_features: bool = False,
) -> Encoded:
    """Return the features of all captions and videos of `frames`; a collective.

    `stems` [video, frame, ...] are the cached outputs of the frozen stem, in place of pixels. A model that ranks by one
    vector gives no frames unless `all_features` are wanted: they are many times what it ranks by.
    """
    training = model.training
    model.eval()
    with torch.no_grad(), torch.autocast(comm.device().type, torch.bfloat16, enabled=bf16):
        text = encode_texts(model, texts_of(frames), tokenizer)
        video = encode_videos(model, frames, stems=stems, workers=workers, all_features=all_features)
    model.train(training)
    return Encoded(text, video, video_numbers(frames))


def check_captions(frames: FrameSet) -> None:
    """Raise `ArtefactError` if a video has no captions: it could not be ranked for any, nor any for it."""
    silent = Chosen(frames.videos.ids, np.flatnonzero(frames.videos.caption_counts() == 0))
    if silent:
        raise ArtefactError(
            f"{frames.path}: {len(silent)} of {len(frames)} videos have no captions ({first_few(silent, 3)}); evaluate "
            f"on a frame set that was packed with captions"
        )


def texts_of(frames: FrameSet) -> list[str]:
    """Return all captions, video by video: the rows of the similarity."""
    return frames.videos.texts[:]


def video_numbers(frames: FrameSet) -> Int64[Tensor, " text"]:
    """Return for each of `texts_of` the number of its video."""
    return torch.arange(len(frames)).repeat_interleave(torch.from_numpy(frames.videos.caption_counts()))


def encode_texts(model: RetrievalModel, texts: Sequence[str], tokenizer: TextTokenizer) -> TextFeatures:
    """Return the features of all texts, on this process's device; each process encodes its share."""
    parts = []
    for rows in progress(_chunks(len(texts), TEXT_BATCH), f"encode {len(texts)} captions (batches)"):
        ids = torch.from_numpy(tokenizer([texts[row] for row in rows]))
        parts.append(model.encode_text(ids.to(comm.device())))
    return _gather(TextFeatures.cat(parts), len(texts))


def encode_videos(
    model: RetrievalModel,
    frames: FrameSet,
    *,
    stems: Tensor | None = None,
    workers: int = 0,
    all_features: bool = True,
) -> VideoFeatures:
    """Return the features of all videos, on this process's device; for `stems` and `all_features` see `encode`."""
    device, batches = comm.device(), _chunks(len(frames), VIDEO_BATCH)
    if stems is None:
        loaded = load_batches(VideoDataset(frames), batches, workers)
    else:
        loaded = ((stems[rows], real(frames, rows)) for rows in batches)
    shown = progress(loaded, f"encode {len(frames)} videos (batches)", len(batches))
    parts = [model.encode_video(pixels.to(device), mask.to(device)) for pixels, mask in shown]
    if not (all_features or model.rerank_fields or isinstance(model, Teacher)):
        parts = [replace(part, frames=None) for part in parts]
    return _gather(VideoFeatures.cat(parts), len(frames))


def score(
    model: RetrievalModel, text: TextFeatures, video: VideoFeatures, *, scaled: bool = False
) -> Float[Tensor, "text video"]:
    """Return the model's similarity of every text with every video, or with `scaled` its logits, in fp32 on the CPU.

    Each process scores its share of the rows.
    """
    return score_by(model.logits if scaled else model.similarity, text, video)


def score_by(pairs: Similarity, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "text video"]:
    """Return any score of every text with every video, as `score` does."""
    return comm.gather_rows(torch.cat(list(_scored(pairs, text, video))), len(text)).cpu()


def _scored(pairs: Similarity, text: TextFeatures, video: VideoFeatures) -> Iterator[Float[Tensor, "text video"]]:
    """Yield this process's share of the scores, batch by batch, in fp32."""
    batches = progress(_chunks(len(text), TEXT_BATCH), f"score {len(text)} x {len(video)} pairs (batches)")
    for rows in batches:
        with torch.no_grad():
            yield pairs(text[torch.tensor(rows)], video).float()


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
