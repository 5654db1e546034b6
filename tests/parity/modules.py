"""The outputs of one module's fixture, from this project's code: heads on given features, selection, shift.

A whole model runs wherever there is one: its towers are made to give the stored frame features, and what is tested
begins behind them.
"""

from collections.abc import Iterator
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from distill.conversion.authors import Checkpoint
from distill.model.afa import AfaConfig
from distill.model.attention import SHIFT_DIVISOR, TokenAttention, shift_tokens
from distill.model.contract import RetrievalConfig, RetrievalModel, Teacher
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.logit_scale import LogitScale
from distill.model.selection import TokenSelector, perturbed_topk, topk_indices
from distill.model.similarity import mean_pool, unit
from distill.model.temporal import LAYER_NORM_EPS, PADDED_KEY, TemporalConfig, TemporalTransformer
from distill.model.towers import ClipConfig, Towers
from parity.fixture import Fixture
from students.clip4clip import Clip4Clip, Clip4ClipConfig
from students.teachclip import TeachClip, TeachClipConfig
from teachers.ts2net import Ts2Net, Ts2NetConfig
from teachers.xclip import XClip, XClipConfig
from teachers.xpool import XPoolInteraction

Outputs = dict[str, Tensor]
Runs = Iterator[tuple[str, Outputs]]  # what was varied, if anything, and what came out
CLIP = ClipConfig(model="unused")
Model = TypeVar("Model", bound=RetrievalModel)


class Given(nn.Module):
    """Stands where a part of a model would be, and gives what is stored whatever it is asked."""

    def __init__(self, stored: Tensor):
        super().__init__()
        self.stored = stored

    def forward(self, *_: object) -> Tensor:
        return self.stored


def temporal_frames(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """The temporal transformer alone."""
    temporal = TemporalTransformer(fixture.tensors["input.frames"].shape[-1], temporal_config(fixture))
    load(temporal, fixture, "clip4clip", "temporal.")
    frames = fixture.input("frames", dtype)
    contextual = temporal.to(dtype)(frames, fixture.real())
    yield "", {"contextual_frames": contextual, "transformer_out": contextual - frames}


def clip4clip(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """CLIP4Clip behind the towers, either head."""
    frames = fixture.input("frames", dtype)
    has_temporal = any(name.startswith("transformerClip.") for name in fixture.part("weight"))
    config = Clip4ClipConfig(kind="clip4clip", clip=CLIP, head="meanP")
    if has_temporal:
        config = Clip4ClipConfig(kind="clip4clip", clip=CLIP, head="seqTransf", temporal=temporal_config(fixture))
    model = build_on(Clip4Clip, config, frames)
    load(model, fixture, "clip4clip")
    text, video = encode(model, fixture, dtype)
    yield "", {"logits": model.logits(text, video), "video_embedding": unit(video.vector)}


def teachclip(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """TeachCLIP behind the towers, and the mean over frames that it does not use."""
    masked = fixture.switch("afa_mask", {"off.*": False, "on.*": True}, "off")
    afa = AfaConfig(pool_temperature=float(fixture.hyper["pool_temperature"]), mask_padding=masked)
    config = TeachClipConfig(kind="teachclip", clip=CLIP, temporal=temporal_config(fixture), afa=afa)
    frames = fixture.input("frames", dtype)
    model = build_on(TeachClip, config, frames)
    load(model, fixture, "teachclip")
    text, video = encode(model, fixture, dtype)
    assert video.relevance is not None
    contextual = model.temporal(frames, fixture.real())
    mean = VideoFeatures(vector=mean_pool(contextual, fixture.real()))
    yield (
        "",
        {
            "contextual_frames": contextual,
            "frame_scores": video.relevance,
            "weights_T1": (video.relevance / fixture.hyper.get("loss_temperature", 1.0)).softmax(-1),
            "pooled_embedding": video.vector,
            "logits": model.logits(text, video),
            "meanpool_logits": model.logits(text, mean),
        },
    )


def xclip(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """X-CLIP behind the towers: each of its four terms is what is left when the matrices of the others are zero."""
    frames, num_words = fixture.input("frames", dtype), fixture.tensors["input.words"].shape[1]
    config = XClipConfig(
        kind="xclip",
        clip=CLIP,
        temporal=temporal_config(fixture),
        words=num_words,
        frames=frames.shape[1],
        temperature=float(fixture.hyper["tau"]),
    )
    model = build_on(XClip, config, frames)
    load(model, fixture, "xclip")
    text, video = encode(model, fixture, dtype)
    found = {"logits": model.logits(text, video), "video_embedding": video.vector}
    found["relevance"] = paired_relevance(model, text, video, fixture.number("softlabel_temp", 1.0))
    ends = {  # the last matrix on the way of every term
        "sentence_video": ("global_proj",),
        "word_video": ("word_cross",),
        "sentence_frame": ("frame_cross",),
        "word_frame": ("word_fine2", "frame_fine2"),
    }
    weights = {name: parameter.clone() for name, parameter in model.interaction.named_parameters()}
    for term in ends:
        for name, parameter in model.interaction.named_parameters():
            others = any(name in end for other, end in ends.items() if other != term)
            parameter.copy_(torch.zeros_like(parameter) if others else weights[name])
        found[term] = 4 * model.logits(text, video)
    found["aosm_unscaled"] = 4 * model.similarity(text, video)  # the last term is that one
    yield "", found


def ts2net(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """TS2-Net behind the token selection, with the mask of the fixture, or with both where that must not matter."""
    masks = {"tiled.*": ["tiled"], "interleaved.*": ["interleaved"], "irrelevant.*": ["tiled", "interleaved"]}
    tokens, real = fixture.input("tokens", dtype), fixture.real()
    per_frame = tokens.shape[1] // real.shape[1]
    for mask in fixture.switch("ts2_mask", masks, "tiled"):
        config = Ts2NetConfig(
            kind="ts2net",
            clip=CLIP,
            temporal=temporal_config(fixture),
            frames=real.shape[1],
            shift_layers=0,
            selected=per_frame - 1,
            noise="zero",
            mask=mask,
        )
        model = build_on(Ts2Net, config, tokens.unflatten(1, (-1, per_frame)))
        model.selector = Given(tokens.reshape(-1, per_frame, tokens.shape[-1]))
        load(model, fixture, "ts2net")
        text, video = encode(model, fixture, dtype)
        assert video.frames is not None and video.real is not None
        found = {
            "similarity": model.logits(text, video),
            "contextual_cls_frames": video.frames,
            "mask_at_cls_slots": video.real.long(),
            "relevance": paired_relevance(model, text, video, fixture.number("softlabel_temp", 1.0)),
        }
        yield f"{mask} mask", found


def token_shift(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """TS2-Net's token shift and the attention behind it."""
    fixture.constant("n_div", SHIFT_DIVISOR)
    shifts = fixture.switch("ts2_shift", {"on": True, "off": False}, "on")
    tokens, num_frames = fixture.input("tokens", dtype), fixture.hyper["frames"]
    attention = nn.MultiheadAttention(tokens.shape[-1], fixture.hyper["heads"], batch_first=True)
    attention.load_state_dict(
        {name.split("attn.")[1].removeprefix("net."): t for name, t in fixture.part("weight").items()}
    )
    shift = partial(shift_tokens, num_frames=num_frames) if shifts else None
    attention = TokenAttention(attention, shift).to(dtype)
    shifted = shift_tokens(tokens, num_frames) if shifts else tokens
    video = torch.arange(num_frames * tokens.shape[1], dtype=dtype).view(
        num_frames, -1, 1
    )  # every token another number
    moved = (shift_tokens(video, num_frames) if shifts else video)[..., 0] - video[..., 0]
    yield (
        "",
        {
            "shifted": shifted,
            "attention_out": attention(tokens)[0],
            "tokens_from_previous": moved[-1].nonzero()[:, 0],  # the last frame has no next one
            "tokens_from_next": moved[0].nonzero()[:, 0],  # the first no previous one
            "changed_mask_first_video": (shifted != tokens)[:num_frames].any(-1),
        },
    )


def token_scores(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """The score of every token."""
    tokens = fixture.input("tokens", dtype)
    yield "", {"scores": selector(fixture, dtype, tokens.shape[1] - 1, kept=1).scores(tokens)}


def selection(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """The tokens that are kept, without noise."""
    fixture.switch("ts2_noise", {"zero": None}, "zero")
    kept = fixture.hyper["topk"]
    tokens = fixture.input("tokens", dtype)
    videos = tokens.unflatten(1, (-1, fixture.hyper["tokens_per_frame"]))  # video frame token dim
    select = selector(fixture, dtype, videos.shape[2] - 1, kept)
    chosen = select(videos.flatten(0, 1)).unflatten(0, videos.shape[:2])
    places = topk_indices(select.scores(videos.flatten(0, 1))[:, 1:], kept)
    yield "", {"selected_tokens": chosen.flatten(1, 2), "patch_indices": places}


def perturbed(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """The perturbed top-k on given noise, and its gradient."""
    fixture.switch("ts2_noise", {"given": None}, "given")
    scores = fixture.input("scores", dtype).requires_grad_()
    fixture.constant("samples", fixture.tensors["input.noise"].shape[1])
    with torch.enable_grad():
        found = perturbed_topk(scores, fixture.input("noise", dtype), fixture.hyper["k"], float(fixture.hyper["sigma"]))
        (gradient,) = torch.autograd.grad(found, scores, fixture.input("grad_indicators", dtype))
    yield "", {"indicators": found.detach(), "grad_scores": gradient}


def xpool(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """X-Pool's head."""
    fixture.constant("heads", 1)
    fixture.constant("ln_eps", nn.LayerNorm(1).eps)
    interaction = XPoolInteraction(fixture.tensors["input.frames"].shape[-1], dropout=0.3).eval()
    load(interaction, fixture, "xpool", "interaction.")
    interaction.to(dtype).logit_scale.log.fill_(log_scale(fixture))
    sentence, frames = fixture.input("text", dtype), fixture.input("frames", dtype)
    text, video = TextFeatures(sentence=sentence), VideoFeatures(vector=frames.mean(1), frames=frames)
    pairs = min(len(sentence), len(frames))
    yield (
        "",
        {
            "pooled": interaction.pooling(sentence, frames),
            "similarity": interaction(text, video),
            "relevance": interaction.relevance(text[:pairs], video[:pairs]).softmax(-1),
        },
    )


def build_on(kind: type[Model], config: RetrievalConfig, frames: Tensor) -> Model:
    """A model on the smallest towers, whose frame features are these."""
    vision = {"image_size": 8, "patch_size": 1, "width": 8, "layers": 1, "head_width": 8}
    text = {"context_length": 4, "vocab_size": 4, "width": 8, "layers": 1, "heads": 1}
    architecture = {"embed_dim": frames.shape[-1], "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    model = kind(config, Towers.from_architecture(architecture))
    model.clip.encode_frames = lambda *_: frames
    return model


def encode(model: RetrievalModel, fixture: Fixture, dtype: torch.dtype) -> tuple[TextFeatures, VideoFeatures]:
    """The model in this precision with the fixture's logit scale, and the features of both sides."""
    model.to(dtype).eval()
    (scale,) = [module for module in model.modules() if isinstance(module, LogitScale)]
    scale.log.fill_(log_scale(fixture))
    sentence = fixture.input("sentence" if "input.sentence" in fixture else "text", dtype)
    words = fixture.input("words", dtype) if "input.words" in fixture else None
    real = fixture.real()
    return TextFeatures(sentence=sentence, words=words), model.encode_video(torch.zeros(*real.shape, 1, 1), real)


def paired_relevance(model: Teacher, text: TextFeatures, video: VideoFeatures, temperature: float) -> Tensor:
    """A teacher's soft label of the frames of the pairs: caption i with video i."""
    pairs = min(len(text), len(video))
    return (model.interaction.relevance(text[:pairs], video[:pairs]) / temperature).softmax(-1)


def log_scale(fixture: Fixture) -> float:
    """The logarithm of the factor that makes logits of cosines."""
    if "input.logit_scale" in fixture:
        return fixture.tensors["input.logit_scale"].item()
    return float(fixture.hyper["logit_scale"])


def temporal_config(fixture: Fixture) -> TemporalConfig:
    """Sizes of the temporal transformer, from its weights; only the heads do not show there."""
    fixture.constant("ln_eps", LAYER_NORM_EPS)
    fixture.constant("mask_value", PADDED_KEY)
    fixture.constant("mlp_ratio", 4)
    blocks = {name.split(".")[2] for name in fixture.part("weight") if name.startswith("transformerClip.resblocks.")}
    positions = len(fixture.tensors["weight.frame_position_embeddings.weight"])
    return TemporalConfig(layers=len(blocks), heads=fixture.hyper.get("heads"), positions=positions, init="normal")


def selector(fixture: Fixture, dtype: torch.dtype, num_patches: int, kept: int) -> TokenSelector:
    """TS2-Net's selector without noise."""
    width = fixture.tensors["weight.visual_token_selector.score_predictor.in_conv.0.weight"].shape[0]
    found = TokenSelector(width, num_patches, kept, "zero")
    load(found, fixture, "ts2net", "selector.")
    return found.to(dtype).eval()


def load(module: nn.Module, fixture: Fixture, kind: str, prefix: str = "") -> None:
    """The fixture's weights, all of them, by the converter's table of names; `prefix` is the module's place in a model.

    Module fixtures hold neither towers nor the logit scale as a weight.
    """
    checkpoint = Checkpoint(fixture.path, kind, fixture.part("weight"))
    names = [name for name in module.state_dict() if not name.startswith("clip.") and "logit_scale" not in name]
    unused = checkpoint.tensors.keys() - {theirs for name in names for theirs in checkpoint.theirs(prefix + name)}
    assert not unused, f"weights that no part of the model has: {', '.join(sorted(unused))}"
    module.load_state_dict({name: checkpoint.tensor(prefix + name) for name in names}, strict=False)
