"""The measurement of a model under a protocol: its plain scores, and on request DSL, QB-Norm and two-stage searches.

The plain scores compare every query with everything. DSL and QB-Norm use other queries (`normalise`), so they and the
two-stage searches stand in blocks of their own.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill import __version__
from distill.data.frames import FrameSet
from distill.data.tokens import TextTokenizer, warn_of_cuts
from distill.errors import ExpectedError
from distill.evaluation.choosing import look_again
from distill.evaluation.duplicates import near_duplicates
from distill.evaluation.evaluate import (
    check_captions,
    encode_texts,
    encode_videos,
    score,
    texts_of,
    two_stage,
    video_numbers,
)
from distill.evaluation.graded import graded
from distill.evaluation.metrics import ranks_t2v, ranks_v2t, recall_interval, summarise
from distill.evaluation.normalise import bank_of, dual_softmax, query_bank_t2v
from distill.evaluation.result import RECALLS, BankMetrics, LookedAgain, Metrics, Reranked, Result, Subject
from distill.evaluation.standing import captions_of, fingerprint, gallery_state
from distill.evaluation.truth import Truth
from distill.log import progress
from distill.model.contract import RetrievalModel
from distill.model.features import VideoFeatures
from distill.model.second_look import SecondLook

SEED = 0  # of the bootstrap
SHARED = 10  # best answers by which a two-stage search is compared with the exhaustive one
BANK_PART = 4096  # captions of a bank whose features are held at once
Measured = Callable[[Tensor, Tensor | None], Metrics]  # from the scores by which texts rank, and by which videos rank


@torch.no_grad()
def evaluate_model(
    subject: Subject,
    model: RetrievalModel,
    tokenizer: TextTokenizer,
    frames: FrameSet,
    protocol: str,
    *,
    dsl: bool,
    bank: FrameSet | None,
    candidates: Sequence[int] = (),
    second_look: SecondLook | None = None,
    truth: Truth | None = None,
    duplicates: bool = False,
) -> Result:
    """Evaluate a model in fp32; with `dsl` also by dual softmax, with `bank` by QB-Norm with that set's captions.

    A `second_look` is measured beside it, and the plain scores against a `truth`. With `duplicates`, captions that are
    true of several videos are counted.

    For each number in `candidates`, a two-stage search scores that many in full. Raises `ExpectedError` if the bank
    holds queries of the test, or if the model has no second stage.
    """
    check_captions(frames)
    if bank is not None:
        _check_bank(bank, frames)
    if candidates and not model.rerank_fields:
        raise ExpectedError(
            f"{subject.release}: this {subject.model} model has no second stage to rerank in; leave --candidates out"
        )
    _warn_of_cuts([frames] if bank is None else [frames, bank], tokenizer)
    text, video = encode_texts(model, texts_of(frames), tokenizer), encode_videos(model, frames)
    similarity, logits = score(model, text, video), score(model, text, video, scaled=True) if dsl else None
    measured = partial(_metrics, video_numbers(frames))
    return Result(
        toolkit=__version__,
        protocol=protocol,
        fingerprint=fingerprint(captions_of(frames)),
        gallery=gallery_state(protocol, frames),
        subject=subject,
        scores=measured(similarity, similarity),
        dsl=None if logits is None else measured(dual_softmax(logits, 0), dual_softmax(logits, 1)),
        qbnorm=None if bank is None else _by_bank(bank, model, tokenizer, video, similarity, measured),
        two_stage=tuple(
            _reranked(count, similarity, *two_stage(model, text, video, count), measured)
            for count in progress(candidates, "search in two stages")
        ),
        second_look=None
        if second_look is None
        else LookedAgain(look=second_look, measured=measured(*look_again(second_look, text, video))),
        graded=None if truth is None else graded(truth, similarity, similarity, SEED),
        near_duplicates=near_duplicates(frames, truth) if duplicates else None,
    )


def _warn_of_cuts(sets: Sequence[FrameSet], tokenizer: TextTokenizer) -> None:
    for frames in sets:
        mend = "this release was trained with so many (data.max_words)"
        warn_of_cuts(texts_of(frames), tokenizer, str(frames.path), mend)


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


def _by_bank(
    bank: FrameSet,
    model: RetrievalModel,
    tokenizer: TextTokenizer,
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
