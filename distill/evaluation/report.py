"""Results of an evaluation: what is measured, the JSON file that keeps it, and the table that people read.

Recall is in percent, ranks count from 1. The plain scores compare every query with everything (exhaustive). Searches in
two stages, and scores that use other queries (`normalise`), are measured on request and stand in blocks of their own.
Two results whose fingerprints differ never stand in one table.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import AliasChoices, Field
from torch import Tensor

from distill import __version__
from distill.config import Config
from distill.data.frames import FrameSet
from distill.data.tokens import Tokenizer
from distill.errors import ArtefactError, ExpectedError
from distill.evaluation.evaluate import (
    encode_texts,
    encode_videos,
    score,
    texts_of,
    top_shared,
    two_stage,
    video_numbers,
)
from distill.evaluation.metrics import ranks_t2v, ranks_v2t, recall_interval, summarise
from distill.evaluation.normalise import Bank, bank_of, dual_softmax_t2v, dual_softmax_v2t, query_bank_t2v
from distill.evaluation.protocol import PROTOCOLS
from distill.evaluation.standing import SHOWN, Standing, standing
from distill.log import progress
from distill.model.contract import RetrievalModel
from distill.model.features import VideoFeatures
from distill.records import read_json
from distill.retrieval.calibration import BETA

RECALLS = (1, 5, 10)
COLUMNS = ("R@1", "R@5", "R@10", "MdR", "MnR")
SEED = 0  # of the bootstrap
SHARED = 10  # best answers that a search in two stages is compared by with the exhaustive one
BANK_PART = 4096  # captions of a bank whose features are held at once


class Metrics(Config):
    """Metrics by direction (`t2v`, `v2t`): R@1, R@5, R@10, MdR, MnR, and the 95 % intervals of the recalls."""

    metrics: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, tuple[float, float]]]


class BankMetrics(Config):
    """What QB-Norm gives, text-to-video, and where its bank came from."""

    measured: Metrics
    bank: str  # frame set
    bank_id: str
    queries: int


class Reranked(Config):
    """A search in two stages: so many `candidates` of every query were scored in full, both ways.

    `shared`: of the exhaustive ten best answers, how many are among its own ten best, in percent, by direction.
    """

    candidates: int = Field(validation_alias=AliasChoices("candidates", "recall"))  # version 0.1 wrote `recall`
    measured: Metrics
    shared: dict[str, float]


class GalleryState(Config):
    """What was searched, and how it stands to the protocol (`standing.Standing`)."""

    videos: int
    captions: int
    complete: bool | None
    missing: int
    unusable: tuple[str, ...]
    words: str


class Subject(Config):
    """What was evaluated: a release, and the frame set it answered on."""

    release: str
    release_id: str
    model: str  # its kind
    frames: str
    frames_id: str


class Result(Config):
    """A result file: what was measured, on what, and how to tell whether another result may stand beside it."""

    format: Literal[1] = 1
    toolkit: str
    protocol: str
    fingerprint: str
    gallery: GalleryState
    subject: Subject
    scores: Metrics
    dsl: Metrics | None
    qbnorm: BankMetrics | None
    two_stage: tuple[Reranked, ...] = ()  # results from before there was such a search have none


def evaluate_model(
    subject: Subject,
    model: RetrievalModel,
    tokenizer: Tokenizer,
    frames: FrameSet,
    protocol: str,
    *,
    dsl: bool,
    bank: FrameSet | None,
    candidates: Sequence[int] = (),
) -> Result:
    """Evaluates a model in fp32; with `dsl`, and with the captions of `bank`, also by scores that use other queries.

    With `candidates`, also searches in two stages that score so many in full.
    """
    state, own = standing(protocol, frames), video_numbers(frames)
    if bank is not None:
        _check_bank(bank, frames)
    if candidates:
        _check_two_stage(subject, model)
    with torch.no_grad():
        text = encode_texts(model, texts_of(frames), tokenizer, quiet=False)
        video = encode_videos(model, frames, frames.num_frames, quiet=False)
        similarity = score(model, text, video, quiet=False)
        logits = score(model, text, video, scaled=True, quiet=False) if dsl else None
        sums = None if bank is None else bank_of(_bank_parts(model, tokenizer, video, texts_of(bank)), len(frames))
    return Result(
        toolkit=__version__,
        protocol=protocol,
        fingerprint=state.fingerprint,
        gallery=_gallery(state),
        subject=subject,
        scores=_metrics(own, similarity, similarity),
        dsl=None if logits is None else _metrics(own, dual_softmax_t2v(logits), dual_softmax_v2t(logits)),
        qbnorm=None if bank is None or sums is None else _by_bank(own, similarity, bank, sums),
        two_stage=tuple(
            _reranked(own, similarity, *two_stage(model, text, video, some), some)
            for some in progress(candidates, "search in two stages", quiet=not candidates)
        ),
    )


def _check_two_stage(subject: Subject, model: RetrievalModel) -> None:
    if not model.rerank_fields:
        raise ExpectedError(
            f"{subject.release}: a model of the kind {subject.model} has one score and no second stage; leave "
            "--candidates out (models of two stages: EERCF, GLSCL)"
        )


def _reranked(
    own: Int[Tensor, " text"],
    exhaustive: Float[Tensor, "text video"],
    by_text: Float[Tensor, "text video"],
    by_video: Float[Tensor, "text video"],
    candidates: int,
) -> Reranked:
    shared = {"t2v": top_shared(by_text, exhaustive, SHARED), "v2t": top_shared(by_video.T, exhaustive.T, SHARED)}
    return Reranked(
        candidates=candidates,
        measured=_metrics(own, by_text, by_video),
        shared={way: 100 * float(found.mean()) for way, found in shared.items()},
    )


def _check_bank(bank: FrameSet, frames: FrameSet) -> None:
    asked = {(video.id, caption.text) for video in frames.videos for caption in video.captions}
    shared = sum((video.id, caption.text) in asked for video in bank.videos for caption in video.captions)
    if shared:
        raise ExpectedError(
            f"{bank.path}: {shared} of its captions are queries of {frames.path}; a query bank must not hold what is "
            "tested: give another frame set, normally the training one"
        )


def _bank_parts(
    model: RetrievalModel, tokenizer: Tokenizer, video: VideoFeatures, texts: list[str]
) -> Iterator[Float[Tensor, "query video"]]:
    parts = [texts[start : start + BANK_PART] for start in range(0, len(texts), BANK_PART)]
    for part in progress(parts, f"score {len(texts)} captions of the bank (parts)"):
        yield score(model, encode_texts(model, part, tokenizer), video)


def _by_bank(
    own: Int[Tensor, " text"], similarity: Float[Tensor, "text video"], bank: FrameSet, sums: Bank
) -> BankMetrics:
    return BankMetrics(
        measured=_metrics(own, query_bank_t2v(similarity, sums), None),
        bank=str(bank.path),
        bank_id=bank.manifest.id,
        queries=len(texts_of(bank)),
    )


def _metrics(
    own: Int[Tensor, " text"], by_text: Float[Tensor, "text video"], by_video: Float[Tensor, "text video"] | None
) -> Metrics:
    """Text-to-video from the scores `by_text`, video-to-text from `by_video`."""
    ranks = {"t2v": (ranks_t2v(by_text, own), own)}
    if by_video is not None:
        found = ranks_v2t(by_video, own)
        ranks["v2t"] = (found, torch.arange(len(found)))
    return Metrics(
        metrics={way: summarise(found) for way, (found, _) in ranks.items()},
        intervals={
            way: {f"R@{k}": recall_interval(found, videos, k, SEED) for k in RECALLS}
            for way, (found, videos) in ranks.items()
        },
    )


def _gallery(state: Standing) -> GalleryState:
    return GalleryState(
        videos=state.videos,
        captions=state.captions,
        complete=state.complete,
        missing=state.missing,
        unusable=state.unusable,
        words=state.words,
    )


def read_result(path: Path) -> Result:
    """Reads a result file."""
    found = read_json(path, Result, "expected a result of tools/evaluate.py")
    also = [] if found.dsl is None else [found.dsl]
    also += [] if found.qbnorm is None else [found.qbnorm.measured]
    for measured in (found.scores, *also, *(stage.measured for stage in found.two_stage)):
        needed = {"t2v"} if found.qbnorm is not None and measured is found.qbnorm.measured else {"t2v", "v2t"}
        if not needed <= measured.metrics.keys() & measured.intervals.keys():
            raise ArtefactError(f"{path}: not a result of tools/evaluate.py: needs {' and '.join(sorted(needed))}")
        for way, row in measured.metrics.items():
            if not set(COLUMNS) <= row.keys() or not all(math.isfinite(number) for number in row.values()):
                raise ArtefactError(f"{path}: not a result of tools/evaluate.py: {way} needs {', '.join(COLUMNS)}")
        for way, bounds in measured.intervals.items():
            known = {f"R@{k}" for k in RECALLS} <= bounds.keys()
            if not known or not all(math.isfinite(number) for pair in bounds.values() for number in pair):
                raise ArtefactError(f"{path}: not a result of tools/evaluate.py: the intervals of {way} are not whole")
    return found


def check_comparable(path: Path, earlier: Result, protocol: str, fingerprint: str) -> None:
    """Refuses an earlier result that answered other queries or searched another gallery."""
    if (earlier.protocol, earlier.fingerprint) != (protocol, fingerprint):
        raise ExpectedError(
            f"{path}: a result of {earlier.protocol} {earlier.fingerprint[:SHOWN]}, expected {protocol} "
            f"{fingerprint[:SHOWN]}; numbers on other galleries or queries do not belong in one table: evaluate "
            f"{earlier.subject.release} on these frames"
        )


def report(result: Result, earlier: Sequence[Result]) -> str:
    """What was evaluated, the table with a row per result, and a block each for scores that use other queries."""
    results = [result, *earlier]
    head = [
        f"protocol  {result.protocol}: {PROTOCOLS[result.protocol].split}",
        f"gallery   {result.gallery.videos:,} videos, {result.gallery.captions:,} captions, "
        f"fingerprint {result.fingerprint[:SHOWN]}",
        f"          {result.gallery.words}",
    ]
    blocks = ["\n".join(head), _table([(r.subject.release, r.scores) for r in results])]
    reranked = [(_with_candidates(r.subject.release, found), found) for r in results for found in r.two_stage]
    if reranked:
        blocks.append(
            "Two stages: a text has so many candidate videos by one inner product each, a video so many texts; these\n"
            "are scored in full, above, all are. The shared top 10 are those of the full scores that are found.\n"
            + _table([(title, found.measured) for title, found in reranked])
        )
    by_dsl = [(r.subject.release, r.dsl) for r in results if r.dsl is not None]
    if by_dsl:
        blocks.append(
            "DSL (dual softmax): every answer uses all other test queries, which no search engine has. Not to be "
            f"compared with\nresults without it.\n{_table(by_dsl)}"
        )
    by_bank = [(_with_bank(r.subject.release, r.qbnorm), r.qbnorm.measured) for r in results if r.qbnorm is not None]
    if by_bank:
        blocks.append(
            f"QB-Norm (dynamic inverted softmax, beta {BETA:g}): every answer uses a bank of other queries, "
            f"but no test query.\nNot to be compared with results without it or with another bank.\n{_table(by_bank)}"
        )
    return "\n\n".join(blocks)


def _with_bank(release: str, by_bank: BankMetrics) -> str:
    return f"{release}, bank {by_bank.bank} ({by_bank.queries:,} captions, {by_bank.bank_id[:SHOWN]})"


def _with_candidates(release: str, found: Reranked) -> str:
    shared = ", ".join(f"{way.upper()} {value:.1f} %" for way, value in found.shared.items())
    return f"{release}, {found.candidates:,} candidates (shared top 10: {shared})"


def _table(rows: Sequence[tuple[str, Metrics]]) -> str:
    columns = [(way, name) for way in ("t2v", "v2t") if way in rows[0][1].metrics for name in COLUMNS]
    lines = [["", *(f"{way.upper()} R@1 [95 %]" if name == "R@1" else name for way, name in columns)]]
    lines += [[title, *(_cell(measured, way, name) for way, name in columns)] for title, measured in rows]
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table as text: the first column to the left, the others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _cell(measured: Metrics, way: str, name: str) -> str:
    value = f"{measured.metrics[way][name]:.1f}"
    if name != "R@1":
        return value
    low, high = measured.intervals[way][name]
    return f"{value} [{low:.1f}, {high:.1f}]"
