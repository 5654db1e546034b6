"""EERCF: the authors' numbers, formulas against NumPy, padding, batches, what labels teach, recipes, checkpoints."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import World, launch, python, steps
from labelling import write_labels
from parity.modules import build_on
from safetensors.torch import load_file
from test_convert import (
    DIM,
    FRAMES,
    TEMPORAL_LAYERS,
    WORDS,
    blocks,
    expected_weights,
    filled,
    openai_shapes,
    same,
    saved,
)
from torch import Tensor, nn

import distill.release
from distill.config import read_recipe
from distill.conversion.convert import convert
from distill.conversion.options import Options
from distill.errors import ExpectedError, RecipeError
from distill.losses.correlation import STRENGTH, channel_constraint
from distill.model import reading
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.similarity import mean_pool, unit
from distill.model.temporal import TemporalConfig, TemporalTransformer
from distill.model.towers import ClipConfig, Towers
from distill.recipe import Recipe
from distill.training.lossconfig import ContrastiveConfig, LossConfig
from distill.training.objective import total_loss
from distill.training.optim import OptimConfig, build_optimizer, schedule
from distill.training.teachers import TeacherScores
from students import eercf
from students.eercf import Eercf, EercfConfig, LossWeights, RerankWeights

GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "golden_eercf.json").read_text())
CLIP = ClipConfig(model="unused")
ARCHITECTURE = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 3, "head_width": 32},
    "text_cfg": {"context_length": 20, "vocab_size": 100, "width": 32, "heads": 2, "layers": 2},
}
CORRECTED = {"mask_padding": True, "gate": "every"}
PATCH_TERMS = {"weights": LossWeights(strong_patch=0.5, constraint_patch=0.001)}
PATCH_TERMS |= {"rerank": RerankWeights(strong_patch=0.3)}
ALONE = LossConfig(contrastive=ContrastiveConfig(weight=1.0))


def det(*shape: int, a: float = 0.37, b: float = 0.0, scale: float = 1.0) -> Tensor:
    """Deterministic values: the recipe of the golden rows."""
    return (scale * torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * a + b)).reshape(shape)


def fill(named, scale: float = 0.05) -> None:
    """Deterministic values for parameters in the order of their names; weights of norms lie around one."""
    with torch.no_grad():
        for k, (name, parameter) in enumerate(sorted(named)):
            value = scale * torch.sin(0.1 * torch.arange(parameter.numel()).double() + k).reshape(parameter.shape)
            parameter.copy_(value + 1 if name.endswith("weight") and parameter.ndim == 1 else value)


def near(found: Tensor, expected: object) -> bool:
    """As close as the rows are printed."""
    return torch.allclose(found.detach(), torch.as_tensor(expected, dtype=found.dtype), atol=1e-9, rtol=0)


def golden_temporal() -> TemporalTransformer:
    temporal = TemporalTransformer(64, TemporalConfig(layers=2, heads=1, init="normal")).double()
    fill(temporal.blocks.named_parameters())
    fill([("weight", temporal.pos_embed.weight)])
    return temporal


def golden(**options) -> tuple[Eercf, TextFeatures, VideoFeatures]:
    """Four captions, four videos of three frames of five patches; frame 2 of video 1 is padding."""
    real = torch.ones(4, 3, dtype=torch.bool)
    real[1, 2] = False
    frames, patches = det(4, 3, 64, a=0.53, b=0.1), det(4, 3, 5, 64, a=0.29, b=0.7)
    config = EercfConfig(kind="eercf", clip=CLIP, temporal=TemporalConfig(layers=1, init="normal"), frames=3, **options)
    model = build_on(Eercf, config, torch.cat([frames[:, :, None], patches], dim=2)).double().eval()
    model.temporal = golden_temporal()
    with torch.no_grad():
        model.global_proj.weight.copy_(torch.eye(64) + 0.01 * det(64, 64, a=0.11))
        model.frame_cross.weight.copy_(torch.eye(3) + 0.1 * det(3, 3, a=0.7))
        model.clip.logit_scale.log.fill_(4.6052)
    text = TextFeatures(sentence=det(4, 1, 64, a=0.91, b=0.3)[:, 0])
    return model, text, model.encode_video(torch.zeros(4, 3, 1, 1), real)


def test_row_1_temporal_transformer():
    frames, real = det(4, 3, 64, a=0.53, b=0.1), torch.ones(4, 3, dtype=torch.bool)
    real[1, 2] = False
    found = (golden_temporal()(frames, real) - frames).flatten()
    for part, expected in ((found[:8], "first8"), (found[-8:], "last8"), (found.sum(), "sum")):
        assert near(part, GOLDEN["temporal"][expected])
    assert near(found.abs().sum(), GOLDEN["temporal"]["abs_sum"])


def test_row_2_masked_mean():
    """The row is of frames as they are; one more dimension brings them all to length 9, and the mean forgets it."""
    frames, real = det(4, 3, 64, a=0.53, b=0.1), torch.ones(4, 3, dtype=torch.bool)
    real[1, 2] = False
    rest = (81 - frames.square().sum(-1, keepdim=True)).sqrt()
    assert near(9 * mean_pool(torch.cat([frames, rest], dim=-1), real)[:, :64], GOLDEN["mean"])


def only(name: str) -> LossWeights:
    """One similarity or one constraint, and nothing else."""
    return LossWeights.model_validate({n: float(n in (name, "weak", "strong")) for n in LossWeights.model_fields})


def rerank_only(name: str) -> RerankWeights:
    return RerankWeights.model_validate({n: float(n == name) for n in RerankWeights.model_fields})


def test_row_3_training_similarities():
    model, text, video = golden()
    for name, expected in GOLDEN["training"].items():
        model.weights = only(name)
        scores = model.training_scores(text, video, None)
        assert near(scores.contrasts[name in eercf.STRONG][1], expected), name
        assert torch.equal(scores.rankings["weak"], scores.contrasts[0][1])
        assert near(scores.rankings["coarse"], GOLDEN["training"]["video"])


def test_row_4_pearson_constraint():
    model, text, video = golden()
    for name, expected in zip(("video", "frame", "patch"), GOLDEN["constraint"], strict=True):
        model.weights = only(f"constraint_{name}")
        assert near(model.training_scores(text, video, None).own["constraint"], expected), name


def test_row_5_losses():
    model, text, video = golden()
    found = total_loss(model.training_scores(text, video, None), [], ALONE)
    weak, strong = GOLDEN["losses"]["weak"], GOLDEN["losses"]["strong"]
    assert near(found["contrastive"], 0.8 * weak + 0.2 * strong)
    assert near(found["total"], GOLDEN["losses"]["total"])


def test_rows_6_and_7_evaluation():
    """With a gate for every pair; without patch evaluation the authors use strong_frame for strong_patch."""
    model, text, video = golden()
    of_training = {name: GOLDEN["training"][name] for name in eercf.WEAK}
    for name, expected in (of_training | GOLDEN["evaluation"]).items():
        model.rerank = rerank_only(name)
        assert near(model.logits(text, video), expected), name


def test_row_8_two_stages():
    """The row adds `strong_patch` nowhere, so it is the same with and without patch evaluation."""
    model, text, video = golden()
    logits = model.clip.logit_scale(model.query_vectors(text) @ model.index_vectors(video).T)
    best = logits.topk(2).indices
    assert near(logits.scatter(1, best, 100 + model.logits(text, video).gather(1, best)), GOLDEN["two_stage"])


def test_row_26_bertadam():
    config = OptimConfig(kind="bertadam", lr=1e-2, clip_lr=0.0, head_lr=0.0, weight_decay=0.2, warmup=0.1)
    parameter, sums = nn.Parameter(det(7, a=0.9)), []
    optimizer = build_optimizer(nn.ParameterDict({"p": parameter}), config, fused=False)
    for step in range(4):
        parameter.grad = det(7, a=0.5, b=step, scale=2)
        nn.utils.clip_grad_norm_([parameter], config.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * schedule(step, 10, config)
        optimizer.step()
        sums.append(parameter.sum().item())
    assert sums == pytest.approx([-0.0082606278, -0.0461135445, -0.0672873397, -0.0665960067], abs=1e-9)


def build(*, freeze: int | None = None, frames: int = 4, **options) -> Eercf:
    """A student whose added weights are not those it starts from."""
    torch.manual_seed(0)
    temporal = TemporalConfig(layers=1, init="normal")
    config = EercfConfig(kind="eercf", clip=CLIP, temporal=temporal, frames=frames, **options)
    model = Eercf(config, Towers.from_architecture(ARCHITECTURE, freeze_vision=freeze))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in (model.global_proj, model.frame_cross, *([model.afa.score] if model.afa else [])):
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def batch(videos: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 90, (videos, 8), generator=generator)
    ids[:, 5], ids[:, 6:] = 99, 0
    frames = torch.randint(0, 256, (videos, 4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    real = torch.arange(4) < torch.tensor([4, 3, 1] * videos)[:videos, None]
    return ids, frames, real


def features(model: Eercf, texts: int = 3, videos: int = 3) -> tuple[TextFeatures, VideoFeatures]:
    """Random features in double precision, of the shapes that a model gives."""
    generator, dim = torch.Generator().manual_seed(2), model.clip.dim
    shapes = ((texts, dim), (videos, dim), *[(videos, model.frames, dim)] * 2, (videos, model.frames, 5, dim))
    sentence, vector, frames, contextual, patches = (torch.randn(*s, generator=generator).double() for s in shapes)
    real = torch.arange(model.frames) < torch.tensor([4, 3, 1] * videos)[:videos, None]
    kept = {"frames": frames, "contextual": contextual, "patches": patches if model.patches else None}
    return TextFeatures(sentence=sentence), VideoFeatures(vector=unit(vector), real=real, **kept)


def softmax(scores: np.ndarray) -> np.ndarray:
    exp = np.exp(scores - scores.max())
    return exp / exp.sum()


def oracle(model: Eercf, t: Tensor, video: VideoFeatures, v: int, gate: Tensor | None = None) -> dict[str, float]:
    """The five similarities of one text with one video, gated by `gate` (another text) or by the text itself."""
    kept = video.real[v].numpy() if model.mask_padding else np.ones(model.frames, bool)
    s, g = (unit(x).numpy() for x in (t, t if gate is None else gate))
    frames, contextual = unit(video.frames[v]).numpy(), unit(video.contextual[v]).numpy()
    patches = unit(video.patches[v][torch.from_numpy(kept)].flatten(0, 1)).numpy()
    weights = np.zeros(model.frames)
    weights[kept] = softmax(frames[kept] @ s / 0.01)
    mixed = weights @ model.frame_cross.weight.detach().numpy()
    gated = softmax(frames[kept] @ g / 0.1) @ contextual[kept]
    chosen = softmax(patches @ g / 0.01) @ patches
    return {
        "video": s @ model.global_proj.weight.detach().numpy() @ video.vector[v].numpy(),
        "weak_frame": (mixed * (frames @ s))[kept].sum(),
        "weak_patch": softmax(patches @ s / 0.01) @ (patches @ s),
        "strong_frame": gated @ s / np.linalg.norm(gated),
        "strong_patch": chosen @ s / np.linalg.norm(chosen),
    }


@pytest.mark.parametrize("masked", [False, True])
def test_similarities_equal_a_numpy_oracle(masked: bool, monkeypatch: pytest.MonkeyPatch):
    model = build(mask_padding=masked).double()
    text, video = features(model, texts=4)
    expected = [[oracle(model, text.sentence[t], video, v) for v in range(3)] for t in range(4)]
    for name in eercf.WEAK + eercf.STRONG:
        model.rerank = rerank_only(name)
        rows = torch.tensor([[cell[name] for cell in row] for row in expected], dtype=torch.float64)
        for cells in (2**24, 2 * 20 * 32, 1):  # all videos at once, a few, one
            monkeypatch.setattr(reading, "MAX_CELLS", cells)
            assert (model.similarity(text, video) - rows).abs().max() < 1e-12, name
    model.rerank = RerankWeights()
    total = sum(weight * rows_of(expected, name) for name, weight in RerankWeights())
    assert (model.similarity(text, video) - total).abs().max() < 1e-12


def rows_of(cells: list[list[dict[str, float]]], name: str) -> Tensor:
    return torch.tensor([[cell[name] for cell in row] for row in cells], dtype=torch.float64)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("gate", ["paired", "every"])
def test_training_gates_by_the_videos_own_text_or_as_evaluation_does(gate: str, masked: bool):
    model = build(mask_padding=masked, gate=gate).double()
    text, video = features(model)
    scale = model.clip.logit_scale.log.exp()
    for name in eercf.STRONG:
        model.weights, model.rerank = only(name), rerank_only(name)
        found = model.training_scores(text, video, None).contrasts[1][1] / scale
        gates = [text.sentence[v] if gate == "paired" else None for v in range(3)]
        cells = [[oracle(model, text.sentence[t], video, v, gates[v]) for v in range(3)] for t in range(3)]
        assert (found - rows_of(cells, name)).abs().max() < 1e-12
        ranked = model.similarity(text, video)
        assert (found - ranked).diagonal().abs().max() < 1e-12
        assert torch.allclose(found, ranked) == (gate == "every")


def test_the_constraint_equals_a_numpy_oracle():
    generator = torch.Generator().manual_seed(3)
    text, video = torch.randn(2, 7, 5, generator=generator).double()
    total = 0.0
    for d in range(5):
        total += (np.corrcoef(text[:, d], video[:, d])[0, 1] * 6 / 7 - 1) ** 2
    assert channel_constraint(text, video).item() == pytest.approx(STRENGTH * total)
    assert channel_constraint(3 * text - 2, video).item() == pytest.approx(STRENGTH * total)


@pytest.mark.parametrize("options", [{}, {**CORRECTED, "pooling": "afa"}])
def test_encoding_then_scoring_trains_every_parameter(options: dict):
    model = build(**options, **PATCH_TERMS)
    ids, frames, real = batch()
    text, video = model.encode_text(ids), model.encode_video(frames, real)
    logits = model.logits(text, video)
    assert logits.shape == (3, 3) and logits.dtype == torch.float32
    assert torch.allclose(logits, model.similarity(text, video) / 0.07, atol=1e-4)
    scores = model.training_scores(text, video, None)
    total = total_loss(scores, [], ALONE)["total"] + sum(row.square().mean() for row in scores.frames.values())
    total.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_what_stands_for_padding_counts_in_no_score():
    model = build(**CORRECTED, **PATCH_TERMS).double()
    text, video = features(model)
    padding = ~video.real
    kept = video.tensors()
    for name in ("frames", "contextual", "patches"):
        kept[name] = kept[name].clone()
        kept[name][padding] = 7 - 3 * kept[name][padding]
    other = VideoFeatures(**kept)
    assert (model.similarity(text, video) - model.similarity(text, other)).abs().max() < 1e-12
    one, two = (model.training_scores(text, given, None) for given in (video, other))
    assert (one.contrasts[1][1] - two.contrasts[1][1]).abs().max() < 1e-12
    assert (one.rankings["weak"] - two.rankings["weak"]).abs().max() < 1e-12
    published = build(**PATCH_TERMS).double()
    assert (published.similarity(text, video) - published.similarity(text, other)).abs().max() > 1e-3


@pytest.mark.parametrize("pooling", ["mean", "afa"])
def test_more_padding_changes_nothing(pooling: str):
    short, long = (build(frames=frames, pooling=pooling, **CORRECTED) for frames in (4, 6))
    weights = short.state_dict()
    weights["frame_cross.weight"] = long.frame_cross.weight.detach().clone()  # what padding would be mixed with
    weights["frame_cross.weight"][:4, :4] = short.frame_cross.weight
    long.load_state_dict(weights)
    ids, frames, real = batch()
    longer = torch.cat([frames, frames[:, :2]], dim=1), torch.cat([real, torch.zeros(3, 2, dtype=torch.bool)], dim=1)
    with torch.no_grad():
        text = short.encode_text(ids)
        found = [short.similarity(text, short.encode_video(frames, real))]
        found.append(long.similarity(text, long.encode_video(*longer)))
    assert (found[0] - found[1]).abs().max() < 1e-5


def test_videos_do_not_depend_on_one_another():
    model = build()
    ids, frames, real = batch()
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        text, together = model.encode_text(ids), model.encode_video(frames, real)
        alone = [model.encode_video(frames[i : i + 1], real[i : i + 1]) for i in range(3)]
        scores, permuted = model.similarity(text, together), model.similarity(text, together[order])
    for name, value in together.tensors().items():
        torch.testing.assert_close(torch.cat([one.tensors()[name] for one in alone]), value, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(permuted, scores[:, order], atol=1e-5, rtol=1e-5)
    assert torch.equal(model.index_vectors(together), unit(together.vector))


@pytest.mark.parametrize("patches", [True, False])
@pytest.mark.parametrize("freeze", [1, 3])
def test_stem_tokens_stand_for_pixels(freeze: int, patches: bool):
    model = build(freeze=freeze, patches=patches)
    _, frames, real = batch()
    with torch.no_grad():
        tokens = model.clip.frames_to_stem(frames, real)
        from_pixels, from_stem = (model.encode_video(given, real).tensors() for given in (frames, tokens))
    assert all(torch.equal(value, from_stem[name]) for name, value in from_pixels.items())
    assert ("patches" in from_pixels) == patches


@pytest.mark.parametrize("mode", ["bf16 parameters", "autocast"])
def test_it_runs_in_half_precision(mode: str):
    model = build()
    ids, frames, real = batch()
    expected = model.similarity(model.encode_text(ids), model.encode_video(frames, real))
    model = model.bfloat16() if mode == "bf16 parameters" else model
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
        text, video = model.encode_text(ids), model.encode_video(frames, real)
        found = model.similarity(text, video)
    assert found.dtype == model.query_vectors(text).dtype == torch.float32
    assert (found - expected).abs().max() < 0.1


def test_patches_are_compared_and_kept_only_where_they_count():
    ids, frames, real = batch()
    plain, whole = build(patches=False), build()
    assert plain.rerank_fields == ("frames", "contextual", "real")
    assert whole.rerank_fields == ("frames", "contextual", "patches", "real")
    unweighted = build(rerank=RerankWeights(weak_patch=0.0))
    assert unweighted.rerank_fields == plain.rerank_fields
    unweighted.load_state_dict(whole.state_dict())
    with torch.no_grad():
        text, without = plain.encode_text(ids), plain.encode_video(frames, real)
        with_patches = whole.encode_video(frames, real)
        torch.testing.assert_close(without.frames, with_patches.frames, atol=1e-5, rtol=1e-5)
        needed = {name: value for name, value in with_patches.tensors().items() if name != "patches"}
        again = unweighted.similarity(text, VideoFeatures(**needed))
        torch.testing.assert_close(plain.similarity(text, without), again, atol=1e-4, rtol=1e-4)


def test_learned_pooling_starts_as_the_mean():
    _, frames, real = batch()
    config = {"kind": "eercf", "clip": CLIP, "temporal": TemporalConfig(layers=1, init="normal"), "frames": 4}
    vectors = []
    for options in ({}, {"pooling": "afa", "mask_padding": True}):
        torch.manual_seed(0)
        towers = Towers.from_architecture(ARCHITECTURE)
        vectors.append(Eercf(EercfConfig(**config, **options), towers).encode_video(frames, real).vector)
    torch.testing.assert_close(*vectors)


def test_labels_teach_the_gate_and_the_pooling():
    """The gate without the detachment that the authors' own loss has; one temperature pools and is taught."""
    model = build(pooling="afa", pool_temperature=0.5, mask_padding=True)
    ids, frames, real = batch()
    text, video = model.encode_text(ids), model.encode_video(frames, real)
    video.frames.retain_grad()
    text.sentence.retain_grad()
    scores = model.training_scores(text, video, None)
    kept = [unit(part).detach().numpy() for part in (text.sentence, video.frames)]
    np.testing.assert_allclose(scores.frames["gate"].detach(), np.einsum("td,tfd->tf", *kept) / 0.1, atol=1e-5)
    weights = scores.frames["pooling"].softmax(-1).detach()
    contextual = unit(model.temporal(video.frames.detach(), real)).detach()
    pooled = unit(torch.einsum("vf,vfd->vd", weights, contextual))
    torch.testing.assert_close(pooled, video.vector.detach(), atol=1e-5, rtol=1e-5)
    assert (weights[~real] == 0).all()

    target = TeacherScores(logits=None, relevance=torch.randn(3, 4))
    for place, reached in (("gate", video.frames), ("pooling", model.afa.score[2].weight)):
        config = LossConfig.model_validate({"coarse": {"weight": 0.0}, "fine": {"targets": [place]}})
        reached.grad = None
        loss = total_loss(scores, [target], config, real=real)["fine"]
        student, teacher = (x.detach().double().numpy() for x in (scores.frames[place], target.relevance))
        rows = [-(softmax(teacher[i][k]) * np.log(softmax(student[i][k]))).sum() for i, k in enumerate(real.numpy())]
        assert loss.item() == pytest.approx(sum(rows) / real.sum().item(), rel=1e-5)
        loss.backward(retain_graph=True)
        assert reached.grad.abs().sum() > 0
    assert text.sentence.grad.abs().sum() > 0


def test_the_authors_gate_has_no_gradient_and_that_of_every_pair_has():
    for gate, reached in (("paired", False), ("every", True)):
        model = build(gate=gate, weights=only("strong_frame"), patches=False).double()
        text, video = features(model)
        video.frames.requires_grad_()
        model.training_scores(text, video, None).contrasts[1][1].diagonal().sum().backward()
        assert (video.frames.grad is not None and bool(video.frames.grad.abs().sum() > 0)) == reached


def test_the_teachers_ranking_can_teach_the_coarse_vector_alone():
    model = build().double()
    text, video = features(model)
    logits = 5 * torch.randn(3, 3, generator=torch.Generator().manual_seed(4)).double()
    scores = model.training_scores(text, video, None)
    config = LossConfig.model_validate({"fine": {"weight": 0.0}, "coarse": {"targets": ["coarse"]}})
    found = total_loss(scores, [TeacherScores(logits=logits, relevance=torch.randn(3, 4).double())], config)["coarse"]
    student, teacher = scores.rankings["coarse"].detach().numpy(), logits.numpy()
    distances = [
        np.mean([1 - np.corrcoef(softmax(a), softmax(b))[0, 1] for a, b in zip(one, two, strict=True)])
        for one, two in ((student, teacher), (student.T, teacher.T))
    ]
    assert found.item() == pytest.approx(sum(distances))
    model.zero_grad()
    found.backward()
    assert model.global_proj.weight.grad.abs().sum() > 0 and model.frame_cross.weight.grad is None


def recipe(world: World, folder: Path, **model) -> Path:
    return world.recipe("student", "eercf", folder, labels=["a"], model={"frames": 12, **model})


def test_places_that_are_not_there_are_refused(world: World, tmp_path: Path):
    path = recipe(world, tmp_path)
    assert read_recipe(path, ["losses.fine.targets=[gate]", "losses.coarse.targets=[coarse]"], Recipe).labels
    with pytest.raises(RecipeError, match=r"fine\.targets: eercf, as configured, has no .* 'pooling'; it has: gate"):
        read_recipe(path, ["losses.fine.targets=[pooling]"], Recipe)
    afa = ["model.pooling=afa", "model.mask_padding=true"]
    assert read_recipe(path, [*afa, "losses.fine.targets=[pooling, gate]"], Recipe).model.fine_targets() == (
        "gate",
        "pooling",
    )
    with pytest.raises(RecipeError, match=r"coarse\.targets: .* called 'logits'; it has: coarse, weak"):
        read_recipe(path, ["losses.coarse.targets=[logits]"], Recipe)


def test_sizes_and_pooling_that_do_not_fit_are_refused(world: World, tmp_path: Path):
    path = recipe(world, tmp_path)
    with pytest.raises(RecipeError, match=r"model\.frames: 8, but data\.num_frames is 12"):
        read_recipe(path, ["model.frames=8"], Recipe)
    with pytest.raises(RecipeError, match=r"afa leaves padded frames out.*set mask_padding: true"):
        read_recipe(path, ["model.pooling=afa"], Recipe)
    _, frames, real = batch()
    with pytest.raises(RecipeError, match="built for 4 frames, but the videos have 3"):
        build().encode_video(frames[:, :3], real[:, :3])


@pytest.mark.slow
def test_two_processes_equal_one(world: World, tmp_path: Path):
    """Everything that can be on: patches, learned pooling, a gate per pair, a teacher at every place; ZeRO 3."""
    labels = write_labels(world, "xclip", tmp_path / "labels")
    model = {"frames": 12, "pooling": "afa", "mask_padding": True, "gate": "every"}
    path = world.recipe("one", "eercf", tmp_path, model=model, labels=[str(labels)], data={"batch_size": 16})
    python("distill/run.py", path)
    launch(2, "distill/run.py", path, "name=two", "train.zero=3")
    for a, b in zip(steps(tmp_path / "one"), steps(tmp_path / "two"), strict=True):
        assert a.keys() >= {"contrastive", "constraint", "coarse", "fine"}
        assert math.isclose(a["total"], b["total"], rel_tol=1e-4), f"step {a['step']}"
        assert math.isclose(a["grad_norm"], b["grad_norm"], rel_tol=1e-3), f"step {a['step']}"
    assert distill.release.load(tmp_path / "two" / "release").model.pool_temperature == 0.1


MATRICES = {"global_mat_weight": "global_proj.weight", "frame_logit_weight": "frame_cross.weight"}


def checkpoint() -> dict[str, Tensor]:
    """A whole model as its authors save it."""
    shapes = {f"clip.{name}": shape for name, shape in openai_shapes().items()}
    shapes |= {"global_mat_weight": (DIM, DIM), "frame_logit_weight": (FRAMES, FRAMES)}
    shapes |= {"frame_position_embeddings.weight": (40, DIM)}
    return filled(shapes | blocks("transformerClip.resblocks", DIM, TEMPORAL_LAYERS))


def test_every_tensor_of_a_checkpoint_arrives(tmp_path: Path):
    state = checkpoint()
    done = convert(saved(state, tmp_path / "pytorch_model.bin.0"), "eercf", tmp_path / "release", Options(words=WORDS))
    expected = expected_weights("clip4clip", state) | {ours: state[theirs] for theirs, ours in MATRICES.items()}
    same(load_file(tmp_path / "release" / "model.safetensors"), expected)
    release = distill.release.load(tmp_path / "release")
    config = release.config.model
    assert (release.num_frames, config["frames"], config["patches"], config["gate"]) == (FRAMES, FRAMES, True, "paired")
    assert RerankWeights.model_validate(config["rerank"]) == RerankWeights()
    assert done.record["tensors"] == {"converted": len(state), "unused": 0} and "tools/index.py" in done.report()
    pixels = torch.randint(0, 256, (2, FRAMES, 3, 32, 32), dtype=torch.uint8)
    video = release.encode_frames(pixels, torch.ones(2, FRAMES, dtype=torch.bool))
    assert video.patches.shape == (2, FRAMES, 16, DIM)


@pytest.mark.parametrize(
    ("kind", "change", "options", "words"),
    [
        ("eercf", {"frame_logit_weight": None}, {}, "no frame_logit_weight, which a eercf checkpoint must hold"),
        ("eercf", {"global_mat_weight": None}, {}, "missing: global_mat_weight"),
        ("eercf", {"gamma": torch.zeros(1)}, {}, "unknown: gamma"),
        ("eercf", {"global_mat_weight": torch.zeros(3, 3)}, {}, "of another shape: global_mat_weight"),
        ("eercf", {"local_mat_weight": torch.zeros(DIM, DIM)}, {}, "so it is not eercf; use --kind xclip"),
        ("eercf", {"transformerClip": None, "frame_position_embeddings": None}, {}, "without sim_header seqTransf"),
        ("eercf", {}, {"frames": 12}, "--frames 12, but its matrices are of 5 frames"),
        ("eercf", {}, {"head": "meanP"}, "--head does not go with --kind eercf"),
        ("teachclip", {}, {}, "so it is not teachclip; use --kind xclip or eercf"),
        ("xclip", {}, {}, "no word_logit_weight, which a xclip checkpoint must hold"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(kind: str, change: dict, options: dict, words: str, tmp_path: Path):
    dropped = tuple(name for name, tensor in change.items() if tensor is None)
    state = {name: tensor for name, tensor in checkpoint().items() if not (dropped and name.startswith(dropped))}
    state |= {name: tensor for name, tensor in change.items() if tensor is not None}
    given = Options(**{"words": None if kind == "xclip" else WORDS, **options})
    with pytest.raises(ExpectedError, match=words) as error:
        convert(saved(state, tmp_path / "m.pt"), kind, tmp_path / "out", given)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
