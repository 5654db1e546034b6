"""GLSCL's fixtures: the two scores, the concepts, the losses and their gradients; its frame numbers."""

import re

import torch
from torch import Tensor, nn

from distill.data.sampler import GlsclSampler
from distill.losses import consistency, diversity
from distill.model import reading
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.queries import QueryConfig
from distill.model.similarity import mean_pool
from distill.model.temporal import TemporalConfig
from distill.training.lossconfig import ContrastiveConfig, LossConfig
from distill.training.objective import total_loss
from parity.fixture import Fixture
from parity.modules import CLIP, Outputs, Runs, build_on, load, log_scale
from students.glscl import Glscl, GlsclConfig, local_score

YES = {"1|[Tt]rue": True, "0|[Ff]alse": False}
ALONE = LossConfig(contrastive=ContrastiveConfig(weight=1.0))  # the model's own losses, without labels


def training(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """The scores and losses of a batch, and what the queries learn from them."""
    model, text, video = given(fixture, dtype)
    model.clip.logit_scale.log.fill_(log_scale(fixture))
    with torch.enable_grad():
        losses = total_loss(model.training_scores(text, video, None), [], ALONE)
        names = {"retrieval": "contrastive", "IDL": "idl", "ICL": "icl", "total": "total"}  # theirs -> ours
        found = {f"loss_{theirs}": losses[ours] for theirs, ours in names.items()}
        for key in fixture.part("output.grad"):
            part, to = key.split(".")
            assert to == "spatial_queries", f"a gradient of {to}"
            (found[f"grad.{key}"],) = torch.autograd.grad(
                found[f"loss_{part}"], model.queries.queries, retain_graph=True
            )
    found = {name: value.detach() for name, value in found.items()} | scores(model, text, video)
    yield "", found | {"logits": found["similarity"]}


def evaluation(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """The scores, whole and a video at a time."""
    model, text, video = given(fixture, dtype)
    cells = reading.MAX_CELLS
    for label, limit in (("", cells), ("a video at a time", 1)):
        reading.MAX_CELLS = limit
        found = scores(model, text, video)
        reading.MAX_CELLS = cells
        yield label, found


def scores(model: Glscl, text: TextFeatures, video: VideoFeatures) -> Outputs:
    """Global and local score, their sum, and the concepts of which the local one is made."""
    text, video = model.read_text(text), model.read_video(video)
    assert text.concepts is not None and video.concepts is not None
    return {
        "s1": model.global_score(text, video),
        "s2": local_score(text, video),
        "similarity": model.similarity(text, video),
        "video_queries": video.concepts,
        "text_queries": text.concepts,
    }


def given(fixture: Fixture, dtype: torch.dtype) -> tuple[Glscl, TextFeatures, VideoFeatures]:
    """The model on given contextual frames and words, and the features that it makes of them."""
    about = fixture.hyper
    fixture.constant("ln_eps", nn.LayerNorm(1).eps)
    fixture.constant("idl_margin", diversity.MARGIN)
    fixture.constant("r_target", consistency.TARGET)
    # A padded frame never counts in a cosine, whether it is left out of the softmax or multiplied by zero after it.
    fixture.switch("gim_mask", {"after softmax": None, "inside.*": None}, "after softmax")
    fixture.switch("lim_padding_mask", {"off": None}, "off")
    by_queries = "sum over batch divided by Q"
    over = fixture.switch("icl_norm", {f"{by_queries}.*": "queries", ".* divided by B": "batch"}, by_queries)
    config = GlsclConfig(
        kind="glscl",
        clip=CLIP,
        temporal=TemporalConfig(layers=1, heads=1, init="normal"),
        queries=QueryConfig(
            count=about["queries"],
            layers=about["decoder_layers"],
            heads=about["decoder_heads"],
            feed_forward=about["ffn"],
            share_queries=fixture.switch("query_share", YES, "1"),
            share_decoder=fixture.switch("cross_att_share", YES, "1"),
        ),
        temperature=float(about["temp"]),
        local_weight=float(about["loss2_weight"]),
        alpha=float(about.get("alpha", 0)),
        beta=float(about.get("beta", 0)),
        consistency=over,
    )
    frames, real = fixture.input("frames", dtype), fixture.real()
    model = build_on(Glscl, config, frames)
    load(model.queries, fixture, "glscl", "queries.")
    text = TextFeatures(sentence=fixture.input("text_cls", dtype), words=fixture.input("words", dtype))
    return model.to(dtype).eval(), text, VideoFeatures(vector=mean_pool(frames, real), frames=frames, real=real)


def whole(model: Glscl, fixture: Fixture, text: TextFeatures, video: VideoFeatures) -> Outputs:
    """Everything of a whole model. Their relevance is the weight of every frame of the pairs in the global score."""
    fixture.switch("text_pad_mask", {"on": None}, "on")
    fixture.switch("lim_padding_mask", {"off": None}, "off")
    assert video.frames is not None and video.real is not None
    _, words = model.clip.text(fixture.tensors["input.input_ids"])
    pairs = min(len(text), len(video))
    gate: Tensor = model.training_scores(text[:pairs], video[:pairs], None).frames["gate"]
    return scores(model, text, video) | {
        "text_embedding": text.sentence,
        "word_embedding": words,
        "contextual_frames": video.frames,
        "relevance": gate.softmax(-1) * video.real[:pairs],
    }


def frames(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """Frame numbers of whole videos and of clips, -1 where there is none; and the table that the sidecar prints."""
    rate, given = fixture.hyper["sample_fps"], fixture.part("input")
    videos = list(zip(given["num_frames"].tolist(), given["fps"].tolist(), strict=True))
    clips = zip(
        given["clip.num_frames"].tolist(), given["clip.fps"].tolist(), given["clip.start_end"].tolist(), strict=True
    )
    cuts = [(count, fps, *map(float, ends)) for count, fps, ends in clips]
    found: Outputs = {}
    for name, expected in fixture.outputs().items():
        kind, number = re.fullmatch(r"glscl\.(clip\.)?F(\d+)", name).groups()
        sampler = GlsclSampler(kind="glscl", fps=rate, num_frames=int(number))
        rows = [sampler.indices(*asked) for asked in (cuts if kind else videos)]
        found[name] = torch.tensor([row + [-1] * (expected.shape[1] - len(row)) for row in rows])
    for row in fixture.sidecar["table"]:
        for name in row.keys() - {"num_frames", "fps"}:
            sampler = GlsclSampler(kind="glscl", fps=rate, num_frames=int(name.removeprefix("F")))
            assert sampler.indices(row["num_frames"], row["fps"]) == row[name], f"table: {row}"
    yield "", found
