"""The measurement of a model under a protocol: its plain scores, and on request DSL, QB-Norm and two-stage searches.

The plain scores compare every query with everything. DSL and QB-Norm use other queries (`normalise`), so they and the
two-stage searches stand in blocks of their own.
"""

from collections.abc import Sequence

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
    Encoded,
    check_captions,
    encode_texts,
    encode_videos,
    rank,
    score,
    texts_of,
    two_stage,
    video_numbers,
)
from distill.evaluation.graded import graded
from distill.evaluation.metrics import Ranks, ranks_t2v, recall_interval, summarise
from distill.evaluation.normalise import bank_of, dual_softmax, query_bank_t2v
from distill.evaluation.result import RECALLS, BankMetrics, LookedAgain, Metrics, Reranked, Result, Subject
from distill.evaluation.standing import captions_of, fingerprint, gallery_state
from distill.evaluation.truth import Truth
from distill.log import progress
from distill.model.contract import RetrievalModel
from distill.model.second_look import SecondLook

SEED = 0  # of the bootstrap
SHARED = 10  # best answers by which a two-stage search is compared with the exhaustive one
BANK_PART = 4096  # captions of a bank whose features are held at once


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
    seen = Encoded(text, video, video_numbers(frames))
    # Ranks are counted in parts; what is asked beside them compares single scores, so it needs all of them at once.
    whole = score(model, text, video) if bank is not None or truth is not None or candidates else None
    plain = rank(model.similarity, seen) if whole is None else Ranks.of(whole, whole, seen.video_of_text)
    result = Result(
        toolkit=__version__,
        protocol=protocol,
        fingerprint=fingerprint(captions_of(frames)),
        gallery=gallery_state(protocol, frames),
        subject=subject,
        scores=_metrics(seen, plain.t2v, plain.v2t),
        dsl=_dual(model, seen) if dsl else None,
        qbnorm=None,
        second_look=None if second_look is None else _looked_again(second_look, seen),
        near_duplicates=near_duplicates(frames, truth) if duplicates else None,
    )
    if whole is None:
        return result
    return result.model_copy(
        update={
            "qbnorm": None if bank is None else _by_bank(bank, model, tokenizer, seen, whole),
            "two_stage": tuple(
                _reranked(model, seen, whole, count) for count in progress(candidates, "search in two stages")
            ),
            "graded": None if truth is None else graded(truth, whole, whole, SEED),
        }
    )


def _dual(model: RetrievalModel, seen: Encoded) -> Metrics:
    logits = score(model, seen.text, seen.video, scaled=True)
    ranks = Ranks.of(dual_softmax(logits, 0), dual_softmax(logits, 1), seen.video_of_text)
    return _metrics(seen, ranks.t2v, ranks.v2t)


def _looked_again(look: SecondLook, seen: Encoded) -> LookedAgain:
    ranks = look_again(look, seen)
    return LookedAgain(look=look, measured=_metrics(seen, ranks.t2v, ranks.v2t))


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
    model: RetrievalModel, seen: Encoded, exhaustive: Float[Tensor, "text video"], candidates: int
) -> Reranked:
    by_text, by_video = two_stage(model, seen.text, seen.video, candidates)
    ranks = Ranks.of(by_text, by_video, seen.video_of_text)
    shared = {"t2v": top_shared(by_text, exhaustive, SHARED), "v2t": top_shared(by_video.T, exhaustive.T, SHARED)}
    return Reranked(
        candidates=candidates,
        measured=_metrics(seen, ranks.t2v, ranks.v2t),
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
    seen: Encoded,
    similarity: Float[Tensor, "text video"],
) -> BankMetrics:
    texts = texts_of(bank)
    # A bank may have more captions than fit into memory at once, so it is summed up part by part.
    starts = progress(range(0, len(texts), BANK_PART), f"score {len(texts)} captions of the bank (parts)")
    parts = (score(model, encode_texts(model, texts[at : at + BANK_PART], tokenizer), seen.video) for at in starts)
    normalised = query_bank_t2v(similarity, bank_of(parts, len(seen.video)))
    return BankMetrics(
        measured=_metrics(seen, ranks_t2v(normalised, seen.video_of_text)),
        bank=str(bank.path),
        bank_id=bank.manifest.id,
        queries=len(texts),
    )


def _metrics(seen: Encoded, t2v: Int[Tensor, " text"], v2t: Int[Tensor, " captioned"] | None = None) -> Metrics:
    """Return the metrics of ranks, of text to video alone or of both directions."""
    ranks = {"t2v": (t2v, seen.video_of_text)}
    if v2t is not None:
        ranks["v2t"] = (v2t, torch.arange(len(v2t)))  # here every query is a group of its own
    return Metrics(
        metrics={direction: summarise(found) for direction, (found, _) in ranks.items()},
        intervals={
            direction: {f"R@{k}": recall_interval(found, videos, k, SEED) for k in RECALLS}
            for direction, (found, videos) in ranks.items()
        },
    )
