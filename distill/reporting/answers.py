"""The answers that a test leaves for the report of its run: which videos came first, and how frames were weighed.

Taken while the model and its features are at hand, so that a report needs neither later. Tensors of
`test_answers.safetensors`, whose metadata names the test frame set (`frames`, its id):

    first           [text, 10]     numbers of the videos that rank first
    first_scores    [text, 10]     their scores
    own_scores      [text]         the score of the text's own video
    relevance       [text, frame]  share of each frame of the own video in answering the text: rows sum to 1
    pooling         [video, frame] weights with which frames are pooled, where the model learns them: rows sum to 1
    taught          [pair, 2]      a few training pairs, as (video, caption) numbers, evenly spaced
    taught_student  [pair, frame]  the student's weights of their frames, and
    taught_teacher  [label set, pair, frame]  those of each teacher, by the temperature of the fine loss
"""

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from distill import comm
from distill.data.frames import FrameSet
from distill.data.padding import pad
from distill.evaluation.counting import Counted
from distill.evaluation.evaluate import TEXT_BATCH, Encoded
from distill.model.contract import RetrievalModel, Teacher
from distill.model.features import VideoFeatures
from distill.publishing import publish
from distill.reporting.finished import ANSWERS
from distill.training.job import Job, LabelSource

FIRST = 10  # videos of every text
TAUGHT = 4  # training pairs


def keep_answers(job: Job, frames: FrameSet, seen: Encoded, counted: Counted) -> None:
    """Write `test_answers.safetensors` into the folder of a run, after its test on `frames`."""
    found = answers(job.model, seen, counted) | taught(job)
    publish(job.folder / ANSWERS, save(found, {"frames": frames.manifest.id}))


@torch.inference_mode()
def answers(model: RetrievalModel, seen: Encoded, counted: Counted) -> dict[str, Tensor]:
    """Return the tensors of a test; those about frames only where the features have frames."""
    found = {"first": counted.first.int(), "first_scores": counted.first_scores, "own_scores": counted.own}
    if seen.video.frames is not None and seen.video.real is not None:
        found["relevance"] = torch.cat([_relevance(model, seen, rows) for rows in _parts(len(seen.text))])
    if (pooling := _pooling(model, seen.video)) is not None:
        found["pooling"] = pooling
    return {name: tensor.cpu().contiguous() for name, tensor in found.items()}


@torch.inference_mode()
def taught(job: Job) -> dict[str, Tensor]:
    """Return frame weights of the student beside its teachers' on a few training pairs; nothing without such labels.

    No collective: the pairs are encoded one by one.
    """
    sources = [source for source in job.sources if "relevance" in source.labels.tiers]
    captioned = np.flatnonzero(job.train.videos.caption_counts()).tolist()
    if not sources or isinstance(job.model, Teacher):
        return {}
    count = min(TAUGHT, len(captioned))
    pairs = [(captioned[place * len(captioned) // count], 0) for place in range(count)]
    student = torch.stack([_weights(job, *pair) for pair in pairs])
    teachers = [torch.stack([_shares(job, source, *pair) for pair in pairs]) for source in sources]
    found = {"taught_student": student, "taught_teacher": torch.stack(teachers)}
    return {"taught": torch.tensor(pairs, dtype=torch.int32), **found}


def _parts(total: int) -> list[slice]:
    return [slice(start, start + TEXT_BATCH) for start in range(0, total, TEXT_BATCH)]


def _relevance(model: RetrievalModel, seen: Encoded, rows: slice) -> Float[Tensor, "text frame"]:
    own = seen.video[seen.video_of_text[rows]]  # in parts: frames of every text's video would not fit at once
    assert own.real is not None, "videos come with what is padding"
    return model.relevance(seen.text[rows], own).float().masked_fill(~own.real, -torch.inf).softmax(-1)


def _pooling(model: RetrievalModel, video: VideoFeatures) -> Float[Tensor, "video frame"] | None:
    if video.relevance is None or model.pool_temperature is None:
        return None
    return (video.relevance.float() / model.pool_temperature).softmax(-1)


def _weights(job: Job, video: int, caption: int) -> Float[Tensor, " frame"]:
    """Return the student's weights of one pair's frames: those of its pooling, else of its answer to the caption."""
    padded = pad(job.train.pixels(video), job.train.num_frames)
    pixels, real = (torch.from_numpy(part)[None].to(comm.device()) for part in padded)
    features = job.model.encode_video(pixels, real)
    if (pooling := _pooling(job.model, features)) is not None:
        return pooling[0].cpu()
    ids = torch.from_numpy(job.tokenizer([job.train.videos[video].captions[caption].text]))
    text = job.model.encode_text(ids.to(comm.device()))
    return job.model.relevance(text, features).float().masked_fill(~real, -torch.inf).softmax(-1)[0].cpu()


def _shares(job: Job, source: LabelSource, video: int, caption: int) -> Float[Tensor, " frame"]:
    """Return a teacher's relevance of one pair as shares, softened as the fine loss does it; padding included."""
    temperature = job.losses.fine.temperature
    if temperature == "auto":
        temperature = source.temperatures.fine or 1.0  # None: the fine loss has no weight
    return (source.labels.relevance(video, caption).float() / temperature).softmax(-1)
