"""Prompt Switch: the authors' numbers, prompts and captions against NumPy, padding, labels, frames, recipes, files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import within_ulps
from conftest import World, launch, python, steps
from hypothesis import given
from hypothesis import strategies as st
from labelling import random_teacher, write_labels
from open_clip.tokenizer import SimpleTokenizer
from parity.prompt_switch import CAPTIONER
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

import distill.release
from distill.config import read_recipe
from distill.conversion.authors import Checkpoint
from distill.conversion.convert import convert
from distill.conversion.names import TRANSPOSED
from distill.conversion.options import Options
from distill.data.datasets import VideoDataset
from distill.data.frames import FrameSet
from distill.data.labelset import LabelSet
from distill.data.sampler import SAMPLERS, PromptSwitchSampler
from distill.data.tokens import Tokenizer
from distill.errors import ExpectedError, RecipeError, VideoError
from distill.evaluation.metrics import ranks_t2v, ranks_v2t, summarise
from distill.losses.captioning import caption_loss, captioning
from distill.model.captioner import LIGHT_WORDS, CaptionConfig, frames_read, light_tokens, next_words
from distill.model.decoder import DecoderLayer
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.pooling import CrossAttention
from distill.model.prompts import repeat_last, switch_prompts
from distill.model.similarity import cosine, mean_pool, unit
from distill.model.towers import ClipConfig, Towers
from distill.recipe import Recipe
from distill.release.export import export_clip
from distill.retrieval.gallery import Gallery
from distill.retrieval.indexing import build_gallery
from distill.retrieval.moment import best_moment
from distill.training.lossconfig import ContrastiveConfig, LossConfig
from distill.training.objective import total_loss
from distill.training.optim import OptimConfig, build_optimizer
from distill.training.teachers import TeacherScores
from students.prompt_switch import PromptSwitch, PromptSwitchConfig

GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "golden_prompt_switch.json").read_text())
CLIP = ClipConfig(model="unused")
ALONE = LossConfig(contrastive=ContrastiveConfig(weight=1.0))
SMALL = CaptionConfig(heads=2, feed_forward=64, light_words=[])
ARCHITECTURE = {  # of the golden rows
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 8, "patch_size": 4, "width": 48, "layers": 3, "head_width": 12, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2, "mlp_ratio": 2.0},
}


def det(*shape: int, a: float = 0.37, b: float = 0.0) -> Tensor:
    """Deterministic values: the recipe of the golden rows."""
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * a + b).reshape(shape)


def authors_names(ours: str) -> tuple[str, ...]:
    """The authors' names of one of our tensors, by the converter's table."""
    for stem, theirs in CAPTIONER.items():
        if ours.startswith(stem):
            return (ours.replace(stem, theirs),)
    return Checkpoint(Path("unused"), "prompt_switch", {"clip.vision_model.": torch.ones(1)}).theirs(ours)


def authors_weights(model: PromptSwitch) -> dict[str, Tensor]:
    """Deterministic weights under the authors' names, in the order of which they are made."""
    shapes: dict[str, torch.Size] = {}
    for ours, tensor in model.state_dict().items():
        theirs = authors_names(ours)
        shape = tensor.shape if len(theirs) == 1 else torch.Size([tensor.shape[0] // 3, *tensor.shape[1:]])
        shape = shape[::-1] if theirs[0].removeprefix("clip.") in TRANSPOSED else shape
        shapes |= dict.fromkeys(theirs, torch.Size([]) if ours == "clip.logit_scale.log" else shape)
    filled = {}
    for k, (name, shape) in enumerate(sorted(shapes.items())):
        value = 0.05 * torch.sin(0.1 * torch.arange(shape.numel()).double() + k).reshape(shape)
        filled[name] = value + 1 if name.endswith("weight") and len(shape) == 1 else value
    return filled


def golden_model(frames: int) -> PromptSwitch:
    config = PromptSwitchConfig(kind="prompt_switch", clip=CLIP, prompts=3, frames=frames, captions=SMALL)
    model = PromptSwitch(config, Towers.from_architecture(ARCHITECTURE)).double()
    weights = authors_weights(model)
    assert len(weights) == 141
    model.load_state_dict(arrived(model, weights))
    return model.eval()


def arrived(model: PromptSwitch, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' weights under our names."""
    state = {}
    for ours, tensor in model.state_dict().items():
        names = authors_names(ours)
        whole = torch.cat([weights[name] for name in names]) if len(names) > 1 else weights[names[0]]
        state[ours] = (whole.T if names[0].removeprefix("clip.") in TRANSPOSED else whole).reshape(tensor.shape)
    return state


def agrees(found: Tensor, row: dict) -> bool:
    """As close as the row is printed: all numbers, or the sums and the ends."""
    found = found.detach()
    assert list(found.shape) == row["shape"]
    if "data" in row:
        return torch.allclose(found.flatten(), torch.tensor(row["data"], dtype=torch.float64), atol=1e-9, rtol=0)
    flat = found.flatten()
    ends = torch.cat([flat.sum()[None], flat.abs().sum()[None], flat[:8], flat[-8:]])
    expected = torch.tensor([row["sum"], row["abs_sum"], *row["first8"], *row["last8"]], dtype=torch.float64)
    return torch.allclose(ends, expected, atol=1e-9, rtol=1e-11)


def test_row_17_a_block_with_switched_prompts():
    block = golden_model(3).clip.visual.transformer.resblocks[0]
    assert agrees(block(det(6, 8, 48, a=0.37, b=0.1)), GOLDEN["P3"]["out"])


@pytest.mark.parametrize(("row", "frames"), [("P1", 3), ("P2", 6)])
def test_rows_18_and_19_the_tower(row: str, frames: int):
    model, kept = golden_model(frames), {}
    visual = model.clip.visual
    visual.ln_post.register_forward_hook(lambda module, given, out: kept.update(pooled=out))
    visual.transformer.resblocks[-1].register_forward_hook(lambda module, given, out: kept.update(last_hidden=out))
    images = det(2 * frames, 3, 8, 8, a=0.21, b=0.5)
    kept["feat"] = visual(images, prompts=model.prompts(len(images)))
    assert all(agrees(kept[name], expected) for name, expected in GOLDEN[row].items())


def test_rows_20_and_21_a_training_step():
    model, row = golden_model(3), GOLDEN["P4"]
    ids = torch.tensor([[48, 3, 7, 9, 49, 49], [48, 5, 6, 49, 49, 49]])
    model.captioner.word_weights[[3, 7, 48, 49]] = 0.25
    text = model.encode_text(ids)
    video = model.encode_video(det(2, 3, 3, 8, 8, a=0.21, b=0.5), torch.ones(2, 3, dtype=torch.bool))
    losses = total_loss(model.training_scores(text, video, model.encode_pair(ids, text, video)), [], ALONE)
    said = torch.ones(2, 5, dtype=torch.bool)
    logits, _ = model.captioner(model.clip.text.embed(ids[:, :-1]), video.frames, said)
    assert agrees(unit(text.sentence), row["text"]) and agrees(video.vector, row["pooled"])
    assert agrees(logits.unflatten(0, (2, 5)), row["pred_logits"])
    assert losses["caption"].item() == pytest.approx(row["caption_loss"], abs=1e-9)
    assert agrees(model.similarity(text, video), GOLDEN["P5"]["sims"])
    assert losses["contrastive"].item() == pytest.approx(GOLDEN["P5"]["loss"], abs=1e-9)


def test_row_22_two_clips_meet_in_the_mean():
    model = golden_model(3)
    frames, real = det(2, 6, 3, 8, 8, a=0.21, b=0.5), torch.ones(2, 6, dtype=torch.bool)
    video = model.encode_video(frames, real)
    halves = [model.encode_video(part, real[:, :3]) for part in frames.split(3, dim=1)]
    assert (video.vector - (halves[0].vector + halves[1].vector) / 2).abs().max() < 1e-15
    assert agrees(video.vector, GOLDEN["P6"]["pooled"]) and agrees(unit(video.frames), GOLDEN["P6"]["frames"])


def test_row_23_frames_read_by_two_heads():
    found = golden_reader()(*rows_23_and_24())
    assert found.shape == (4, 3, 16) and found.sum().item() == pytest.approx(0.1923290643840474, abs=1e-9)
    assert found[1, 2, 3].item() == pytest.approx(1.4360258445740672, abs=1e-9)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"pooling": "mean"}, -0.6171954265614417),
        ({"pooling": "top_k", "k": 2}, 1.4570361835188002),
        ({"pooling": "attention"}, 1.478792376249709),
    ],
    ids=["mean", "top k", "attention"],
)
def test_row_24_frames_pooled_without_weights_of_their_own(options: dict, expected: float):
    text, frames = rows_23_and_24()
    every = torch.ones(4, 5, dtype=torch.bool)
    model, video = build(**options), VideoFeatures(vector=mean_pool(frames, every), frames=frames, real=every)
    assert model.similarity(TextFeatures(sentence=text), video).sum().item() == pytest.approx(expected, abs=1e-9)


def rows_23_and_24() -> tuple[Tensor, Tensor]:
    """Sentences and frames."""
    return unit(det(3, 16, a=0.7)), unit(det(4, 5, 16, a=0.31, b=0.2))


def golden_reader() -> CrossAttention:
    """Filled in the order of the authors' names."""
    reader = CrossAttention(16, heads=2, dropout=0.3).double().eval()
    authors = Checkpoint(Path("unused"), "prompt_switch", {})
    names = {authors.theirs(f"cross.{name}")[0]: parameter for name, parameter in reader.named_parameters()}
    assert len(names) == 16 and all(name.startswith("pool_frames.") for name in names)
    with torch.no_grad():
        for k, (name, parameter) in enumerate(sorted(names.items())):
            value = 0.05 * torch.sin(0.1 * torch.arange(parameter.numel()).double() + k).reshape(parameter.shape)
            parameter.copy_(value + 1 if name.endswith("weight") and parameter.ndim == 1 else value)
    return reader


def test_row_25_ranks():
    text, video = det(6, 8, a=0.6), det(3, 8, a=0.45, b=0.3)
    own = torch.tensor([0, 1, 0, 2, 1, 0])
    similarity = cosine(text, video)
    t2v, v2t = summarise(ranks_t2v(similarity, own)), summarise(ranks_v2t(similarity, own))
    assert t2v["R@1"] == pytest.approx(66.6667, abs=1e-4) and t2v["MnR"] == 1.5
    assert v2t["R@1"] == pytest.approx(33.3333, abs=1e-4) and v2t["MnR"] == 2.0


@pytest.mark.parametrize(
    ("count", "num_frames", "expected"),
    [
        (300, 12, [16, 66, 116, 166, 216, 266, 32, 82, 132, 182, 232, 282]),
        (300, 6, [24, 74, 124, 174, 224, 274]),
        (100, 12, [5, 21, 38, 55, 71, 88, 10, 26, 43, 60, 76, 93]),
    ],
)
def test_row_27_frame_numbers(count: int, num_frames: int, expected: list[int]):
    assert PromptSwitchSampler(kind="prompt_switch", num_frames=num_frames).indices(count, 25.0) == expected


def build(**options) -> PromptSwitch:
    """A model with random weights, of which none is zero; `freeze` is the towers'."""
    torch.manual_seed(0)
    towers = Towers.from_architecture(ARCHITECTURE, freeze_vision=options.pop("freeze", None))
    options = {"prompts": 2, "frames": 4, "captions": SMALL, **options}
    model = PromptSwitch(PromptSwitchConfig(kind="prompt_switch", clip=CLIP, **options), towers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("clip.visual.aggregation", "prompts", "afa", "cross")):
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def batch(videos: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Captions of different lengths, videos of 8, 5 and 1 frames padded to 8."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 48, (videos, 8), generator=generator)
    ids[:, 0] = 48
    for row, end in enumerate((7, 5, 2)):
        ids[row, end], ids[row, end + 1 :] = 49, 0
    frames = torch.randint(0, 256, (videos, 8, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return ids, frames, torch.arange(8) < torch.tensor([8, 5, 1])[:videos, None]


def scores(model: PromptSwitch, frames: Tensor, real: Tensor) -> dict[str, Tensor]:
    """Everything that a batch gives the losses, by name."""
    ids, _, _ = batch()
    text, video = model.encode_text(ids), model.encode_video(frames, real)
    found = model.training_scores(text, video, model.encode_pair(ids, text, video))
    return {"logits": found.rankings["logits"], "vector": video.vector, **found.frames, **found.own}


ASKING = [
    {"pooling": "top_k", "k": 3},
    {"pooling": "attention"},
    {"pooling": "transformer", "heads": 2, "dropout": 0.0},
]
POOLED = [{}, {"pooling": "afa"}, *ASKING]


def test_prompts_change_places_within_their_cube():
    tokens = torch.arange(2 * 3 * 5 * 2).view(6, 5, 2).float()  # two cubes of three, two patches
    found = switch_prompts(tokens, 3)
    assert torch.equal(found[:, :2], tokens[:, :2])
    for cube in range(2):
        for frame in range(3):
            for slot in range(3):
                assert torch.equal(found[3 * cube + frame, 2 + slot], tokens[3 * cube + slot, 2 + frame])
    assert torch.equal(switch_prompts(found, 3), tokens)


def test_frames_inform_one_another_within_a_clip_and_no_further():
    model = build().eval()
    _, frames, _ = batch()
    changed = frames.clone()
    changed[0, 0] = 255 - changed[0, 0]
    real = torch.ones(3, 8, dtype=torch.bool)
    with torch.no_grad():
        moved = (model.encode_video(changed, real).frames - model.encode_video(frames, real).frames).abs().amax(-1)
    assert (moved[0, :4] > 1e-6).all() and (moved[0, 4:] == 0).all() and (moved[1:] == 0).all()


def test_aggregation_starts_as_nothing():
    model = build()
    nn.init.zeros_(model.clip.visual.aggregation.attention.out_proj.weight)
    nn.init.zeros_(model.clip.visual.aggregation.attention.out_proj.bias)
    fresh = PromptSwitchConfig(kind="prompt_switch", clip=CLIP, prompts=2, frames=4, captions=None)
    other = PromptSwitch(fresh, Towers.from_architecture(ARCHITECTURE))
    assert not other.clip.visual.aggregation.attention.out_proj.weight.any()
    _, frames, real = batch()
    wide = model.encode_video(frames, real).frames
    model.clip.visual.aggregation.frames = 2
    assert torch.equal(model.encode_video(frames, real).frames, wide)


@pytest.mark.parametrize("heads", [1, 4])
def test_the_decoder_equals_torchs(heads: int):
    torch.manual_seed(0)
    theirs = nn.TransformerDecoderLayer(16, heads, 24, dropout=0.0, batch_first=True, dtype=torch.float64)
    ours = DecoderLayer(16, heads, 24).double()
    ours.load_state_dict(theirs.state_dict())
    queries, memory = torch.randn(2, 5, 16).double(), torch.randn(2, 3, 16).double()
    before, real = torch.ones(5, 5, dtype=torch.bool).tril(), torch.tensor([[True] * 3, [True, False, True]])
    found, attention = ours(queries, memory, before[None], real.unsqueeze(1))
    expected = theirs(queries, memory, tgt_mask=~before, memory_key_padding_mask=~real)
    assert torch.allclose(found, expected, atol=1e-12)
    assert torch.allclose(attention.sum(-1), torch.ones(2, 5).double()) and not attention[1, :, 1].any()


@pytest.mark.parametrize("options", POOLED)
def test_encoding_then_scoring_trains_every_parameter(options: dict):
    model = build(**options)
    ids, frames, real = batch()
    text, video = model.encode_text(ids), model.encode_video(frames, real)
    found = model.training_scores(text, video, model.encode_pair(ids, text, video))
    assert torch.equal(found.rankings["logits"], found.contrasts[0][1])
    assert torch.allclose(found.rankings["logits"], model.similarity(text, video) / 0.07, atol=1e-4)
    recalled = model.query_vectors(text) @ model.index_vectors(video).T
    pooled = unit(video.frames).mean(1) if options.get("pooling") != "afa" else video.vector
    assert torch.allclose(recalled, cosine(text.sentence, pooled), atol=1e-6)
    one_vector = options not in ASKING
    assert torch.allclose(recalled, model.similarity(text, video), atol=1e-6) == one_vector
    assert model.rerank_fields == (() if one_vector else ("frames", "real"))
    relevance = torch.randn(3, 8)
    target = TeacherScores(logits=torch.randn(3, 3), relevance=relevance)
    total_loss(found, [target], LossConfig())["total"].backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", POOLED)
def test_what_stands_for_padding_counts_in_no_score(options: dict, masked: bool):
    model = build(mask_padding=masked, **options).eval()
    _, frames, real = batch()
    changed = frames.clone()
    changed[~real] = 255 - changed[~real]
    with torch.no_grad():
        a, b = scores(model, frames, real), scores(model, changed, real)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("options", POOLED)
def test_by_default_short_videos_end_with_copies_of_their_last_frame(options: dict):
    model = build(**options).eval()
    _, frames, real = batch()
    copies = torch.stack([frames[0], frames[1][[0, 1, 2, 3, 4, 4, 4, 4]], frames[2][[0] * 8]])
    assert torch.equal(repeat_last(frames, real), copies)
    with torch.no_grad():
        a, b = scores(model, frames, real), scores(model, copies, torch.ones_like(real))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("options", POOLED)
def test_masked_padding_changes_nothing_however_much_there_is(options: dict):
    model = build(mask_padding=True, **options).eval()
    _, frames, real = batch()
    longer = torch.cat([frames, frames], 1), torch.cat([real, torch.zeros_like(real)], 1)
    with torch.no_grad():
        short, long = scores(model, frames, real), scores(model, *longer)
        unmasked = scores(build(**options).eval(), frames, real)
    for name in ("logits", "vector", "caption"):
        assert torch.allclose(short[name], long[name], atol=1e-5), name
    assert torch.allclose(long["captioner"].exp()[:, :8], short["captioner"].exp(), atol=1e-6)
    assert (short["captioner"].exp()[~real] < 1e-30).all()
    if "pooling" in short:
        assert (short["pooling"].softmax(-1)[~real] < 1e-30).all()
    assert (short["vector"] - unmasked["vector"]).abs().amax(1).gt(1e-4).tolist() == [False, True, True]


@pytest.mark.parametrize("options", POOLED)
def test_videos_do_not_depend_on_one_another(options: dict):
    model = build(**options).eval()
    ids, frames, real = batch()
    with torch.no_grad():
        together, text = model.encode_video(frames, real), model.encode_text(ids)
        alone = VideoFeatures.cat([model.encode_video(frames[i : i + 1], real[i : i + 1]) for i in range(3)])
        order = torch.tensor([2, 0, 1])
        turned = model.encode_video(frames[order], real[order])
    for name, value in together.tensors().items():
        torch.testing.assert_close(alone.tensors()[name], value, atol=1e-5, rtol=1e-5)
    similarity = model.similarity(text, together)
    assert torch.allclose(model.similarity(text, turned), similarity[:, order], atol=1e-6)


@pytest.mark.parametrize("freeze", [0, 2, 3])
def test_stem_tokens_stand_for_pixels_and_frozen_blocks_still_run(freeze: int):
    model = build(freeze=freeze)
    _, frames, real = batch()
    for mask, ulps in ((torch.ones_like(real), 0), (real, 32)):  # copies of a last frame have other places in the batch
        tokens = model.clip.frames_to_stem(frames, mask)
        assert tokens.shape == (3, 8, 5, 48) and not tokens.requires_grad
        from_pixels, from_stem = (model.encode_video(given, mask) for given in (frames, tokens))
        found = from_stem.tensors()
        assert all(within_ulps(found[name], value, ulps) for name, value in from_pixels.tensors().items())
    from_stem.vector.square().sum().backward()
    assert model.prompts.cube.grad.any()
    blocks = model.clip.visual.transformer.resblocks
    assert [block.ln_2.weight.grad is not None for block in blocks] == [layer >= freeze for layer in range(3)]


@pytest.mark.parametrize("mode", ["bf16 parameters", "autocast"])
def test_it_runs_in_half_precision(mode: str):
    model = build(pooling="afa", mask_padding=True)
    _, frames, real = batch()
    expected = scores(model, frames, real)
    if mode == "bf16 parameters":
        model = model.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
        ids, _, _ = batch()
        text, video = model.encode_text(ids), model.encode_video(frames, real)
        pair = model.encode_pair(ids, text, video)
    assert pair.caption_loss.dtype == torch.float32 and video.vector.dtype == torch.float32
    assert (model.similarity(text, video) - expected["logits"] * 0.07).abs().max() < 0.05
    assert captioning(pair.caption_loss, pair.caption_weight).item() * 0.5 == pytest.approx(
        expected["caption"].item(), rel=0.05
    )


def test_learned_pooling_starts_as_the_mean():
    torch.manual_seed(0)
    config = PromptSwitchConfig(kind="prompt_switch", clip=CLIP, prompts=2, frames=4, pooling="afa", captions=None)
    model = PromptSwitch(config, Towers.from_architecture(ARCHITECTURE)).eval()
    _, frames, real = batch()
    video = model.encode_video(frames, real)
    assert torch.allclose(video.vector, unit(video.frames).mean(1), atol=1e-6)


def test_the_captioning_loss_equals_a_numpy_oracle():
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 4, 7, generator=generator).double()
    ids = torch.tensor([[5, 1, 2, 6, 0], [5, 3, 6, 0, 0]])
    heard, targets, said = next_words(ids)
    assert heard.tolist() == [[5, 1, 2, 6], [5, 3, 6, 0]]
    assert said.tolist() == [[True, True, True, False], [True, True, False, False]]
    weights = np.array([1, 0.25, 1, 1, 1, 1, 0.25])
    counts = torch.tensor(weights)[targets] * said
    loss = caption_loss(logits[said], targets, said, counts)
    total, weight = 0.0, 0.0
    for row in range(2):
        expected = 0.0
        for place in range(int(ids[row].argmax())):
            p = np.exp(logits[row, place].numpy())
            word = int(ids[row, place + 1])
            expected -= weights[word] * np.log(p[word] / p.sum())
            weight += weights[word]
        assert loss[row].item() == pytest.approx(expected, abs=1e-12)
        total += expected
    assert captioning(loss, counts.sum(1)).item() == pytest.approx(total / weight, abs=1e-12)
    flat = nn.functional.cross_entropy(logits[said], targets[said], torch.tensor(weights))
    assert flat.item() == pytest.approx(total / weight, abs=1e-12)  # torch's weighted mean


def test_captions_padded_with_ends_or_with_zeros_are_the_same():
    model = build()
    ids, frames, real = batch()
    ended = ids.masked_fill(ids == 0, 49)
    text, video = model.encode_text(ids), model.encode_video(frames, real)
    pairs = [model.encode_pair(given, text, video) for given in (ids, ended)]
    for name, value in pairs[0].tensors().items():
        assert torch.allclose(value, pairs[1].tensors()[name], atol=1e-6), name


def test_captions_teach_the_frames_and_not_the_words():
    model = build()
    ids, frames, real = batch()
    text, video = model.encode_text(ids), model.encode_video(frames, real)
    model.encode_pair(ids, text, video).caption_loss.sum().backward()
    taught = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert not any(name.startswith(("clip.text.", "clip.logit_scale")) for name in taught)
    assert {"prompts.cube", "captioner.head.weight", "clip.visual.conv1.weight"} <= taught
    fresh = PromptSwitchConfig(kind="prompt_switch", clip=CLIP, prompts=2, frames=4, captions=SMALL)
    other = PromptSwitch(fresh, Towers.from_architecture(ARCHITECTURE))
    assert torch.equal(other.captioner.head.weight, other.clip.text.token_embedding.weight)
    assert not other.captioner.head.bias.any()


def test_light_words_are_those_of_the_towers_tokens(world: World, tmp_path: Path):
    stock = light_tokens(LIGHT_WORDS.split(), 49408, world.towers)
    assert len(stock) == 19 and {49406, 49407, 320, 518, 269} <= set(stock)
    (tmp_path / "vocabulary.json").write_text(json.dumps([-1, -1, 269, 320, 5000, 49406, 49407]))
    assert light_tokens(LIGHT_WORDS.split(), 7, tmp_path) == [2, 3, 5, 6]
    assert light_tokens([], 50, Path("unused")) == []
    long = "antidisestablishmentarianism and floccinaucinihilipilification"
    assert light_tokens([long], 49408, world.towers) == sorted({*SimpleTokenizer().encode(long)}), "no word is cut"
    with pytest.raises(RecipeError, match="the tokenizer has 49408 tokens, the towers' table 50"):
        build(captions=CaptionConfig(heads=2))
    with pytest.raises(RecipeError, match="5 heads on word embeddings of size 32"):
        build(captions=CaptionConfig(heads=5, light_words=[]))


def test_labels_teach_the_pooling_and_what_the_captioner_reads():
    """Cross-entropy of the teacher's softmax against the pooling's weights and the captioner's mean attention."""
    model = build(pooling="afa", mask_padding=True, pool_temperature=0.5)
    ids, frames, real = batch()
    text, video = model.encode_text(ids), model.encode_video(frames, real)
    heard, _, said = next_words(ids)
    _, attention = model.captioner(model.clip.text.embed(heard), video.frames, said, real)
    pair = model.encode_pair(ids, text, video)
    relevance = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    found = model.training_scores(text, video, pair)
    config = LossConfig.model_validate({"fine": {"reduction": "pair", "weight": 1.0}})
    target = TeacherScores(logits=found.rankings["logits"].detach(), relevance=relevance)
    loss = total_loss(found, [target], config, real=real)["fine"]
    expected = []
    for row in range(3):
        kept = real[row].numpy()
        q = np.exp(relevance[row].numpy()[kept])
        q /= q.sum()
        pooled = np.exp(video.relevance[row].detach().numpy()[kept] / 0.5)
        shares = attention[row].detach().numpy()[said[row].numpy()].mean(0)  # all words count 1
        assert shares.sum() == pytest.approx(1, abs=1e-6) and not shares[~kept].any()
        expected += [-(q * np.log(pooled / pooled.sum())).sum(), -(q * np.log(shares[kept])).sum()]
    assert loss.item() == pytest.approx(np.sum(expected) / 6, abs=1e-5)
    for place, learns in (("pooling", "afa.score.2.weight"), ("captioner", "captioner.layers.1.multihead_attn.")):
        only = config.model_copy(update={"fine": config.fine.model_copy(update={"targets": [place]})})
        model.zero_grad()
        total_loss(model.training_scores(*encoded(model)), [target], only, real=real)["fine"].backward()
        assert any(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if n.startswith(learns))
        assert model.prompts.cube.grad.any()


def encoded(model: PromptSwitch) -> tuple:
    """All that a batch is scored by."""
    ids, frames, real = batch()
    text, video = model.encode_text(ids), model.encode_video(frames, real)
    return text, video, model.encode_pair(ids, text, video)


@pytest.mark.parametrize("pooling", ["attention", "transformer"])
def test_labels_teach_which_frames_a_caption_pools(pooling: str):
    model = build(pooling=pooling, heads=4, dropout=0.0, mask_padding=True, captions=None)
    text, video, pair = encoded(model)
    sentence, frames = unit(text.sentence), unit(video.frames)
    _, _, real = batch()
    if pooling == "attention":
        shares = (torch.einsum("pd,pfd->pf", sentence, frames) / 0.01).masked_fill(~real, -torch.inf).softmax(-1)
    else:
        query, keys = (
            linear(model.cross.norm1(rows)).unflatten(-1, (4, 8))
            for linear, rows in ((model.cross.q_proj, sentence), (model.cross.k_proj, frames))
        )
        scores = torch.einsum("phc,pfhc->phf", query, keys) / 8**0.5
        shares = scores.masked_fill(~real[:, None], -torch.inf).softmax(-1).mean(1)
    found = model.training_scores(text, video, pair)
    assert torch.allclose(found.frames["pooling"].softmax(-1), shares, atol=1e-5) and len(found.frames) == 1
    target = TeacherScores(logits=found.rankings["logits"].detach(), relevance=torch.randn(3, 8))
    total_loss(found, [target], LossConfig(), real=real)["fine"].backward()
    assert model.prompts.cube.grad.any() and model.clip.text.text_projection.grad.any()


def test_asking_adds_up_the_best_frames_and_no_padding():
    """Against a loop over pairs: fewer real frames than `k`, padding that would be the best, many texts and one."""
    model = build(pooling="top_k", k=3, mask_padding=True)
    generator = torch.Generator().manual_seed(5)
    text = TextFeatures(sentence=torch.randn(40, 32, generator=generator).double())
    frames = torch.randn(3, 8, 32, generator=generator).double()
    _, _, real = batch()
    frames[2, 1:] = text.sentence[0]  # padding
    video = VideoFeatures(vector=frames[:, 0], frames=frames, real=real)
    found = model.similarity(text, video)
    for row in range(40):
        for column in range(3):
            kept = unit(frames[column][real[column]])
            best = sorted(kept, key=lambda frame, row=row: -float(frame @ text.sentence[row]))[:3]
            expected = torch.cosine_similarity(torch.stack(best).sum(0), text.sentence[row], dim=0)
            assert found[row, column].item() == pytest.approx(expected.item(), abs=1e-12)
    assert torch.allclose(model.similarity(text[:1], video), found[:1], atol=1e-12)


def test_words_read_as_much_as_they_count():
    attention = torch.tensor([[[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]]])
    assert torch.allclose(frames_read(attention, torch.tensor([[1.0, 0.25, 0.0]])), torch.tensor([[0.6, 0.4]]))


@pytest.mark.parametrize(("pooling", "own"), [("afa", "afa"), ("transformer", "cross")])
def test_parts_have_the_papers_rates(pooling: str, own: str):
    optim = OptimConfig(lr=1.0e-5, clip_lr=1.0e-6, head_lr=1.0e-4)
    model = build(pooling=pooling)
    groups = build_optimizer(model, optim, fused=False).param_groups
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        wanted = {"prompts": 1.0e-5, "captioner": 1.0e-5, "cross": 1.0e-5, "clip": 1.0e-6, "afa": 1.0e-4}
        assert rate[id(parameter)] == wanted[name.split(".")[0]], name
    assert any(name.startswith(own) for name, _ in model.named_parameters())
    assert any(name.startswith("clip.visual.aggregation") for name, _ in model.named_parameters())


@given(st.integers(1, 2000), st.integers(1, 8), st.integers(1, 4))
def test_every_pass_takes_a_frame_of_every_part(count: int, prompts: int, passes: int):
    sampler = PromptSwitchSampler(kind="prompt_switch", num_frames=prompts * passes, prompts=prompts)
    found = sampler.indices(count, 25.0)
    each = min(prompts, count)
    assert len(found) == each * passes and 0 <= min(found) <= max(found) < count
    for start in range(0, len(found), each):
        one = found[start : start + each]
        assert one == sorted(one) and len(set(one)) == each


def test_a_clip_is_sampled_as_a_video_of_its_own():
    sampler = PromptSwitchSampler(kind="prompt_switch")
    assert sampler.indices(500, 25.0, 2.0, 6.0) == [50 + index for index in sampler.indices(100, 25.0)]
    with pytest.raises(VideoError, match=r"0 sampled of 50 between 9\.0 s and 12\.0 s"):
        sampler.indices(50, 25.0, 9.0, 12.0)
    for wrong in ({"num_frames": 9}, {"prompts": 0}, {"num_frames": "12"}, {"fps": 1}):
        with pytest.raises(ValidationError):
            PromptSwitchSampler.model_validate({"kind": "prompt_switch", **wrong})
    assert SAMPLERS["prompt_switch"] is PromptSwitchSampler


def test_moments_are_found_whatever_the_order_of_frames():
    times, weights = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [0.01, 0.1, 0.4, 0.3, 0.09, 0.1]
    order = [1, 3, 5, 0, 2, 4]
    turned = [weights[i] for i in order], [times[i] for i in order]
    assert best_moment(*turned, 6.0) == best_moment(weights, times, 6.0) == (1.5, 3.5)
    twice = best_moment([*weights, *(w / 10 for w in weights)], times * 2, 6.0)
    assert twice == (1.5, 3.5)


@pytest.fixture(scope="module")
def passes(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test videos in two passes: not in the order of time."""
    out = tmp_path_factory.mktemp("passes") / "test"
    python(
        *("tools/pack_frames.py", world.corpus / "test.csv", world.corpus / "videos", "--layout", "msrvtt"),
        *("--size", "64", "--sampler", "prompt_switch", "--out", out),
    )
    return out


def test_teachers_see_frames_in_the_order_of_time(world: World, passes: Path, tmp_path: Path):
    frames = FrameSet(passes)
    about = frames.videos[0]
    order = sorted(range(12), key=about.timestamps.__getitem__)
    assert order != list(range(12)) and about.timestamps[0] < about.timestamps[6] < about.timestamps[1]
    there = World(world.folder, world.corpus, {"train": passes}, world.towers)
    labels = LabelSet(write_labels(there, "xclip", tmp_path), frames)
    rows = labels.batch([(0, 0)])
    teacher = random_teacher(world, "xclip")
    pixels, real = VideoDataset(frames).__getitems__([0])
    with torch.no_grad():
        video = teacher.encode_video(pixels[:, order], real)
        text = teacher.encode_text(torch.from_numpy(Tokenizer(24)([about.captions[0].text])))
        expected = teacher.interaction.relevance(text, video)
    assert torch.allclose(rows["relevance"][:, order], expected, atol=1e-5)
    assert torch.allclose(rows["frames"], video.frames, atol=1e-5)


def recipe(world: World, path: Path, **sections) -> Path:
    """A small recipe; `model` merges into two prompts a frame, two clips of six."""
    model = {"prompts": 2, "frames": 6, "pooling": "afa"} | sections.pop("model", {})
    return world.recipe("one", "prompt_switch", path, model=model, **sections)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.num_frames=9", "data.num_frames: 9, but prompt_switch, as configured, takes a multiple of 6 frames"),
        ("model.frames=5", "frames: 5 is no multiple of prompts, 2"),
        ("model.prompts=0", "model.prompt_switch.prompts: found 0"),
        ("model.pooling=top_k", "k: pooling top_k adds up so many frames"),
        ("model.k=3", "k: pooling top_k adds up so many frames, and no other pooling does"),
        ("losses.fine.targets=[gate]", "has no frame scores to teach called 'gate'; it has: pooling, captioner"),
        ("model.temporal.layers=2", "model.prompt_switch.temporal: unknown key"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(override: str, words: str, world: World, tmp_path: Path):
    path = recipe(world, tmp_path, labels=["somewhere"])
    with pytest.raises(RecipeError) as error:
        read_recipe(path, [override], Recipe)
    assert words in str(error.value)


def test_places_that_are_not_there_are_refused(world: World, tmp_path: Path):
    path = recipe(world, tmp_path, labels=["somewhere"])
    for overrides, left in (
        (["model.pooling=mean"], "captioner"),
        (["model.pooling=top_k", "model.k=2"], "captioner"),
        (["model.captions=null"], "pooling"),
        (["model.captions=null", "model.pooling=attention"], "pooling"),
        (["model.captions=null", "model.pooling=transformer"], "pooling"),
    ):
        assert read_recipe(path, overrides, Recipe).model.fine_targets() == (left,)
        with pytest.raises(RecipeError, match=f"it has: {left}$"):
            read_recipe(path, [*overrides, "losses.fine.targets=[pooling, captioner]"], Recipe)
    with pytest.raises(RecipeError, match=r"prompt_switch has no frame scores to teach; set losses\.fine\.weight=0"):
        read_recipe(path, ["model.pooling=mean", "model.captions=null"], Recipe)


def test_heads_that_do_not_divide_a_frame_are_refused():
    with pytest.raises(RecipeError, match=r"model\.heads: 3 does not divide the 32 numbers of a frame"):
        build(pooling="transformer", heads=3)


def test_videos_that_are_no_whole_clips_are_refused():
    _, frames, real = batch()
    with pytest.raises(RecipeError, match=r"model\.frames: 4, but videos have 6 frames"):
        build().encode_video(frames[:, :6], real[:, :6])


@pytest.mark.slow
def test_two_processes_equal_one_and_the_captioner_is_not_released(world: World, passes: Path, tmp_path: Path):
    """Both places taught, frames out of order, padding masked, ZeRO 3."""
    there = World(world.folder, world.corpus, {**world.frames, "train": passes}, world.towers)
    labels = write_labels(there, "xclip", tmp_path / "labels")
    data = {"batch_size": 16, "train": str(passes), "val": str(passes), "test": None}
    path = recipe(world, tmp_path, labels=[str(labels)], data=data, model={"mask_padding": True})
    python("distill/run.py", path)
    launch(2, "distill/run.py", path, "name=two", "train.zero=3")
    assert steps(tmp_path / "one")
    for a, b in zip(steps(tmp_path / "one"), steps(tmp_path / "two"), strict=True):
        assert a.keys() >= {"contrastive", "caption", "coarse", "fine"}
        assert math.isclose(a["total"], b["total"], rel_tol=1e-4), f"step {a['step']}"
        assert math.isclose(a["grad_norm"], b["grad_norm"], rel_tol=1e-3), f"step {a['step']}"
    trained, folder = load_file(tmp_path / "one" / "best.safetensors"), tmp_path / "one" / "release"
    released = load_file(folder / "model.safetensors")
    captioner = {name for name in trained if name.startswith("captioner.")}
    assert captioner and released.keys() == trained.keys() - captioner
    left_out = sum(trained[name].numel() for name in captioner)
    dim = 32
    layer = 2 * (4 * dim * dim + 4 * dim) + 2 * 4 * dim * dim + 5 * dim + 6 * dim
    assert left_out == 2 * layer + 4 * dim + 49408 * (dim + 1)
    assert sum(value.numel() for value in released.values()) == sum(v.numel() for v in trained.values()) - left_out
    release = distill.release.load(folder)
    assert release.config.model["captions"] is None and release.model.pool_temperature == 0.1
    build_gallery(release, passes, tmp_path / "gallery", videos=world.corpus / "videos")
    (hits,) = Gallery.open(tmp_path / "gallery", release).search(["a red apple"], 3)
    assert all(0 <= hit.seconds[0] < hit.seconds[1] for hit in hits)
    export_clip(release, tmp_path / "towers")
    assert (
        load_file(tmp_path / "towers" / "open_clip_model.safetensors").keys()
        == load_file(world.towers / "open_clip_model.safetensors").keys()
    )


TOWERS = {  # as wide as the authors' heads
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 128, "layers": 2, "head_width": 64},
    "text_cfg": {"context_length": 16, "vocab_size": 60, "width": 64, "heads": 1, "layers": 1},
}
POSITIONS = {"text": torch.arange(16)[None], "vision": torch.arange(5)[None]}


def checkpoint() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A whole model as its authors save it, and what has to arrive of it."""
    config = PromptSwitchConfig(kind="prompt_switch", clip=CLIP, prompts=3, frames=3, captions=SMALL)
    model = PromptSwitch(config, Towers.from_architecture(TOWERS))
    weights = {name: tensor.float() for name, tensor in authors_weights(model).items()}
    released = {name: t for name, t in arrived(model, weights).items() if not name.startswith("captioner.")}
    return weights | {f"clip.{part}_model.embeddings.position_ids": ids for part, ids in POSITIONS.items()}, released


def written(path: Path, state: dict[str, Tensor], **more: object) -> Path:
    """Their file around a state dict."""
    optimizer = {"state": {0: {"step": 3}}, "param_groups": [{"lr": 1e-6}]}
    torch.save({"epoch": 4, "state_dict": state, "optimizer": optimizer, **more}, path)
    return path


def test_every_tensor_of_a_checkpoint_arrives(tmp_path: Path):
    state, expected = checkpoint()
    file = written(tmp_path / "model_best.pth", state)
    done = convert(file, "prompt_switch", tmp_path / "release", Options(words=16))
    found = load_file(tmp_path / "release" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    captioner = {name for name in state if name.startswith("caption_")}
    assert done.record["unused"].keys() == captioner | {name for name in state if name.endswith("position_ids")}
    assert {done.record["unused"][name] for name in captioner} == {"of the captioner, which only training needs"}
    assert "taken for the 3 of its prompts" in done.report()
    assert "--frames 12 --sampler prompt_switch --prompts 3" in done.report()
    release = distill.release.load(tmp_path / "release")
    assert release.frames_config["sampler"] == {"kind": "prompt_switch", "num_frames": 12, "prompts": 3}
    assert (release.config.model["frames"], release.config.model["captions"]) == (3, None)
    assert release.encode_video(torch.zeros(7, 3, 16, 16, dtype=torch.uint8).numpy()).vector.shape == (1, 64)
    wider = convert(file, "prompt_switch", tmp_path / "wider", Options(words=16, clip_frames=6))
    assert wider.head.config["frames"] == 6 and not any("taken for" in note for note in wider.record["notes"])


def test_the_moving_average_is_taken_where_it_is_asked_for(tmp_path: Path):
    state, expected = checkpoint()
    averaged = {f"module.{name}": value * 2 if value.is_floating_point() else value for name, value in state.items()}
    file = written(tmp_path / "m.pth", state, state_dict_ema=averaged)
    with pytest.raises(ExpectedError, match=r"holds two sets of weights.* choose by --ema off or --ema on"):
        convert(file, "prompt_switch", tmp_path / "out", Options(words=16))
    for ema, factor in (("off", 1), ("on", 2)):
        convert(file, "prompt_switch", tmp_path / ema, Options(words=16, ema=ema))
        found = load_file(tmp_path / ema / "model.safetensors")
        assert all(torch.equal(found[name], factor * value) for name, value in expected.items())
    plain = written(tmp_path / "plain.pth", state)
    with pytest.raises(ExpectedError, match="--ema on, but the file holds no state_dict_ema"):
        convert(plain, "prompt_switch", tmp_path / "out", Options(words=16, ema="on"))


def pooled_checkpoint() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """With the transformer that pools, which the authors save under two names, and what has to arrive."""
    state, expected = checkpoint()
    own = {
        name: 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(k))
        for k, (name, value) in enumerate(CrossAttention(64, 1, 0.3).state_dict().items())
    }
    authors = Checkpoint(Path("unused"), "prompt_switch", {})
    theirs = {authors.theirs(f"cross.{name}")[0]: value for name, value in own.items()}
    assert sorted(theirs)[:2] == ["pool_frames.cross_attn.k_proj.bias", "pool_frames.cross_attn.k_proj.weight"]
    twins = {name.replace("pool_frames.", "pool_frames_test."): value.clone() for name, value in theirs.items()}
    return state | theirs | twins, expected | {f"cross.{name}": value for name, value in own.items()}


def test_a_checkpoint_that_pools_by_a_transformer_searches_in_two_stages(tmp_path: Path):
    state, expected = pooled_checkpoint()
    file = written(tmp_path / "model_best.pth", state)
    done = convert(file, "prompt_switch", tmp_path / "release", Options(words=16))
    found = load_file(tmp_path / "release" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert "unused, pool_frames.* under its second name: pool_frames_test." in done.report()
    assert "heads of pool_frames, num_mha_heads; taken for 1, as published (--heads)" in done.report()
    release = distill.release.load(tmp_path / "release")
    assert (release.config.model["pooling"], release.config.model["heads"]) == ("transformer", 1)
    assert release.model.rerank_fields == ("frames", "real")
    two = convert(file, "prompt_switch", tmp_path / "two", Options(words=16, heads=2))
    assert two.head.config["heads"] == 2 and not any("heads" in note for note in two.record["notes"])


CUBE, POOLING = "clip.vision_model.encoder.prompt_embedding", "pool_frames.cross_attn.q_proj.weight"
SECOND = {"pool_frames.norm": torch.zeros(2), "pool_frames_test.norm": torch.ones(2)}


@pytest.mark.parametrize(
    ("kind", "change", "options", "words"),
    [
        ("prompt_switch", {CUBE: None}, {}, "no clip.vision_model.encoder.prompt_embedding, which a prompt_switch"),
        ("prompt_switch", {CUBE: torch.zeros(3, 2, 128)}, {}, "3 x 2 prompts, 3 frames"),
        ("prompt_switch", {CUBE: torch.zeros(5, 5, 128)}, {}, "5 x 5 prompts, 5 frames .* 12 frames of a video"),
        ("prompt_switch", {CUBE: torch.zeros(3, 3, 64)}, {}, "of another shape: clip.vision_model.encoder.prompt"),
        ("prompt_switch", {"clip.vision_model.attn.in_proj_bias": None}, {}, "missing: clip.vision_model.attn"),
        ("prompt_switch", {"clip.vision_model.gamma": torch.zeros(1)}, {}, "unknown: clip.vision_model.gamma"),
        ("prompt_switch", {POOLING: torch.zeros(64, 64)}, {}, "missing: pool_frames.cross_attn.k_proj"),
        ("prompt_switch", SECOND, {}, "pool_frames_test.norm is not pool_frames.norm"),
        ("prompt_switch", {}, {"heads": 2}, "--heads 2, but the file holds no pool_frames"),
        ("prompt_switch", {POOLING: torch.zeros(64, 64)}, {"heads": 3}, "--heads 3 does not divide the 64 numbers"),
        ("prompt_switch", {}, {"heads": 0}, "--heads 0: expected at least 1"),
        ("xpool", {}, {"heads": 2}, "--heads does not go with --kind xpool, only with prompt_switch"),
        ("prompt_switch", {}, {"clip_frames": 4}, "4 frames that are aggregated together"),
        ("prompt_switch", {}, {"clip_frames": 0}, "--clip-frames 0: expected at least 1"),
        ("prompt_switch", {}, {"head": "meanP"}, "--head does not go with --kind prompt_switch"),
        ("xpool", {POOLING: torch.zeros(64, 64)}, {}, "so it is not xpool; use --kind prompt_switch"),
        ("clip4clip", {}, {}, "so it is not clip4clip; use --kind prompt_switch"),
        ("clip4clip", {}, {"ema": "on"}, "--ema does not go with --kind clip4clip, only with prompt_switch"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(kind: str, change: dict, options: dict, words: str, tmp_path: Path):
    state, _ = checkpoint()
    state = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
    with pytest.raises(ExpectedError, match=words) as error:
        convert(written(tmp_path / "m.pth", state), kind, tmp_path / "out", Options(words=16, **options))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_frame_set_needs_whole_passes(world: World, tmp_path: Path):
    wanted = ("--sampler", "prompt_switch", "--prompts", "5", "--out", tmp_path / "out")
    done = python("tools/pack_frames.py", world.corpus / "test.csv", world.corpus / "videos", *wanted, check=False)
    assert done.returncode == 2 and "num_frames: 12 is no multiple of prompts, 5" in done.stderr
