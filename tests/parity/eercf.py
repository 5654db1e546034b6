"""EERCF's fixtures: the five similarities one by one, the constraint, losses and gradients, two-stage scores.

Every number comes out of the model's public methods: one similarity is what is left when the weights of the others are
zero.
"""

import re

import torch
from torch import Tensor

from distill.model import reading
from distill.model.features import TextFeatures, VideoFeatures
from distill.training.lossconfig import ContrastiveConfig, LossConfig
from distill.training.objective import total_loss
from parity.fixture import Fixture
from parity.modules import CLIP, Outputs, Runs, build_on, encode, load, temporal_config
from students import eercf
from students.eercf import Eercf, EercfConfig, LossWeights, RerankWeights

SIMILARITIES = eercf.WEAK + eercf.STRONG
CONSTRAINTS = ("video", "frame", "patch")
ALONE = LossConfig(contrastive=ContrastiveConfig(weight=1.0))  # the model's own losses, without labels
PATCH_TERMS = LossWeights(strong_patch=0.5, constraint_patch=0.001)  # of `loss_total_with_patch_terms`


def training(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """All that training sees: the similarities, the constraints, the losses, and the gradients of the two matrices."""
    fixture.switch("gate", {"paired text, detached": None}, "paired text, detached")
    model, text, video = given(fixture, dtype)
    found: Outputs = {"coarse_video_embedding": video.vector}
    for name in SIMILARITIES:
        model.weights = only(name)
        scores = model.training_scores(text, video, None)
        found[name] = scores.contrasts[name in eercf.STRONG][1]
    for name in CONSTRAINTS:
        model.weights = only(f"constraint_{name}")
        found[f"pearson_{name}"] = model.training_scores(text, video, None).own["constraint"]
    for name, weights in (("loss_weak", LossWeights(strong=0.0)), ("loss_strong", LossWeights(weak=0.0))):
        model.weights = weights
        share = weights.weak + weights.strong
        found[name] = total_loss(model.training_scores(text, video, None), [], ALONE)["contrastive"] / share
    model.weights = PATCH_TERMS
    found["loss_total_with_patch_terms"] = total_loss(model.training_scores(text, video, None), [], ALONE)["total"]
    model.weights = LossWeights()
    matrices = {"global_mat_weight": model.global_proj.weight, "frame_logit_weight": model.frame_cross.weight}
    with torch.enable_grad():
        found["loss_total"] = total_loss(model.training_scores(text, video, None), [], ALONE)["total"]
        gradients = torch.autograd.grad(found["loss_total"], list(matrices.values()))
    yield "", found | {f"grad.{name}": value for name, value in zip(matrices, gradients, strict=True)}


def evaluation(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """Rank, all at once and a video at a time; without `start_patch_eval` strong_patch is strong_frame there."""
    patches = fixture.switch("start_patch_eval", {"(?i)true": True, "(?i)false": False}, "False")
    model, text, video = given(fixture, dtype)
    cells = reading.MAX_CELLS
    for label, limit in (("", cells), ("a video at a time", 1)):
        reading.MAX_CELLS = limit
        found = matrices(model, text, video) | two_stages(fixture, model, text, video)
        reading.MAX_CELLS = cells
        yield label, found if patches else found | {"strong_patch": found["strong_frame"]}


def matrices(model: Eercf, text: TextFeatures, video: VideoFeatures) -> Outputs:
    """The five similarities of evaluation, as logits."""
    published, found = model.rerank, {}
    for name in SIMILARITIES:
        model.rerank = RerankWeights.model_validate({n: float(n == name) for n in SIMILARITIES})
        found[name] = model.logits(text, video)
    model.rerank = published
    return found


def two_stages(fixture: Fixture, model: Eercf, text: TextFeatures, video: VideoFeatures) -> Outputs:
    """For every text the k best videos by the index vectors get 100 more than their reranked score."""
    coarse = model.clip.logit_scale(model.query_vectors(text) @ model.index_vectors(video).T)
    found = {}
    for name in fixture.part("output"):
        number = re.fullmatch(r"two_stage_k(\d+)", name)
        if number:
            best = coarse.topk(int(number[1]), dim=1).indices
            reranked = model.logits(text, video).gather(1, best)
            found[name] = coarse.scatter(1, best, 100 + reranked)
    return found


def given(fixture: Fixture, dtype: torch.dtype) -> tuple[Eercf, TextFeatures, VideoFeatures]:
    """The model on towers that give the stored frames and patches, and the features of both sides."""
    fixture.constant("tib_frame_temperature", eercf.FRAME_GATE)
    fixture.constant("tib_patch_temperature", eercf.PATCH_GATE)
    fixture.constant("weak_temperature", eercf.WEAK_TEMPERATURE)
    frames, patches = fixture.input("frames", dtype), fixture.input("patches", dtype)
    config = EercfConfig(
        kind="eercf",
        clip=CLIP,
        temporal=temporal_config(fixture),
        frames=frames.shape[1],
        mask_padding=fixture.switch("softmax_mask", {"off": False, "on": True}, "off"),
    )
    model = build_on(Eercf, config, torch.cat([frames[:, :, None], patches], dim=2))
    load(model, fixture, "eercf")
    text, video = encode(model, fixture, dtype)
    return model, text, video


def only(name: str) -> LossWeights:
    """Weights of training that leave one similarity or one constraint."""
    return LossWeights.model_validate({n: float(n in (name, "weak", "strong")) for n in LossWeights.model_fields})


def whole(model: Eercf, fixture: Fixture, text: TextFeatures, video: VideoFeatures) -> Outputs:
    """Everything of a whole model; the authors call the first stage its similarity."""
    fixture.switch("softmax_mask", {"off": None}, "off")
    assert video.frames is not None and video.patches is not None
    found = matrices(model, text, video) | two_stages(fixture, model, text, video)
    pairs = min(len(text), len(video))
    gate: Tensor = model.training_scores(text[:pairs], video[:pairs], None).frames["gate"]
    return found | {
        "text_embedding": text.sentence,
        "frame_embedding": video.frames,
        "patch_embedding": video.patches,
        "video_embedding": video.vector,
        "similarity": found["video"],
        "relevance": gate.softmax(-1),
    }
