"""Compare a label set with what its teacher gives now, on a random sample of rows."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.data.frames import FrameSet
from distill.data.labels import PER_VIDEO, SHORTLIST, StoredLabels, short_id
from distill.data.texts import Texts
from distill.errors import ArtefactError
from distill.labelling.labeller import Labeller
from distill.labelling.teacher import Encoder, encode_texts
from distill.log import progress

# Largest deviation of a recomputed row, over the largest value of its tensor: other processors and other batches round
# differently, and the storage rounds once more.
COMPUTED = {"fp32": 1e-3, "bf16": 5e-2}
STORED = {"float32": 0.0, "float16": 2**-10, "bfloat16": 2**-7}


@dataclass(frozen=True)
class Difference:
    """Deviation of one stored tensor from what the teacher gives now, over the sampled rows."""

    largest: float
    scale: float  # the largest value that the teacher gives


def recompute(
    stored: StoredLabels, labeller: Labeller, frames: FrameSet, rows: int, seed: int
) -> dict[str, Difference]:
    """Compute a random sample of rows again; returns the deviation of every stored tensor by name.

    Raises `ArtefactError` if the teacher or the frames are not those of the set, or if rounding does not explain a
    deviation. Of shortlists the matched video and the best other one are scored.
    """
    config = stored.manifest.config
    _check_origin(stored, labeller, frames)
    encoder = Encoder(labeller, frames, config["precision"])
    pairs = [
        (video, caption)
        for video, about in enumerate(frames.videos)
        for caption in (range(len(about.captions)) if about.captions else [None])
    ]
    chosen = np.random.default_rng(seed).permutation(len(pairs))[:rows]
    found: dict[str, list[Difference]] = {}
    for pair in progress([pairs[i] for i in sorted(chosen)], "recompute (rows)"):
        for name, (kept, given) in _again(stored, encoder, *pair).items():
            found.setdefault(name, []).append(_difference(kept, given))
    return _summed(stored, found)


def recompute_texts(
    stored: StoredLabels, labeller: Labeller, texts: Texts, rows: int, seed: int
) -> dict[str, Difference]:
    """Compute the features of a random sample of captions again; otherwise as `recompute`."""
    _check_origin(stored, labeller, texts)
    found: dict[str, list[Difference]] = {}
    chosen = np.random.default_rng(seed).permutation(len(texts.captions))[:rows]
    for number in progress(sorted(chosen.tolist()), "recompute (captions)"):
        key, row = texts.places[number]
        again = encode_texts(labeller, [texts.captions[number]], stored.manifest.config["precision"])
        for name, value in again.tensors().items():
            found.setdefault(name, []).append(_difference(stored.tensor(key, name, row), value[0]))
    return _summed(stored, found)


def _difference(kept: Tensor, given: Tensor) -> Difference:
    return Difference((kept.float() - given.float()).abs().max().item(), given.float().abs().max().item())


def _summed(stored: StoredLabels, found: dict[str, list[Difference]]) -> dict[str, Difference]:
    """Return the largest deviation by name; raise `ArtefactError` where rounding does not explain it."""
    config = stored.manifest.config
    differences = {
        name: Difference(max(d.largest for d in all_of), max(d.scale for d in all_of)) for name, all_of in found.items()
    }
    allowed = COMPUTED[config["precision"]] + STORED[config["storage"]]
    for name, difference in differences.items():
        if not difference.largest <= allowed * difference.scale:
            raise ArtefactError(
                f"{stored.path}: {name} is {difference.largest:.2g} off what the teacher gives (largest value "
                f"{difference.scale:.2g}), more than rounding explains; the set is not this teacher's: label again"
            )
    return differences


def _check_origin(stored: StoredLabels, labeller: Labeller, given: FrameSet | Texts) -> None:
    teacher, parents = stored.config.teacher, stored.manifest.parents
    kind, found = ("texts", given.id) if isinstance(given, Texts) else ("frames", given.manifest.id)
    if parents != {kind: found}:
        expected = " and ".join(f"{name} {each[:12]}" for name, each in parents.items())
        raise ArtefactError(
            f"{given.path}: {kind} {found[:12]}, but {stored.path} was made from {expected}; give those"
        )
    if labeller.id != teacher:
        raise ArtefactError(
            f"{stored.path}: was made by teacher {short_id(teacher)}, but the one given is {short_id(labeller.id)}; "
            f"give that teacher"
        )


@torch.inference_mode()
def _again(stored: StoredLabels, encoder: Encoder, video: int, caption: int | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the stored and the recomputed tensors of one caption and its video, by name; None: of the video alone."""
    about = encoder.frames.videos[video]
    if caption is None:
        own = encoder.videos([[video]]).tensors() if "features" in stored.tiers else {}
        return {name: (stored.tensor(about.key, name), value[0]) for name, value in own.items()}
    others, kept_scores = [], torch.empty(0)
    if "topk" in stored.tiers:
        listed, scores, best, _ = (stored.tensor(about.key, name, caption) for name in SHORTLIST)
        others, kept_scores = [[number] for number in listed[1:2].tolist()], best + scores[:2].float()
    features = encoder.videos([[video], *others])
    own, text = features[slice(0, 1)], encoder.encode_texts([about.captions[caption].text])
    given = {"relevance": encoder.relevance(video, text, own)} if "relevance" in stored.tiers else {}
    if "features" in stored.tiers:
        given |= text.tensors() | own.tensors()
    kept = {name: stored.tensor(about.key, name, None if name in PER_VIDEO else caption) for name in given}
    pairs = {name: (kept[name], value[0]) for name, value in given.items()}
    if "topk" in stored.tiers:
        logits = encoder.interaction(text.to(encoder.device), features.to(encoder.device))
        pairs[SHORTLIST[1]] = kept_scores, logits[0].cpu()
    return pairs
