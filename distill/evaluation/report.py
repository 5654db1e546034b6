"""Results of an evaluation: what is measured, the JSON file that keeps it, and the table that people read.

Recall is in percent, ranks count from 1. Scores that use other queries (`normalise`) are measured on request and stand
in blocks of their own. Two results whose fingerprints differ never stand in one table.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import ValidationError
from torch import Tensor

from distill import __version__
from distill.config import Config
from distill.data.frames import FrameSet
from distill.data.tokens import Tokenizer
from distill.errors import ArtefactError, ExpectedError
from distill.evaluation.evaluate import encode_texts, encode_videos, score, texts_of, video_numbers
from distill.evaluation.metrics import ranks_t2v, ranks_v2t, recall_interval, summarise
from distill.evaluation.normalise import BETA, Bank, bank_of, dual_softmax_t2v, dual_softmax_v2t, query_bank_t2v
from distill.evaluation.protocol import PROTOCOLS, SHOWN, Standing, standing
from distill.log import progress
from distill.model.contract import RetrievalModel
from distill.model.features import VideoFeatures

RECALLS = (1, 5, 10)
COLUMNS = ("R@1", "R@5", "R@10", "MdR", "MnR")
SEED = 0  # of the bootstrap
BANK_PART = 4096  # captions of a bank whose features are held at once


class Measured(Config):
    """Metrics by direction (`t2v`, `v2t`): R@1, R@5, R@10, MdR, MnR, and the 95 % intervals of the recalls."""

    metrics: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, tuple[float, float]]]


class BankMeasured(Config):
    """What QB-Norm gives, text-to-video, and where its bank came from."""

    measured: Measured
    bank: str  # frame set
    bank_id: str
    queries: int


class GalleryState(Config):
    """What was searched, and how it stands to the protocol (`protocol.Standing`)."""

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
    scores: Measured
    dsl: Measured | None
    qbnorm: BankMeasured | None


def measure(
    subject: Subject,
    model: RetrievalModel,
    tokenizer: Tokenizer,
    frames: FrameSet,
    protocol: str,
    *,
    dsl: bool,
    bank: FrameSet | None,
) -> Result:
    """Evaluates a model in fp32; with `dsl`, and with the captions of `bank`, also by scores that use other queries."""
    state, own = standing(protocol, frames), video_numbers(frames)
    if bank is not None:
        _check_bank(bank, frames)
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
        scores=_measured(own, similarity, similarity),
        dsl=None if logits is None else _measured(own, dual_softmax_t2v(logits), dual_softmax_v2t(logits)),
        qbnorm=None if bank is None or sums is None else _by_bank(own, similarity, bank, sums),
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
) -> BankMeasured:
    return BankMeasured(
        measured=_measured(own, query_bank_t2v(similarity, sums), None),
        bank=str(bank.path),
        bank_id=bank.manifest.id,
        queries=len(texts_of(bank)),
    )


def _measured(
    own: Int[Tensor, " text"], by_text: Float[Tensor, "text video"], by_video: Float[Tensor, "text video"] | None
) -> Measured:
    """Text-to-video from the scores `by_text`, video-to-text from `by_video`."""
    ranks = {"t2v": (ranks_t2v(by_text, own), own)}
    if by_video is not None:
        found = ranks_v2t(by_video, own)
        ranks["v2t"] = (found, torch.arange(len(found)))
    return Measured(
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
    try:
        return Result.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read as a result: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtefactError(f"{path}: not a result of tools/evaluate.py: {where or 'top'}: {first['msg']}") from None


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


def _with_bank(release: str, by_bank: BankMeasured) -> str:
    return f"{release}, bank {by_bank.bank} ({by_bank.queries:,} captions, {by_bank.bank_id[:SHOWN]})"


def _table(rows: Sequence[tuple[str, Measured]]) -> str:
    columns = [(way, name) for way in ("t2v", "v2t") if way in rows[0][1].metrics for name in COLUMNS]
    lines = [["", *(f"{way.upper()} R@1 [95 %]" if name == "R@1" else name for way, name in columns)]]
    lines += [[title, *(_cell(measured, way, name) for way, name in columns)] for title, measured in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _cell(measured: Measured, way: str, name: str) -> str:
    value = f"{measured.metrics[way][name]:.1f}"
    if name != "R@1":
        return value
    low, high = measured.intervals[way][name]
    return f"{value} [{low:.1f}, {high:.1f}]"
