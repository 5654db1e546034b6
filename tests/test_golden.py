"""Golden rows: numbers that came out of the authors' modules for inputs that anyone can make again (rows in README.md).

`det` and `fill` are the recipe: NumPy's RandomState for every tensor, parameters filled in the authors' order. Unless a
test says otherwise: 64 dimensions, 5 frames, the second video with two padded ones, logit scale exp(4), a temporal
transformer of 2 layers and 4 heads.
"""

import math
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import launch
from torch import Tensor, nn

from distill.conversion.authors import Checkpoint
from distill.losses.contrastive import contrastive
from distill.model.afa import AfaConfig, AttentiveFrameAggregation
from distill.model.attention import shift_tokens
from distill.model.clip import ClipModel
from distill.model.contract import TrainingScores
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.logit_scale import LogitScale
from distill.model.selection import TokenSelector, perturbed_topk, topk_indices
from distill.model.similarity import cosine, mean_pool, unit
from distill.model.temporal import LAYER_NORM_EPS, TemporalConfig, TemporalTransformer
from distill.model.towers import ClipConfig, Towers
from distill.training.lossconfig import CoarseConfig, ContrastiveConfig, FineConfig, LossConfig
from distill.training.objective import total_loss
from distill.training.optim import OptimConfig, build_optimizer, schedule
from distill.training.teachers import TeacherScores
from students.teachclip import TeachClip, TeachClipConfig
from teachers.ts2net import Ts2NetInteraction
from teachers.xclip import XClipInteraction
from teachers.xpool import XPoolInteraction

BLOCK = ["attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias", "ln_1.weight"]
BLOCK += ["ln_1.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"]
BLOCK += ["ln_2.weight", "ln_2.bias"]  # the authors' order of parameters
MATRICES = ["global_proj", "word_cross", "frame_cross", "local_proj", "frame_fine", "word_fine"]
MATRICES += ["frame_fine2", "word_fine2"]  # X-CLIP's, in the authors' order
MASK = torch.tensor([[True] * 5, [True, True, True, False, False]])


def det(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Deterministic values."""
    return torch.from_numpy((np.random.RandomState(seed).randn(*shape) * scale).astype(np.float32))


def fill(named, seed: int, scale: float = 0.05) -> None:
    """Deterministic values for parameters in a given order; weights of norms lie around one."""
    with torch.no_grad():
        for i, (name, parameter) in enumerate(named):
            value = det(*parameter.shape, seed=seed * 1000 + i, scale=scale)
            parameter.copy_(value + 1 if parameter.ndim == 1 and name.endswith("weight") else value)


def near(found: Tensor, expected: object, atol: float = 1e-5) -> bool:
    """Whether every number is as close as the rows are printed."""
    return torch.allclose(found.detach(), torch.as_tensor(expected, dtype=found.dtype), atol=atol, rtol=0)


def blocks_of(temporal: TemporalTransformer) -> list[tuple[str, nn.Parameter]]:
    return [(f"{n}.{key}", block.get_parameter(key)) for n, block in enumerate(temporal.blocks) for key in BLOCK]


def golden_temporal(*, whole_shell: bool) -> TemporalTransformer:
    """Filled as one module (seed 6), or positions (6) and blocks (4) apart."""
    temporal = TemporalTransformer(64, TemporalConfig(layers=2, heads=4, init="normal"))
    positions = [("pos_embed.weight", temporal.pos_embed.weight)]
    fill(positions + blocks_of(temporal), seed=6)
    if not whole_shell:
        fill(blocks_of(temporal), seed=4)
    return temporal


def golden_afa() -> AttentiveFrameAggregation:
    afa = AttentiveFrameAggregation(64, AfaConfig())
    fill(afa.score[0].named_parameters(), seed=50, scale=0.1)
    fill(afa.score[2].named_parameters(), seed=51, scale=0.1)
    return afa


def test_t01_contrastive():
    """The row is of one direction; this loss is the mean of both."""
    logits = det(5, 5, seed=1, scale=3.0).double()
    columns = -logits.log_softmax(0).diagonal().mean()
    assert contrastive(logits).item() == pytest.approx((1.8344908 + columns.item()) / 2, abs=1e-6)


def test_t02_layer_norm():
    norm = nn.LayerNorm(8, eps=LAYER_NORM_EPS)
    fill(norm.named_parameters(), seed=2)
    found = norm(det(2, 8, seed=3, scale=1e-3))
    assert near(found[0, :4], [2.0905976, 0.7192328, 0.1390638, -1.7724258])
    assert near(found.sum(), 0.0407758)


def test_t03_transformer():
    temporal = TemporalTransformer(64, TemporalConfig(layers=2, heads=4, init="normal"))
    fill(blocks_of(temporal), seed=4)
    nn.init.zeros_(temporal.pos_embed.weight)
    frames = det(5, 2, 64, seed=5).transpose(0, 1)
    found = (temporal(frames, MASK) - frames).transpose(0, 1)
    assert near(found[0, 0, :3], [0.3707425, -0.2567468, 2.6973491])
    assert near(found.sum(), 1.7449492, 1e-3) and near(found.abs().sum(), 532.98043, 1e-3)


def test_t04_t05_clip4clip():
    text, frames = det(3, 64, seed=7), det(2, 5, 64, seed=8)
    expected = [[0.5832409, 5.4634628], [-4.8368821, 15.5662842], [6.5858665, -4.4930458]]
    assert near(LogitScale(4.0)(cosine(text, mean_pool(frames, MASK))), expected, 1e-4)
    contextual = golden_temporal(whole_shell=True)(frames, MASK)
    expected = [[1.2646172, 5.9902492], [-4.6817307, 16.5739841], [6.7442360, -2.6737330]]
    assert near(LogitScale(4.0)(cosine(text, mean_pool(contextual, MASK))), expected, 1e-4)


def test_t06_bertadam():
    config = OptimConfig(kind="bertadam", lr=1e-2, clip_lr=0.0, head_lr=1e-1, weight_decay=0.2)
    model = nn.ModuleDict({"rest": nn.Module(), "afa": nn.Module()})  # p1 has the rate of the head, and a bias's decay
    first = model["rest"].weight = nn.Parameter(det(3, 4, seed=9))
    second = model["afa"].bias = nn.Parameter(det(4, seed=10))
    optimizer, reported = build_optimizer(model, config, fused=False), []
    for step in range(5):
        for i, parameter in enumerate((first, second)):
            parameter.grad = det(*parameter.shape, seed=100 + 10 * step + i, scale=0.3)
        nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * schedule(step, 20, config)
        optimizer.step()
        reported.append(config.head_lr * schedule(step + 1, 20, config))
    assert near(first[0], [0.0183760, -0.2944304, -1.1231474, -0.0121469])
    assert near(second, [1.2355849, 0.4813351, -1.7994517, 0.1767711])
    assert reported == pytest.approx([0.05, 0.0975528, 0.0945503, 0.0904508, 0.0853554], abs=1e-7)


def test_t10_t11_t12_xclip():
    interaction = XClipInteraction(64, words=7, frames=5, temperature=0.01)
    interaction.logit_scale = LogitScale(4.0)
    with torch.no_grad():
        for i, name in enumerate(MATRICES):
            matrix = interaction.get_parameter(name)
            matrix.copy_(torch.eye(len(matrix)) + det(*matrix.shape, seed=200 + i, scale=0.05))
    sentence, words, frames = det(3, 64, seed=7), det(3, 7, 64, seed=20), det(2, 5, 64, seed=8)
    local = unit(words) @ interaction.local_proj
    expected = [[0.2833154, 0.2616896], [0.2215464, 0.3057134], [0.2269699, 0.2533498]]
    assert near(interaction._word_frame(local, unit(frames)), expected)
    text = TextFeatures(sentence=sentence, words=words)
    contextual = golden_temporal(whole_shell=False)(frames, MASK)
    with_temporal = [[7.7382870, 12.2811413], [6.2095242, 13.9065189], [6.9141426, 10.1437883]]
    without = [[7.5786152, 11.6623764], [6.1165094, 13.1893425], [7.5381832, 10.6098757]]
    for pooled, expected in ((contextual, with_temporal), (frames, without)):
        video = VideoFeatures(vector=unit(mean_pool(pooled, MASK)), frames=frames, real=MASK)
        assert near(interaction(text, video), expected, 1e-4)
    rows = [
        [0.1798487, 0.1679249, 0.2068003, 0.2432787, 0.2021475],
        [0.2312917, 0.2016277, 0.2096357, 0.1704642, 0.1869806],
    ]
    assert near(interaction.relevance(text[:2], video).softmax(-1), rows)


@pytest.mark.parametrize(
    ("num_tokens", "from_previous", "from_next"),
    [
        (50, {1, 8, 15, 22, 29, 36, 43}, {4, 11, 18, 25, 32, 39, 46}),
        (197, {1, 29, 57, 85, 113, 141, 169}, {4, 32, 60, 88, 116, 144, 172}),
    ],
)
def test_t13_token_shift(num_tokens: int, from_previous: set[int], from_next: set[int]):
    """A token's number says which frame it comes from: three frames, the first without a previous one."""
    frame = torch.arange(3).view(3, 1, 1).expand(-1, num_tokens, 2).float()
    moved = (shift_tokens(frame, 3) - frame)[..., 0]
    found = [{sign: set((row == sign).nonzero()[:, 0].tolist()) for sign in (-1, 1)} for row in moved]
    assert found == [
        {-1: set(), 1: from_next},
        {-1: from_previous, 1: from_next},
        {-1: from_previous, 1: set()},
    ]


def golden_selector(num_patches: int) -> TokenSelector:
    selector = TokenSelector(16, num_patches, 3, "zero").eval()
    fill(selector.named_parameters(), seed=30, scale=0.3)
    return selector


def test_t14_token_scores():
    found = golden_selector(5).scores(det(4, 6, 16, seed=31))
    assert near(found[0], [0.4407776, 0.5838349, 0.0472899, 0.1300478, -0.1798600, 0.1500737])


def test_t15_token_selection():
    selector, tokens = golden_selector(5), det(2, 12, 16, seed=31).view(4, 6, 16)
    chosen = selector(tokens).view(2, 8, 16)
    assert near(chosen.sum(), -16.5250277)
    assert topk_indices(selector.scores(tokens)[:, 1:], 3).tolist() == [[0, 2, 4], [0, 1, 4], [1, 2, 4], [0, 2, 3]]


def test_t16_perturbed_topk():
    scores = det(2, 5, seed=34, scale=0.05).requires_grad_()
    found = perturbed_topk(scores, det(2, 8, 5, seed=33), kept=2, sigma=0.05)
    assert near(found[0], [[0.75, 0, 0.25, 0, 0], [0, 0.125, 0.125, 0.375, 0.375]])
    found.backward(det(2, 2, 5, seed=35))
    assert near(scores.grad[0], [-8.5428171, 1.9820189, 0.9621716, -3.3259289, 0.8159932])


def ts2net_head() -> Ts2NetInteraction:
    head = Ts2NetInteraction()
    head.logit_scale = LogitScale(4.0)
    return head


def test_t17_frame_similarity():
    frames = det(2, 5, 64, seed=8)
    video = VideoFeatures(vector=frames[:, 0], frames=frames, real=MASK)
    expected = [[9.7376404, 18.9313049], [1.7771282, 10.9826946], [4.8123431, 5.0779767]]
    assert near(ts2net_head()(TextFeatures(sentence=det(3, 64, seed=7)), video), expected, 1e-4)


def test_t18_t19_ts2net():
    """The authors' mask, repeated as a whole: at the class tokens of the short video it is 1 0 0 1 1."""
    contextual = golden_temporal(whole_shell=False)(det(2, 20, 64, seed=40), MASK.repeat(1, 4))[:, ::4]
    counted = MASK.repeat(1, 4)[:, ::4]
    assert counted.int().tolist() == [[1, 1, 1, 1, 1], [1, 0, 0, 1, 1]]
    text = TextFeatures(sentence=det(3, 64, seed=7))
    video = VideoFeatures(vector=contextual[:, 0], frames=contextual, real=counted)
    expected = [[11.2765312, -0.2614579], [11.3376646, -1.8947308], [6.9788003, 4.0898857]]
    assert near(ts2net_head()(text, video), expected, 1e-4)
    row = [0.1895503, 0.2279306, 0.1706851, 0.1975201, 0.2143138]
    assert near(ts2net_head().relevance(text[:2], video).softmax(-1)[0], row)


def test_t20_t21_teachclip():
    text, frames = det(3, 64, seed=7), det(2, 5, 64, seed=8)
    contextual = golden_temporal(whole_shell=False)(frames, MASK)
    vector, relevance = golden_afa()(contextual, MASK)
    expected = [[-3.0082841, 18.6627884], [-2.5478745, 12.5725546], [3.1528134, 6.9313745]]
    assert near(LogitScale(4.0)(cosine(text, vector)), expected, 1e-4)
    rows = [
        [0.2743258, 0.0854380, 0.2605636, 0.1620528, 0.2176197],
        [0.6480473, 0.0513101, 0.0673109, 0.1494778, 0.0838539],
    ]
    assert near(relevance.softmax(-1), rows)
    expected = [[0.4814232, 5.6933942], [-3.5827591, 16.2585373], [6.0296478, -4.9921436]]
    assert near(LogitScale(4.0)(cosine(text, mean_pool(contextual, MASK))), expected, 1e-4)
    assert near(vector[0, :4], [-0.0247847, 0.0960736, -0.1421697, -0.1564148])
    assert near(vector.sum(), 1.1494433)


def test_t22_padding_leaks_unless_it_is_masked():
    """Three frames of twelve, weights as they start: three quarters of the pooling weight lie on padding, or none."""
    torch.manual_seed(0)
    real, frames = (torch.arange(12) < 3)[None], torch.randn(1, 12, 64)
    weights = {}
    for mask in (False, True):
        afa = AttentiveFrameAggregation(64, AfaConfig(mask_padding=mask))
        weights[mask] = (afa(frames, real)[1] / afa.pool_temperature).softmax(-1)
    assert weights[False][~real].sum().item() == pytest.approx(0.76, abs=0.05)
    assert weights[True][~real].sum() == 0


def golden_losses(teachers: int, config: LossConfig) -> tuple[dict[str, float], Tensor, Tensor]:
    """Parts of the loss, and the gradients to logits and frame scores."""
    logits = (det(4, 4, seed=60, scale=3) + 4 * torch.eye(4)).double().requires_grad_()
    scores = det(4, 5, seed=63).double().requires_grad_()
    targets = [
        TeacherScores(
            logits=(det(4, 4, seed=61 + k, scale=3) + 5 * torch.eye(4)).double(),
            relevance=det(4, 5, seed=64 + k, scale=0.2).double(),
        )
        for k in range(teachers)
    ]
    found = total_loss(TrainingScores.of(logits, scores), targets, config)
    found["total"].backward()
    return {name: value.item() for name, value in found.items()}, logits.grad, scores.grad


@pytest.mark.parametrize(
    ("teachers", "config", "expected"),
    [
        (1, LossConfig(), {"contrastive": 1.6573750, "coarse": 1.2329063, "fine": 0.3921625, "total": 2.3487062}),
        (2, LossConfig(), {"contrastive": 1.6573750, "coarse": 1.5093255, "fine": 0.3860290, "total": 2.6128585}),
        (
            2,  # the authors' weights of their variant "ce"
            LossConfig(
                contrastive=ContrastiveConfig(weight=1.0),
                coarse=CoarseConfig(weight=10.0, distance="cross_entropy"),
                fine=FineConfig(weight=1.0),
            ),
            {"coarse": 1.2645946, "total": 14.6893501},
        ),
        (
            1,
            LossConfig(coarse=CoarseConfig(distance="l1"), fine=FineConfig(distance="pearson")),
            {"coarse": 2.5850928, "fine": 1.0449953, "total": 5.0065584},
        ),
    ],
    ids=["one teacher", "two teachers", "cross-entropy", "l1 and pearson"],
)
def test_t23_losses(teachers: int, config: LossConfig, expected: dict[str, float]):
    found, _, _ = golden_losses(teachers, config)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_t24_gradients():
    _, of_logits, of_scores = golden_losses(2, LossConfig())
    assert near(of_logits[0], [-0.0701503, 0.0009512, 0.0556170, 0.0000154], 1e-6)
    assert near(of_scores[0], [-0.0195138, 0.0367760, 0.0011383, -0.0159644, -0.0024362], 1e-6)


def test_t25_xpool():
    head = XPoolInteraction(512, dropout=0.3).eval()
    order = ["q_proj", "k_proj", "v_proj", "out_proj", "linear_proj", "norm1", "norm2", "norm3"]
    named = [
        (f"{part}.{kind}", head.pooling.get_parameter(f"{part}.{kind}"))
        for part in order
        for kind in ("weight", "bias")
    ]
    fill(named, seed=70, scale=0.03)
    sentence, frames = det(3, 512, seed=71), det(3, 4, 512, seed=72)
    text, video = TextFeatures(sentence=sentence), VideoFeatures(vector=frames[:, 0], frames=frames)
    assert near(head.pooling(sentence, frames).sum(), 1.2718476, 1e-3)
    assert near(head.relevance(text, video).softmax(-1)[0], [0.1798486, 0.2164179, 0.1765164, 0.4272172])
    assert near(head(text, video, scaled=False)[0], [-0.0405434, -0.0205508, 0.0014226])


GATHER = """
import torch
import torch.distributed as dist
from distill import comm

dist.init_process_group("gloo")
generator = torch.Generator().manual_seed(0)
rows, start = torch.randn(4, 6, generator=generator), torch.randn(6, 6, generator=generator)

def gradients(rows, gather):
    encoder, scale = start.clone().requires_grad_(), torch.tensor(1.0, requires_grad=True)
    features = torch.nn.functional.normalize(rows @ encoder, dim=-1)
    features = gather({"features": features})["features"]
    logits = scale.exp() * features @ features.roll(1, 0).T
    torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    return encoder.grad, scale.grad

whole = gradients(rows, lambda tensors: tensors)
shared = gradients(rows[2 * comm.rank() : 2 * comm.rank() + 2], comm.gather)
for one, two in zip(whole, shared):
    dist.all_reduce(two)  # and the mean over processes, as data-parallel training has it
    assert torch.allclose(two / 2, one, atol=1e-6), (two / 2 / one)
if comm.rank() == 0:
    print("ratios", [round(float((two / 2).norm() / one.norm()), 4) for one, two in zip(whole, shared)])
comm.close()
"""


def test_t26_gather(tmp_path: Path):
    """The authors' gather gives 0.5 and 1.0 of the true gradient with two processes, this one all of it."""
    script = tmp_path / "gather.py"
    script.write_text(GATHER)
    assert "ratios [1.0, 1.0]" in launch(2, script).stdout


def deep_towers(quick_gelu: bool = True, freeze: int | None = None) -> Towers:
    """ViT-B/32 in everything but its widths: as many layers, and so as many tensors."""
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 12, "head_width": 64}
    text = {"context_length": 77, "vocab_size": 100, "width": 64, "heads": 1, "layers": 12}
    architecture = {"embed_dim": 64, "quick_gelu": quick_gelu, "vision_cfg": vision, "text_cfg": text}
    return Towers.from_architecture(architecture, freeze, freeze)


def test_t29_quickgelu():
    """302 tensors either way, so nothing but the numbers tells the activations apart."""
    with torch.device("meta"):
        names = [
            open_clip.CLIP(**open_clip.get_model_config(f"ViT-B-32{end}")).state_dict() for end in ("", "-quickgelu")
        ]
    assert len(names[0]) == len(names[1]) == 302 and names[0].keys() == names[1].keys()
    quick, plain = ClipModel(deep_towers()), ClipModel(deep_towers(quick_gelu=False))
    assert len(quick.state_dict()) == 302
    authors = Checkpoint(Path("x"), "clip4clip", {})
    found = {authors.theirs(f"clip.{name}")[0].removeprefix("clip.") for name in quick.state_dict()}
    assert found == names[0].keys()
    plain.load_state_dict(quick.state_dict())
    with torch.no_grad():
        images = det(4, 3, 32, 32, seed=1)
        assert (quick.visual(images) - plain.visual(images)).norm() > 1e-3 * quick.visual(
            images
        ).norm()  # rounding: 1e-7


def test_t30_optimiser_groups():
    temporal = TemporalConfig(layers=4, init="normal")
    config = OptimConfig(kind="bertadam", lr=1e-4, clip_lr=1e-7, head_lr=1e-3)

    def student(freeze: int | None) -> TeachClip:
        config = TeachClipConfig(kind="teachclip", clip=ClipConfig(model="x"), temporal=temporal)
        return TeachClip(config, deep_towers(freeze=freeze))

    groups = build_optimizer(student(None), config, fused=False).param_groups
    found = {(group["peak_lr"], group["weight_decay"]): len(group["params"]) for group in groups}
    decayed = {(1e-7, 0.2): 155, (1e-4, 0.2): 25, (1e-3, 0.2): 2}
    assert found == decayed | {(1e-7, 0.0): 147, (1e-4, 0.0): 24, (1e-3, 0.0): 2}
    frozen = [sum(not p.requires_grad for p in student(freeze).parameters()) for freeze in (0, 6, 12)]
    assert frozen == [7, 151, 295]


BLOCK_SHAPES = {
    "attn.in_proj_weight": (1536, 512),
    "attn.in_proj_bias": (1536,),
    "attn.out_proj.weight": (512, 512),
    "attn.out_proj.bias": (512,),
    "ln_1.weight": (512,),
    "ln_1.bias": (512,),
    "ln_2.weight": (512,),
    "ln_2.bias": (512,),
    "mlp.c_fc.weight": (2048, 512),
    "mlp.c_fc.bias": (2048,),
    "mlp.c_proj.weight": (512, 2048),
    "mlp.c_proj.bias": (512,),
}
TEMPORAL_SHAPES = {"frame_position_embeddings.weight": (77, 512)} | {
    f"transformerClip.resblocks.{n}.{name}": shape for n in range(4) for name, shape in BLOCK_SHAPES.items()
}
AFA_SHAPES = {
    "frameLinear.weight": (512, 512),
    "frameLinear.bias": (512,),
    "frameLinear2.weight": (1, 512),
    "frameLinear2.bias": (1,),
}
XCLIP_SHAPES = {
    "global_mat_weight": (512, 512),
    "local_mat_weight": (512, 512),
    "word_logit_weight": (32, 32),
    "word_mat_weight": (32, 32),
    "word_mat_weight2": (32, 32),
    "frame_logit_weight": (12, 12),
    "frame_mat_weight": (12, 12),
    "frame_mat_weight2": (12, 12),
}
SELECTOR_SHAPES = {
    "visual_token_selector.score_predictor.in_conv.0.weight": (512,),
    "visual_token_selector.score_predictor.in_conv.0.bias": (512,),
    "visual_token_selector.score_predictor.in_conv.1.weight": (256, 512),
    "visual_token_selector.score_predictor.out_conv.0.weight": (256, 512),
    "visual_token_selector.score_predictor.out_conv.2.weight": (1, 256),
}
XPOOL_SHAPES = {
    f"pool_frames.{part}.{kind}": (512, 512) if kind == "weight" and "proj" in part else (512,)
    for part in [*(f"cross_attn.{letter}_proj" for letter in "qkv"), "cross_attn.out_proj", "linear_proj"]
    + [f"layer_norm{number}" for number in (1, 2, 3)]
    for kind in ("weight", "bias")
}


@pytest.mark.parametrize(
    ("kind", "prefix", "build", "shapes", "total"),
    [
        (
            "teachclip",
            "temporal",
            lambda: TemporalTransformer(512, TemporalConfig(init="normal")),
            TEMPORAL_SHAPES,
            12_648_960,
        ),
        ("teachclip", "afa", lambda: AttentiveFrameAggregation(512, AfaConfig()), AFA_SHAPES, 263_169),
        ("xclip", "interaction", lambda: XClipInteraction(512, 32, 12, 0.01), XCLIP_SHAPES, 527_792),
        ("ts2net", "selector", lambda: TokenSelector(512, 49, 3, "seeded"), SELECTOR_SHAPES, None),
        ("xpool", "interaction", lambda: XPoolInteraction(512, 0.3), XPOOL_SHAPES, None),
    ],
    ids=["temporal", "frame aggregation", "X-CLIP", "TS2-Net", "X-Pool"],
)
def test_t31_names_and_shapes(kind: str, prefix: str, build, shapes: dict, total: int | None):
    """ViT-B/32, 32 words and 12 frames: every tensor of ours is one of theirs, and the other way round."""
    with torch.device("meta"):
        module = build()
    authors = Checkpoint(Path("x"), kind, {})
    names = {name: authors.theirs(f"{prefix}.{name}") for name in module.state_dict() if "logit_scale" not in name}
    assert {theirs[0]: tuple(module.state_dict()[name].shape) for name, theirs in names.items()} == shapes
    assert total is None or sum(math.prod(shape) for shape in shapes.values()) == total


def test_t31_sizes_of_whole_models():
    with torch.device("meta"):
        towers = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32-quickgelu"))
    clip = sum(parameter.numel() for parameter in towers.parameters())
    temporal, afa, matrices = (
        sum(math.prod(shape) for shape in shapes.values()) for shapes in (TEMPORAL_SHAPES, AFA_SHAPES, XCLIP_SHAPES)
    )
    assert (clip, clip + temporal, clip + temporal + afa) == (151_277_313, 163_926_273, 164_189_442)
    assert clip + temporal + matrices == 164_454_065
