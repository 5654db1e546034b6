"""The measurement of a model under a protocol: its plain scores, and on request DSL, QB-Norm and two-stage searches.

The plain scores compare every query with everything. Dual softmax (DSL) and query-bank normalisation (QB-Norm) lower
the scores of hubs, videos that match almost every query, by how well a video answers other queries. Their figures must
not be compared with figures without them, so they stand in blocks of their own:

* DSL uses the other queries of the test set, so an answer depends on what else is asked. A search engine that gets one
  query at a time cannot do this.
* QB-Norm uses a bank of queries that are known beforehand (the captions of the training set); no test query sees
  another. A search engine can do this if it keeps the bank, as galleries do (distill/retrieval/calibration.py).

Rows of every matrix are texts, columns are videos.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from distill import __version__
from distill.data.frames import FrameSet
from distill.data.tokens import Tokenizer
from distill.errors import ExpectedError
from distill.evaluation.evaluate import encode_texts, encode_videos, score, texts_of, two_stage, video_numbers
from distill.evaluation.metrics import ranks_t2v, ranks_v2t, recall_interval, summarise
from distill.evaluation.result import RECALLS, BankMetrics, Metrics, Reranked, Result, Subject, gallery_state
from distill.log import progress
from distill.model.contract import RetrievalModel
from distill.model.features import VideoFeatures
from distill.retrieval import calibration

SEED = 0  # of the bootstrap
SHARED = 10  # best answers by which a two-stage search is compared with the exhaustive one
BANK_PART = 4096  # captions of a bank whose features are held at once
Measured = Callable[[Tensor, Tensor | None], Metrics]  # from the scores by which texts rank, and by which videos rank


@torch.no_grad()
def evaluate_model(
    subject: Subject,
    model: RetrievalModel,
    tokenizer: Tokenizer,
    frames: FrameSet,
    protocol: str,
    fingerprint: str,
    *,
    dsl: bool,
    bank: FrameSet | None,
    candidates: Sequence[int] = (),
) -> Result:
    """Evaluate a model in fp32; with `dsl` also by dual softmax, with `bank` by QB-Norm with that set's captions.

    `fingerprint` is that of `frames`. For each number in `candidates`, a two-stage search scores that many in full.
    Raises `ExpectedError` if the bank holds queries of the test, or if the model has no second stage.
    """
    if bank is not None:
        _check_bank(bank, frames)
    if candidates and not model.rerank_fields:
        raise ExpectedError(
            f"{subject.release}: this {subject.model} model has no second stage to rerank in; leave --candidates out"
        )
    text, video = encode_texts(model, texts_of(frames), tokenizer), encode_videos(model, frames)
    similarity, logits = score(model, text, video), score(model, text, video, scaled=True) if dsl else None
    measured = partial(_metrics, video_numbers(frames))
    return Result(
        toolkit=__version__,
        protocol=protocol,
        fingerprint=fingerprint,
        gallery=gallery_state(protocol, frames),
        subject=subject,
        scores=measured(similarity, similarity),
        dsl=None if logits is None else measured(dual_softmax(logits, 0), dual_softmax(logits, 1)),
        qbnorm=None if bank is None else _by_bank(bank, model, tokenizer, video, similarity, measured),
        two_stage=tuple(
            _reranked(count, similarity, *two_stage(model, text, video, count), measured)
            for count in progress(candidates, "search in two stages")
        ),
    )


def top_shared(
    scores: Float[Tensor, "query candidate"], expected: Float[Tensor, "query candidate"], k: int
) -> Float[Tensor, " query"]:
    """Return for every query the part (0 to 1) of the best `k` by `expected` that is among the best `k` by `scores`."""
    k = min(k, scores.shape[1])
    best = torch.zeros_like(scores, dtype=torch.bool).scatter(1, expected.topk(k).indices, True)
    return best.gather(1, scores.topk(k).indices).double().mean(1)


def _reranked(
    candidates: int,
    exhaustive: Float[Tensor, "text video"],
    by_text: Float[Tensor, "text video"],
    by_video: Float[Tensor, "text video"],
    measured: Measured,
) -> Reranked:
    shared = {"t2v": top_shared(by_text, exhaustive, SHARED), "v2t": top_shared(by_video.T, exhaustive.T, SHARED)}
    return Reranked(
        candidates=candidates,
        measured=measured(by_text, by_video),
        shared={direction: 100 * float(part.mean()) for direction, part in shared.items()},
    )


def _check_bank(bank: FrameSet, frames: FrameSet) -> None:
    # The same sentence may describe another video of the training set, so pairs are compared, not captions.
    tested = {(video.id, caption.text) for video in frames.videos for caption in video.captions}
    shared = sum((video.id, caption.text) in tested for video in bank.videos for caption in video.captions)
    if shared:
        raise ExpectedError(
            f"{bank.path}: {shared} of its captions are queries of {frames.path}; a query bank must not hold what is "
            "tested: give another frame set, normally the training one"
        )


def dual_softmax(logits: Float[Tensor, "text video"], queries: int) -> Float64[Tensor, "text video"]:
    """Return S * softmax of S over the axis of the queries: 0 (texts) where these rank videos, 1 for the reverse.

    As in TS2-Net's evaluation: temperature 1 on logits, with their scale. In double precision: float32 rounds
    probabilities below exp(-103) to 0, and distant videos would tie.
    """
    return logits.double() * logits.double().softmax(queries)


@dataclass(frozen=True)
class Bank:
    """The part of a query bank that QB-Norm needs, for one gallery."""

    log_sum: Float64[Tensor, " video"]  # log of the sum over the bank's queries of exp(beta similarity)
    first: Bool[Tensor, " video"]  # whether the video ranks first for at least one of the bank's queries


def bank_of(parts: Iterable[Float[Tensor, "_ video"]], num_videos: int) -> Bank:
    """Return a bank from the similarity of its queries with the gallery, given in parts of the queries."""
    # Sums of exp(beta s) overflow even doubles, so their logarithms are added.
    log_sum = torch.full((num_videos,), -torch.inf, dtype=torch.float64)
    first = torch.zeros(num_videos, dtype=torch.bool)
    for part in parts:
        log_sum = torch.logaddexp(log_sum, torch.logsumexp(calibration.BETA * part.double(), 0))
        first[part.argmax(1)] = True
    return Bank(log_sum, first)


def query_bank_t2v(similarity: Float[Tensor, "text video"], bank: Bank) -> Float64[Tensor, "text video"]:
    """Return QB-Norm's dynamic inverted softmax (Bogolin et al., CVPR 2022, section 3), for text-to-video ranks only.

    A text whose first video also ranks first for at least one query b of the bank is scored by the inverted softmax

        exp(beta s[text, video]) / sum over b of exp(beta s[b, video]),

    as its logarithm, which ranks the same and cannot overflow; any other text keeps its similarity. The two kinds of
    row have different scales, so scores of one column must not be compared. Of tied first videos the lowest counts.
    """
    return calibration.inverted_softmax(similarity, bank.log_sum, bank.first[similarity.argmax(1)].unsqueeze(1))


def _by_bank(
    bank: FrameSet,
    model: RetrievalModel,
    tokenizer: Tokenizer,
    video: VideoFeatures,
    similarity: Float[Tensor, "text video"],
    measured: Measured,
) -> BankMetrics:
    texts = texts_of(bank)
    # A bank may have more captions than fit into memory at once, so it is summed up part by part.
    starts = progress(range(0, len(texts), BANK_PART), f"score {len(texts)} captions of the bank (parts)")
    parts = (score(model, encode_texts(model, texts[at : at + BANK_PART], tokenizer), video) for at in starts)
    normalised = query_bank_t2v(similarity, bank_of(parts, len(video)))
    return BankMetrics(
        measured=measured(normalised, None), bank=str(bank.path), bank_id=bank.manifest.id, queries=len(texts)
    )


def _metrics(
    video_of_text: Int[Tensor, " text"],
    by_text: Float[Tensor, "text video"],
    by_video: Float[Tensor, "text video"] | None,
) -> Metrics:
    """Return the metrics of text to video from the scores `by_text`, and of video to text from `by_video`."""
    ranks = {"t2v": (ranks_t2v(by_text, video_of_text), video_of_text)}
    if by_video is not None:
        v2t = ranks_v2t(by_video, video_of_text)
        ranks["v2t"] = (v2t, torch.arange(len(v2t)))  # here every query is a group of its own
    return Metrics(
        metrics={direction: summarise(rank) for direction, (rank, _) in ranks.items()},
        intervals={
            direction: {f"R@{k}": recall_interval(rank, videos, k, SEED) for k in RECALLS}
            for direction, (rank, videos) in ranks.items()
        },
    )
