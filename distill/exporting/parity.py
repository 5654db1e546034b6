"""Parity: how far exported graphs agree with the weights that they were made of, and the gate that they must pass.

All captions and videos of a frame set are encoded by torch and by ONNX Runtime. Their scores are compared: those of the
vectors, and those of the second stage or of the frames, whichever the model has. The ten best and R@1 are by the score
that ranks in the end. Times are of one text and of one video on one thread, the contenders taking turns.
"""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from distill.bench.rounds import take_turns, timed
from distill.data.datasets import VideoDataset
from distill.data.frames import FrameSet
from distill.data.loader import load_batches
from distill.errors import ExpectedError
from distill.evaluation.evaluate import encode_texts, encode_videos, score_by, texts_of, video_numbers
from distill.evaluation.measure import top_shared
from distill.evaluation.metrics import ranks_t2v, summarise
from distill.exporting.graphs import POOLED, sides
from distill.log import progress
from distill.model.contract import ANSWER_TEMPERATURE
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.second_look import frame_answers
from distill.onnx.exported import FOLDER, SIDES, Measured, Parity, Reference, file_of
from distill.onnx.session import open_graph, run_graph
from distill.release.release import WEIGHTS, Release

CLOSE = 1e-4  # of a score in float32 to torch's
BEST, SHARED = 10, 97.0  # percent of the ten best that graphs of 8 bits must share
TEXT_BATCH, VIDEO_BATCH = 256, 16  # rows that a graph encodes at once
ROUNDS = 15  # of a median time

Scores = dict[str, Float[Tensor, "text video"]]
Outputs = dict[str, Tensor]  # of a side, for all rows


@torch.no_grad()
def measure(release: Release, frames: FrameSet, folder: Path, int8: bool) -> Measured:
    """Compare the graphs of a folder with the weights of their release, on the captions and videos of `frames`."""
    model = release.model
    names = [file_of(side, small) for small in ((False, True) if int8 else (False,)) for side in SIDES]
    graphs = {name: open_graph(folder / name) for name in names}
    text, video = encode_texts(model, texts_of(frames), release.tokenizer), encode_videos(model, frames)
    expected = _scores(release, model.query_vectors(text), model.index_vectors(video), text, video)
    times = _times(release, {name: open_graph(folder / name, threads=1) for name in names})

    def parity(small: bool) -> Parity:
        of_text, of_video = (file_of(side, small) for side in SIDES)
        found = _graph_scores(release, frames, graphs[of_text], graphs[of_video])
        return Parity(
            score=float(torch.stack([(found[name] - scores).abs().max() for name, scores in expected.items()]).max()),
            top10=100 * float(top_shared(_last(found), _last(expected), BEST).mean()),
            r1=_r1(found, frames),
            bytes=sum((folder / name).stat().st_size for name in (of_text, of_video)),
            text_ms=times[of_text],
            video_ms=times[of_video],
        )

    size = (release.path / WEIGHTS).stat().st_size
    return Measured(
        frames=frames.path.name,
        frames_id=frames.manifest.id,
        texts=len(text),
        videos=len(frames),
        torch=Reference(r1=_r1(expected, frames), bytes=size, text_ms=times["text"], video_ms=times["video"]),
        float32=parity(False),
        int8=parity(True) if int8 else None,
    )


def check(measured: Measured, where: Path) -> None:
    """Raise `ExpectedError` for graphs that differ too much from their weights."""
    on = f"on {measured.texts:,} captions and {measured.videos:,} videos of {measured.frames}; nothing was exported"
    if not measured.float32.score <= CLOSE:
        raise ExpectedError(
            f"{where}: a score differs from torch's by {measured.float32.score:.1e}, at most {CLOSE:.0e} is allowed, "
            f"{on}; install the versions of torch, onnxscript and onnxruntime that constraints.txt names"
        )
    if measured.int8 is not None and not measured.int8.top10 >= SHARED:
        raise ExpectedError(
            f"{where}: the graphs of 8 bits share {measured.int8.top10:.1f} % of the ten best videos with torch, at "
            f"least {SHARED:.0f} % are wanted, {on}; leave them out with --float32"
        )


def _last(scores: Scores) -> Tensor:
    """Return the scores that rank in the end."""
    return scores["whole" if "whole" in scores else "vector"]


def _r1(scores: Scores, frames: FrameSet) -> float:
    return summarise(ranks_t2v(_last(scores), video_numbers(frames)))["R@1"]


def _scores(release: Release, query: Tensor, index: Tensor, text: TextFeatures, video: VideoFeatures) -> Scores:
    """Return the scores by vectors, and those of the second stage (`whole`) or of the frames."""
    found = {"vector": query @ index.T}
    if release.model.rerank_fields:
        return found | {"whole": score_by(release.model.similarity, text, video)}
    return found | {"frames": score_by(frame_answers(ANSWER_TEMPERATURE).score, text, video)}


def _graph_scores(release: Release, frames: FrameSet, of_text: Any, of_video: Any) -> Scores:
    """Return the same by what graphs give."""
    ids = torch.from_numpy(release.tokenizer(texts_of(frames))).split(TEXT_BATCH)
    text = _joined([_run(of_text, ids=part) for part in ids])
    rows = list(range(len(frames)))
    batches = [rows[start : start + VIDEO_BATCH] for start in range(0, len(rows), VIDEO_BATCH)]
    loaded = progress(
        load_batches(VideoDataset(frames), batches, 0), f"encode {len(frames)} videos (batches)", len(batches)
    )
    parts = [_run(of_video, pixels=pixels, real=real) | {"real": real} for pixels, real in loaded]
    video, query = _joined(parts), text.pop("vector")
    index = video.pop("vector")
    features = VideoFeatures(vector=video.pop(POOLED, index), **video)
    return _scores(release, query, index, TextFeatures(**text), features)


def _joined(parts: list[Outputs]) -> Outputs:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _run(graph: Any, **inputs: Tensor) -> Outputs:
    names = [node.name for node in graph.get_outputs()]
    found = run_graph(graph, names, {name: value.numpy() for name, value in inputs.items()}, Path(FOLDER))
    return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}


def _times(release: Release, graphs: dict[str, Any]) -> dict[str, float]:
    """Return the median milliseconds of one row, by graph, and by torch under the name of the side."""
    calls: dict[str, Callable[[], float]] = {}
    for name, (side, examples) in sides(release).items():
        one = [example[:1] for example in examples]
        calls[name] = partial(timed, partial(side, *one))
        inputs = dict(zip(side.inputs, one, strict=True))
        for of in (file_of(name, False), file_of(name, True)):
            if of in graphs:
                calls[of] = partial(timed, partial(_run, graphs[of], **inputs))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        taken = take_turns(calls, ROUNDS, "time torch and ONNX Runtime")
    finally:
        torch.set_num_threads(threads)
    return {name: 1000 * statistics.median(seconds) for name, seconds in taken.items()}
