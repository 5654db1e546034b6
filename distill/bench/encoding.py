"""The bench of label jobs and indexing: what they encode in a second beside the bare towers.

The bare towers get the same frames and captions in the same batches, decoded and on the device beforehand, and what
they give is dropped. So a ratio of 1 means that decoding, copying, scoring and writing are hidden behind the towers.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from distill import comm
from distill.bench.device import settle
from distill.bench.rounds import ratio, take_turns, timed
from distill.bench.steps import Setting, build, build_teachers, write_labels
from distill.data.datasets import VideoDataset
from distill.data.frames import FrameSet
from distill.labelling.job import CAPTIONS_PER_VIDEO
from distill.model.contract import RetrievalModel, Teacher
from distill.release.release import Release, load
from distill.release.writing import write_release
from distill.remote import Place
from distill.retrieval.indexing import BATCH, build_gallery

LABELLED = 32  # videos in a batch of the label job


@dataclass(frozen=True)
class EncodingSpeed:
    """One job. Rates are those of the median round, the ratio is the median over rounds."""

    job: str
    unit: str  # what is counted
    rate: float  # a second
    bare: float  # of the towers alone
    of_bare: float


def measure_labels(setting: Setting, frames: FrameSet, folder: Path, *, rounds: int) -> list[EncodingSpeed]:
    """Label the frame set by each teacher, in turns with its bare towers."""
    found = []
    for teacher, config in zip(build_teachers(setting.teachers), setting.teachers, strict=True):
        labels = partial(_label, teacher, replace(setting, teachers=[config]), frames, folder, count())
        bare = _bare(teacher, frames, setting, LABELLED, bf16=setting.bf16, texts=True)
        shown = len(frames) * frames.num_frames
        found.append(_speed(f"labels of {config.kind}", "frames", shown, partial(timed, labels), bare, rounds))
    return found


def _label(teacher: Teacher, setting: Setting, frames: FrameSet, folder: Path, number: Iterator[int]) -> None:
    """Label a frame set by one teacher, into another folder every time."""
    how = {"batch": LABELLED, "workers": setting.data.workers}
    write_labels([teacher], setting, frames, folder / str(next(number)), storage="float16", **how)


def measure_index(setting: Setting, frames: FrameSet, files: Path, folder: Path, *, rounds: int) -> list[EncodingSpeed]:
    """Index a frame set and a folder of files by a random student, in turns with its bare tower.

    Indexing encodes in float32, so the tower does too. Each file is one video, whose frames are those of a video of the
    set in number and size.
    """
    release, number = _release(setting, frames, folder / "release"), count()

    def index(source: Place) -> Callable[[], float]:
        def built() -> None:
            build_gallery(release, source, folder / str(next(number)), workers=setting.data.workers or None)

        return partial(timed, built)

    bare = _bare(release.model, frames, setting, BATCH, bf16=False, texts=False)
    shards = _speed("index of frame shards", "videos", len(frames), index(frames.path), bare, rounds)
    videos = len([*files.iterdir()])
    return [
        shards,
        _speed("index of files", "videos", videos, index(files), lambda: bare() * videos / len(frames), rounds),
    ]


def _speed(
    job: str, unit: str, number: int, whole: Callable[[], float], bare: Callable[[], float], rounds: int
) -> EncodingSpeed:
    """Take turns; both sides give the seconds of a job of so many units."""
    taken = take_turns({"job": whole, "bare": bare}, rounds, f"{job} and bare towers in turns (rounds)")
    rates = {side: [number / seconds for seconds in times] for side, times in taken.items()}
    middle = {side: statistics.median(found) for side, found in rates.items()}
    return EncodingSpeed(job, unit, middle["job"], middle["bare"], ratio(rates["job"], rates["bare"]))


def _bare(
    model: RetrievalModel, frames: FrameSet, setting: Setting, batch: int, *, bf16: bool, texts: bool
) -> Callable[[], float]:
    """Return what times the towers alone on all videos of a set, and on its captions if they are asked for."""
    dataset, numbers = VideoDataset(frames), range(len(frames))
    parts = [[*numbers[start : start + batch]] for start in range(0, len(numbers), batch)]
    seen = [tuple(part.to(comm.device()) for part in dataset.__getitems__(videos)) for videos in parts]
    captions = frames.videos.texts_of(numbers) if texts else []
    ids = torch.from_numpy(setting.tokenizer()(captions)).to(comm.device()).split(batch * CAPTIONS_PER_VIDEO)
    return lambda: timed(lambda: _encode(model.eval(), seen, [*ids] if texts else [], bf16=bf16))


@torch.inference_mode()
def _encode(model: RetrievalModel, seen: list[tuple[Tensor, ...]], ids: list[Tensor], *, bf16: bool) -> None:
    with torch.autocast(comm.device().type, torch.bfloat16, enabled=bf16):
        for pixels, real in seen:
            model.encode_video(pixels, real)
        for part in ids:
            model.encode_text(part)
    settle()


def _release(setting: Setting, frames: FrameSet, folder: Path) -> Release:
    """Return the release of a student with random weights."""
    model = build(setting.student, 0)
    write_release(
        folder,
        model=model,
        model_config=setting.student,
        weights=model.state_dict(),
        text={"max_words": setting.data.max_words, "vocabulary": setting.tokenizer().vocabulary},
        frames_config=frames.manifest.config,
        provenance={"recipe": {"seed": 0}, "parents": {"frames": frames.manifest.id}, "seconds": 0.0},
    )
    return load(folder, comm.device())
