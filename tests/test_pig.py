"""PIG: its parts against other ways to compute them, padding, labels, frames, recipes, files, and a whole run.

The authors' own numbers are fixtures (`tests/parity/pig.py`).
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import within_ulps
from conftest import World, python, steps
from hypothesis import given
from hypothesis import strategies as st
from labelling import random_teacher, write_labels
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

import distill.release
from distill.config import read_recipe
from distill.conversion.convert import convert
from distill.conversion.options import Options
from distill.data.sampler import SAMPLERS, PigSampler
from distill.errors import ArtefactError, ExpectedError, RecipeError, VideoError
from distill.experiment import prepare
from distill.losses.generation import generation
from distill.model.contract import TrainingScores
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.generator import GeneratorConfig, QueryGenerator, informativeness, most_informative
from distill.model.pooling import CrossAttention
from distill.model.proxies import ProxyAttention, ProxyTokens, left_out
from distill.model.similarity import unit
from distill.model.towers import ClipConfig, Towers
from distill.recipe import Recipe
from distill.release.export import export_clip
from distill.retrieval.gallery import Gallery
from distill.training.lossconfig import LossConfig
from distill.training.objective import total_loss
from distill.training.optim import OptimConfig, build_optimizer, schedule
from distill.training.teachers import TeacherScores
from students.pig import Pig, PigConfig

CLIP = ClipConfig(model="unused")
ARCHITECTURE = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 8, "patch_size": 4, "width": 48, "layers": 3, "head_width": 12},
    "text_cfg": {"context_length": 24, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2},
}
FRAMES, PROXIES, SELECTED = 6, 3, 5


def build(
    generator: dict | None = None, architecture: dict = ARCHITECTURE, freeze: int | None = None, **options
) -> Pig:
    """A model with random weights, of which none is zero."""
    torch.manual_seed(0)
    chosen = GeneratorConfig.model_validate({"selected": SELECTED} | (generator or {}))
    options = {"proxies": PROXIES, "frames": FRAMES, "generator": chosen, **options}
    towers = Towers.from_architecture(architecture, freeze_vision=freeze, freeze_text=freeze)
    model = Pig(PigConfig(kind="pig", clip=CLIP, **options), towers)
    with torch.no_grad():
        for parameter in (model.proxies.temporal, *model.cross.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Captions of different lengths, videos of 6, 4 and 1 frames padded to 6."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 48, (3, 8), generator=generator)
    ids[:, 0] = 48
    for row, end in enumerate((7, 5, 2)):
        ids[row, end], ids[row, end + 1 :] = 49, 0
    frames = torch.randint(0, 256, (3, FRAMES, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return ids, frames, torch.arange(FRAMES) < torch.tensor([6, 4, 1])[:, None]


def all_scores(model: Pig, frames: Tensor, real: Tensor) -> dict[str, Tensor]:
    """Everything that a batch gives the losses, by name."""
    video = model.encode_video(frames, real)
    found = model.training_scores(model.encode_text(batch()[0]), video, None)
    return {"logits": found.rankings["logits"], "vector": video.vector, **found.frames, **found.own}


@pytest.mark.parametrize("padded", [False, True])
def test_proxy_attention_is_dense_attention_with_a_mask(padded: bool):
    """torch's own attention over the whole sequence, with a mask for who sees whom."""
    torch.manual_seed(0)
    globals_, frames, per_frame, width = 3, 4, 5, 24
    plain = nn.MultiheadAttention(width, 3, batch_first=True, dtype=torch.float64)
    nn.init.normal_(plain.in_proj_bias)
    tokens = torch.randn(2, globals_ + frames * per_frame, width, dtype=torch.float64)
    real = torch.tensor([[True] * 4, [True, True, False, False]]) if padded else torch.ones(2, 4, dtype=torch.bool)
    owner = torch.cat([torch.full((globals_,), -1), torch.arange(frames).repeat_interleave(per_frame)])
    seen = (owner == owner[:, None]) | (owner == -1)  # a frame: itself and the global tokens
    seen = seen.expand(2, -1, -1).clone()
    whole = torch.cat([torch.ones(2, globals_, dtype=torch.bool), real.repeat_interleave(per_frame, 1)], 1)
    seen[:, :globals_] = whole.unsqueeze(1)
    expected, weights = plain(
        tokens, tokens, tokens, attn_mask=~seen.repeat_interleave(3, 0), average_attn_weights=False
    )
    attention = ProxyAttention(plain, globals_, per_frame)
    hidden = left_out(real, globals_, per_frame) if padded else None
    found, read = attention(tokens, attn_mask=hidden)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(read, weights[:, :, :globals_], atol=1e-12, rtol=0)
    assert attention(tokens, attn_mask=hidden, need_weights=False)[1] is None


def test_positions_in_time_are_interpolated_at_the_middles_of_frames():
    proxies = ProxyTokens(2, 4, torch.zeros(3))
    with torch.no_grad():
        proxies.temporal.copy_(torch.randn(1, 4, 3))
    table = proxies.temporal[0].detach().numpy()
    for count in (1, 3, 4, 7):
        asked = np.clip((np.arange(count) + 0.5) * 4 / count - 0.5, 0, 3)
        expected = np.stack([np.interp(asked, np.arange(4), column) for column in table.T], axis=1)
        np.testing.assert_allclose(proxies(count)[2].detach().numpy(), expected, atol=1e-6)


def test_it_starts_as_the_authors_do():
    torch.manual_seed(0)
    model = Pig(
        PigConfig(kind="pig", clip=CLIP, frames=4, generator=GeneratorConfig(selected=4)),
        Towers.from_architecture(ARCHITECTURE),
    )
    text, own = model.clip.text, model.generator
    assert not model.proxies.temporal.any() and 0.5 < model.proxies.added.std() < 1.5
    assert torch.equal(model.proxies.in_frames, model.clip.visual.class_embedding)
    assert torch.equal(own.ends, text.token_embedding.weight[-2:]) and torch.equal(
        own.positions, text.positional_embedding
    )
    for name, value in own.transformer.state_dict().items():
        assert torch.equal(value, text.transformer.state_dict()[name])
    assert not {p.data_ptr() for p in own.parameters()} & {p.data_ptr() for p in text.parameters()}
    assert torch.equal(model.cross.q_proj.weight, torch.eye(32)) and not model.cross.q_proj.bias.any()
    assert model.clip.logit_scale.max_log == pytest.approx(math.log(200))


def test_the_most_informative_patches_come_in_the_order_of_their_scores():
    """Against a loop: the largest over heads, patches alone, none of frames that do not count."""
    generator = torch.Generator().manual_seed(3)
    attention = torch.rand(3, 2, 2 + 4 * 3, generator=generator)
    counted = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    scores = informativeness(attention, 2, 3, counted)
    tokens = torch.randn(3, 14, 5, generator=generator)
    chosen, there = most_informative(tokens, scores, 4)
    for row in range(3):
        places = [2 + 3 * f + p for f in range(4) if counted[row, f] for p in (1, 2)]
        best = sorted(places, key=lambda place, row=row: -float(attention[row, :, place].max()))[:4]
        assert torch.equal(chosen[row, : len(best)], tokens[row, best])
        assert there[row].tolist() == [True] * len(best) + [False] * (4 - len(best))


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("projection", ["none", "text"])
def test_the_generator_reads_tokens_as_the_text_tower_reads_words(projection: str, start: bool):
    """A mapper that is the identity, and the embeddings of a caption: what comes out is that caption's sentence."""
    text = build().clip.text
    config = GeneratorConfig(projection=projection, start=start)
    model = QueryGenerator(text, 32, config)
    with torch.no_grad():
        model.mapper.weight.copy_(torch.eye(32))
        model.mapper.bias.zero_()
    ids = torch.tensor([[48, 3, 7, 9, 49], [48, 5, 6, 4, 49]]) if start else torch.tensor([[3, 7, 9, 2, 49]])
    inside = ids[:, 1:-1] if start else ids[:, :-1]
    found = model(text.token_embedding(inside))
    sentence, _ = text(ids)
    expected = sentence if projection == "text" else sentence @ torch.linalg.inv(text.text_projection)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


def test_tokens_that_do_not_count_are_not_read_and_keep_their_places():
    model = build().generator.eval()
    generator = torch.Generator().manual_seed(2)
    tokens, counted = (
        torch.randn(2, 7, 32, generator=generator),
        torch.tensor([True, False, True, True, False, True, True]),
    )
    changed = tokens.clone()
    changed[:, [1, 4]] += 1
    given = counted.expand(2, -1)
    assert torch.equal(model(tokens, given), model(changed, given))
    assert (model(tokens) - model(changed)).abs().max() > 1e-3
    every = torch.ones(2, 7, dtype=torch.bool)
    assert within_ulps(model(tokens, every), model(tokens), 64)


def test_reading_by_pairs_is_the_diagonal_of_reading_by_all():
    torch.manual_seed(0)
    cross = CrossAttention(16, heads=2, dropout=0.5).double().eval()
    query, parts = torch.randn(4, 16).double(), torch.randn(4, 6, 16).double()
    counted = torch.rand(4, 6) < 0.7
    counted[:, 0] = True
    vector, scores = cross.paired(query, parts, counted)
    torch.testing.assert_close(vector, cross(query, parts, counted)[torch.arange(4), torch.arange(4)])
    assert torch.equal(
        scores.masked_fill(~counted[:, None], 0), cross.scores(query, parts).masked_fill(~counted[:, None], 0)
    )
    torch.manual_seed(1)
    together = cross.train().paired(query, parts)[0]
    torch.manual_seed(1)
    alone = torch.cat([cross.paired(query[:1], parts[:1])[0], together[1:]])
    assert torch.allclose(alone, together, atol=1e-12), "one mask for all of a call"
    assert (together - cross.eval().paired(query, parts)[0]).abs().max() > 1e-3


def test_the_generation_loss_equals_a_numpy_oracle():
    generator = torch.Generator().manual_seed(4)
    query, sentence = torch.randn(2, 5, 7, generator=generator).double()
    q, s = query.numpy(), sentence.numpy()
    cosines = (q * s).sum(1) / np.linalg.norm(q, axis=1) / np.linalg.norm(s, axis=1)
    assert generation(query, sentence).item() == pytest.approx(np.mean(2 - 2 * cosines), abs=1e-12)


def test_the_vector_is_the_video_as_its_pseudo_query_reads_it():
    """The whole of it put together by hand: X-Pool's head as a teacher has it, over the tokens of the tower."""
    model = build().eval()
    _, frames, real = batch()
    real = torch.ones_like(real)
    with torch.no_grad():
        video = model.encode_video(frames, real)
        tokens, _ = model.clip.visual(frames.flatten(0, 1), proxies=model.proxies(FRAMES))
        context = torch.cat([tokens[:, : 1 + PROXIES], tokens[:, 1 + PROXIES :: 5]], 1)
        assert torch.equal(video.frames, context[:, 1 + PROXIES :])
        read = model.cross(video.pseudo_query, context)[torch.arange(3), torch.arange(3)]
    torch.testing.assert_close(video.vector, read, atol=1e-5, rtol=1e-5)
    asked = model.relevance(TextFeatures(sentence=video.pseudo_query), video)
    torch.testing.assert_close(asked, video.relevance, atol=1e-5, rtol=1e-5)
    galleries = VideoFeatures(vector=video.vector, frames=unit(video.frames), real=real)  # which store unit frames
    stored = model.relevance(TextFeatures(sentence=video.pseudo_query), galleries)
    assert torch.equal(stored.argmax(1), asked.argmax(1)) and (stored.softmax(1) - asked.softmax(1)).abs().max() < 0.02


def test_what_labels_teach_of_frames_is_what_xpool_says_of_them(world: World):
    head = random_teacher(world, "xpool").interaction
    model = build()
    model.cross.load_state_dict(head.pooling.state_dict())
    text = TextFeatures(sentence=torch.randn(3, 32))
    video = VideoFeatures(vector=torch.randn(3, 32), frames=torch.randn(3, 6, 32))
    assert torch.equal(model.relevance(text, video), head.relevance(text, video))


@pytest.mark.parametrize("options", [{}, {"mask_padding": True}, {"generator": {"ends": "learned", "start": False}}])
def test_encoding_then_scoring_trains_every_parameter(options: dict):
    model = build(**options)
    ids, frames, real = batch()
    text, video = model.encode_text(ids), model.encode_video(frames, real)
    assert video.frames is None, "training has no need of them"
    found = model.training_scores(text, video, None)
    assert torch.allclose(found.rankings["logits"], model.similarity(text, video) / 0.07, atol=1e-4)
    recalled = model.query_vectors(text) @ model.index_vectors(video).T
    assert torch.allclose(recalled, model.similarity(text, video), atol=1e-6) and model.rerank_fields == ()
    target = TeacherScores(logits=torch.randn(3, 3), relevance=torch.randn(3, FRAMES), sentence=torch.randn(3, 32))
    config = LossConfig.model_validate({"sentence": {"weight": 1.0}})
    total_loss(found, [target], config, real=real if model.mask_padding else None)["total"].backward()
    untaught = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert untaught == ([] if options.get("generator") else ["generator.ends"])


def test_the_generation_loss_moves_both_towers_and_the_relevance_only_the_videos():
    model = build()
    ids, frames, real = batch()
    scores = model.training_scores(model.encode_text(ids), model.encode_video(frames, real), None)
    taught = []
    for loss in (scores.own["generation"], scores.frames["pooling"].square().sum()):
        model.zero_grad()
        loss.backward(retain_graph=True)
        taught.append(
            {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None and "clip" in name}
        )
    assert taught == [{"visual", "text"}, {"visual"}]


@pytest.mark.parametrize("masked", [False, True])
def test_what_stands_for_padding_counts_in_no_score(masked: bool):
    model = build(mask_padding=masked).eval()
    _, frames, real = batch()
    changed = frames.clone()
    changed[~real] = 255 - changed[~real]
    with torch.no_grad():
        a, b = all_scores(model, frames, real), all_scores(model, changed, real)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_short_videos_end_with_copies_of_their_last_frame_which_a_mask_hides():
    model, masking = build().eval(), build(mask_padding=True).eval()
    _, frames, real = batch()
    copies = torch.stack([frames[0], frames[1][[0, 1, 2, 3, 3, 3]], frames[2][[0] * 6]])
    every = torch.ones_like(real)
    with torch.no_grad():
        short, copied = all_scores(model, frames, real), all_scores(model, copies, every)
        hidden, nothing_to_hide = all_scores(masking, frames, real), all_scores(masking, copies, every)
    assert all(torch.equal(short[name], copied[name]) for name in short)
    assert all(within_ulps(nothing_to_hide[name], copied[name], 256) for name in short)
    assert (short["vector"] - hidden["vector"]).abs().amax(1).gt(1e-3).tolist() == [False, True, True]
    assert not hidden["pooling"].softmax(-1)[~real].any() and short["pooling"].softmax(-1)[~real].all()


def test_frames_that_are_hidden_leave_the_others_as_if_they_were_not_there():
    """The tower on the real frames alone, at the same positions in time."""
    model = build(mask_padding=True).eval()
    _, frames, real = batch()
    with torch.no_grad():
        proxies = model.proxies(FRAMES)
        whole, _ = model.clip.visual(frames.flatten(0, 1), proxies=proxies, counted=real.flatten())
        for row, count in ((1, 4), (2, 1)):
            fewer = (*proxies[:2], proxies[2][:count])
            alone, _ = model.clip.visual(frames[row, :count], proxies=fewer)
            torch.testing.assert_close(whole[row : row + 1, : alone.shape[1]], alone, atol=1e-5, rtol=1e-5)


def test_videos_do_not_depend_on_one_another():
    model = build(mask_padding=True).eval()
    _, frames, real = batch()
    with torch.no_grad():
        together = model.encode_video(frames, real)
        alone = VideoFeatures.cat([model.encode_video(frames[i : i + 1], real[i : i + 1]) for i in range(3)])
    for name, value in together.tensors().items():
        torch.testing.assert_close(alone.tensors()[name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("freeze", [0, 2, 3])
def test_frozen_blocks_still_run_and_the_generator_is_trained_whatever_is_frozen(freeze: int):
    model = build(freeze=min(freeze, 2))
    assert model.clip.visual.stem_layers is None, "frames meet in every block: nothing can be stored of one alone"
    ids, frames, real = batch()
    scores = model.training_scores(model.encode_text(ids), model.encode_video(frames, real), None)
    (scores.own["generation"] + scores.rankings["logits"].sum()).backward()
    assert model.proxies.added.grad.any() and model.proxies.temporal.grad.any()
    assert all(p.grad is not None for name, p in model.generator.named_parameters() if name != "ends")
    blocks = model.clip.visual.transformer.resblocks
    assert [block.ln_2.weight.grad is not None for block in blocks] == [layer >= min(freeze, 2) for layer in range(3)]


@pytest.mark.parametrize("mode", ["bf16 parameters", "autocast"])
def test_it_runs_in_half_precision(mode: str):
    model = build(mask_padding=True).eval()
    ids, frames, real = batch()
    expected = model.similarity(model.encode_text(ids), model.encode_video(frames, real))
    if mode == "bf16 parameters":
        model = model.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
        text, video = model.encode_text(ids), model.encode_video(frames, real)
    assert video.relevance.dtype == torch.float32
    assert (model.similarity(text, video) - expected).abs().max() < 0.1


def sentences(weights: tuple[float, ...]) -> list[TeacherScores]:
    generator = torch.Generator().manual_seed(7)
    drawn = torch.randn(len(weights), 4, 8, generator=generator).double()
    return [
        TeacherScores(logits=None, relevance=torch.zeros(4, 1), sentence=sentence, weight=weight)
        for weight, sentence in zip(weights, drawn, strict=True)
    ]


def test_the_sentences_of_several_teachers_are_averaged_by_weight():
    query = torch.randn(4, 8, generator=torch.Generator().manual_seed(8)).double()
    scores = TrainingScores(contrasts=[(1.0, torch.eye(4).double())], rankings={}, pseudo_query=query)
    parts = {"contrastive": {"weight": 0.0}, "coarse": {"weight": 0.0}, "fine": {"weight": 0.0}}
    config = LossConfig.model_validate(parts | {"sentence": {"weight": 0.5}})
    teachers = sentences((3.0, 1.0))
    found = total_loss(scores, teachers, config)
    first, second = (np.mean(((unit(query) - unit(teacher.sentence)).numpy() ** 2).sum(1)) for teacher in teachers)
    assert found["sentence"].item() == pytest.approx((3 * first + second) / 4, abs=1e-12)
    assert found["total"].item() == pytest.approx(0.5 * found["sentence"].item(), abs=1e-12)
    assert "sentence" not in total_loss(scores, [], config)


def test_sentences_teach_no_student_without_a_pseudo_query_and_only_of_their_own_size(world: World, tmp_path: Path):
    weight = {"sentence": {"weight": 1.0}}
    other = world.recipe("other", "teachclip", tmp_path, labels=["somewhere"], losses=weight)
    with pytest.raises(RecipeError, match=r"losses\.sentence: teachclip makes no pseudo-query"):
        read_recipe(other, [], Recipe)
    assert read_recipe(other, ["labels=[]"], Recipe), "without labels there is nothing to refuse"
    labels = write_labels(world, "xpool", tmp_path / "labels")
    path = world.recipe("student", "pig", tmp_path, labels=[str(labels)], losses=weight)
    with pytest.raises(RecipeError, match="coarse: topk has no sentences; use coarse: features"):
        read_recipe(path, [f"labels=[{{path: {labels}, coarse: topk}}]"], Recipe)
    job, _ = prepare(read_recipe(path, ["losses.coarse.weight=0.0"], Recipe))
    assert {"sentence", "relevance"} <= job.sources[0].labels.batch([(0, 0)]).keys(), "read for the sentences alone"
    with pytest.raises(ArtefactError, match=r"its sentences have 32 numbers, the student's 64"):
        job.sources[0].labels.require_sentences(64)
    few = write_labels(world, "xpool", tmp_path / "few", tiers=("relevance",))
    path = world.recipe("less", "pig", tmp_path, labels=[str(few)], losses={**weight, "coarse": {"weight": 0.0}})
    with pytest.raises(ArtefactError, match=r"holds tiers relevance, but losses\.sentence needs 'features'"):
        prepare(read_recipe(path, [], Recipe))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.generator.selected=7"], "reads 25 tokens .* has 24 positions; select 1 fewer, or take fewer frames"),
        (["model.frames=1", "model.generator.selected=17"], "selected: 17, but 1 frames have 16 patches"),
        (["model.generator.projection=words"], "model.pig.generator.projection"),
        (["model.temporal.layers=2"], r"model\.pig\.temporal: unknown key"),
        (["losses.fine.targets=[gate]"], "has no frame scores to teach called 'gate'; it has: pooling"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(overrides: list[str], words: str, world: World, tmp_path: Path):
    path = world.recipe("one", "pig", tmp_path, labels=["somewhere"])
    with pytest.raises(RecipeError, match=words):
        prepare(read_recipe(path, overrides, Recipe))


def test_a_text_tower_of_another_width_needs_its_projection():
    wide = {**ARCHITECTURE, "text_cfg": {**ARCHITECTURE["text_cfg"], "width": 48}}
    with pytest.raises(
        RecipeError, match=r"text tower's width 48, but sentences have 32 numbers; say projection: text"
    ):
        build(architecture=wide)
    _, frames, real = batch()
    video = build({"projection": "text"}, architecture=wide).encode_video(frames, real)
    assert video.pseudo_query.shape == (3, 32)


def test_more_frames_than_positions_are_refused_where_they_are_read():
    frames, real = torch.zeros(1, 14, 3, 8, 8), torch.ones(1, 14, dtype=torch.bool)
    with pytest.raises(RecipeError, match="reads 25 tokens of a video"):
        build().encode_video(frames, real)
    assert build().encode_video(frames[:, :12], real[:, :12]).vector.shape == (1, 32), "positions are interpolated"


@pytest.mark.parametrize("total", [40, 13])
def test_the_optimizer_and_its_schedule_equal_a_loop(total: int):
    """Adam with epsilon before the correction, then decay, by names; in double precision."""
    config = OptimConfig(kind="hf_adamw", lr=0.1, clip_lr=0.02, head_lr=0.1, weight_decay=0.3, warmup=0.1)
    torch.manual_seed(0)
    holder = nn.ModuleDict({"clip": nn.LayerNorm(4), "generator": nn.Linear(4, 3)}).double()
    holder["clip"].register_parameter("logit_scale", nn.Parameter(torch.tensor([2.0]).double()))
    before = {name: p.detach().numpy().copy() for name, p in holder.named_parameters()}
    optimizer = build_optimizer(holder, config, fused=False)
    gradients = {name: torch.randn(total, *p.shape).double() for name, p in holder.named_parameters()}
    for step in range(total):
        for name, parameter in holder.named_parameters():
            parameter.grad = gradients[name][step].clone()
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * schedule(step, total, config)
        optimizer.step()
    ramp = int(0.1 * total)
    for name, value in before.items():
        mean = square = np.zeros_like(value)
        peak, decay = 0.02 if name.startswith("clip") else 0.1, 0.0 if "bias" in name or "logit_scale" in name else 0.3
        for s in range(1, total + 1):
            g = gradients[name][s - 1].numpy()
            mean, square = 0.9 * mean + 0.1 * g, 0.98 * square + 0.02 * g**2
            factor = s / ramp if s < ramp else 0.5 * (1 + math.cos(math.pi * (s - ramp) / (total - ramp)))
            value = value - peak * factor * math.sqrt(1 - 0.98**s) / (1 - 0.9**s) * mean / (np.sqrt(square) + 1e-6)
            value = value - peak * factor * decay * value
        np.testing.assert_allclose(holder.get_parameter(name).detach().numpy(), value, atol=1e-12)


def test_parts_have_their_rates():
    optim = OptimConfig(kind="hf_adamw", lr=1.0e-5, clip_lr=1.0e-6, head_lr=1.0e-4)
    model = build()
    rate = {
        id(p): group["lr"] for group in build_optimizer(model, optim, fused=False).param_groups for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        if name == "generator.ends":
            assert id(parameter) not in rate
            continue
        assert rate[id(parameter)] == (1.0e-6 if name.startswith("clip.") else 1.0e-5), name


@given(st.integers(1, 5000), st.integers(1, 40), st.floats(1, 120))
def test_frames_are_evenly_spaced_from_the_first_to_the_last(count: int, num_frames: int, rate: float):
    sampler = PigSampler(kind="pig", num_frames=num_frames)
    found = sampler.indices(count, rate)
    assert len(found) == num_frames and found[0] == 0 and found == sorted(found)
    assert num_frames == 1 or found[-1] == count - 1
    exact = [place * (count - 1) / max(1, num_frames - 1) for place in range(num_frames)]
    assert all(frame in (math.floor(e), round(e), math.floor(e - 1e-9)) for frame, e in zip(found, exact, strict=True))
    by_time = sampler.moments(np.arange(count + 1) / 25)
    assert all(abs(a - b) <= 1 for a, b in zip(found, by_time, strict=True)), "the same rule, but for rounding"


def test_a_clip_is_sampled_as_a_video_of_its_own():
    sampler = PigSampler(kind="pig", num_frames=3)
    assert sampler.indices(500, 25.0, 2.0, 6.0) == [50, 100, 150]
    with pytest.raises(VideoError, match=r"0 sampled of 50 between 9\.0 s and 12\.0 s"):
        sampler.indices(50, 25.0, 9.0, 12.0)
    for wrong in ({"num_frames": 0}, {"num_frames": "12"}, {"fps": 1}):
        with pytest.raises(ValidationError):
            PigSampler.model_validate({"kind": "pig", **wrong})
    assert SAMPLERS["pig"] is PigSampler


@pytest.mark.slow
def test_a_run_is_released_searched_and_evaluated_with_equal_scores(world: World, tmp_path: Path):
    """Frames of PIG's own sampler, an X-Pool teacher's labels, one vector a video to the end."""
    frames = {}
    for split in ("train", "test"):
        frames[split] = tmp_path / "frames" / split
        given_ = world.corpus / f"{split}.csv", world.corpus / "videos"
        python(
            "tools/pack_frames.py",
            *given_,
            "--layout",
            "msrvtt",
            "--size",
            "64",
            "--sampler",
            "pig",
            "--out",
            frames[split],
        )
    there = World(world.folder, world.corpus, {**frames, "val": frames["test"]}, world.towers)
    labels = write_labels(there, "xpool", tmp_path / "labels")
    losses = {"sentence": {"weight": 1.0}}
    path = there.recipe("one", "pig", tmp_path, labels=[str(labels)], data={"batch_size": 16}, losses=losses)
    python("distill/run.py", path)
    assert steps(tmp_path / "one")[0].keys() >= {"contrastive", "generation", "coarse", "fine", "sentence"}
    release = tmp_path / "one" / "release"
    python(
        "tools/index.py", release, frames["test"], "--out", tmp_path / "gallery", "--videos", world.corpus / "videos"
    )
    loaded = distill.release.load(release)
    assert load_file(release / "model.safetensors").keys() == loaded.model.state_dict().keys()
    gallery = Gallery.open(tmp_path / "gallery", loaded)
    (hits,) = gallery.search(["a red apple"], 3)
    assert len(hits) == 3 and all(hit.weighed_by == "query" and hit.seconds[0] < hit.seconds[1] for hit in hits)
    row = gallery.release.encode_video(world.corpus / "videos" / hits[0].source)
    score = loaded.model.similarity(loaded.encode_text(["a red apple"]), row)
    assert score.item() == pytest.approx(hits[0].score, abs=2e-3), "as stored in half precision"
    python("tools/evaluate.py", release, frames["test"], "--protocol", "own", "--out", tmp_path / "result.json")
    assert (tmp_path / "result.json").is_file()
    export_clip(loaded, tmp_path / "towers")
    towers = "open_clip_model.safetensors"
    assert load_file(tmp_path / "towers" / towers).keys() == load_file(world.towers / towers).keys()


TOWERS = {"vision": 128, "text": 64, "dim": 64, "context": 24, "vocabulary": 60, "layers": 2}


def theirs() -> dict[str, tuple[int, ...]]:
    """Names and shapes of a PIG checkpoint, written out by hand."""
    vision, text, dim = TOWERS["vision"], TOWERS["text"], TOWERS["dim"]

    def blocks(place: str, width: int) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for layer in range(TOWERS["layers"]):
            stem = f"{place}.encoder.layers.{layer}"
            found |= {f"{stem}.self_attn.{p}_proj.weight": (width, width) for p in ("q", "k", "v", "out")}
            found |= {f"{stem}.self_attn.{p}_proj.bias": (width,) for p in ("q", "k", "v", "out")}
            found |= {f"{stem}.layer_norm{n}.{part}": (width,) for n in (1, 2) for part in ("weight", "bias")}
            found |= {f"{stem}.mlp.fc1.weight": (4 * width, width), f"{stem}.mlp.fc1.bias": (4 * width,)}
            found |= {f"{stem}.mlp.fc2.weight": (width, 4 * width), f"{stem}.mlp.fc2.bias": (width,)}
        return found

    def words(place: str) -> dict[str, tuple[int, ...]]:
        return {
            f"{place}.embeddings.token_embedding.weight": (TOWERS["vocabulary"], text),
            f"{place}.embeddings.position_embedding.weight": (TOWERS["context"], text),
            f"{place}.final_layer_norm.weight": (text,),
            f"{place}.final_layer_norm.bias": (text,),
            **blocks(place, text),
        }

    clip, see, reads = "encoder.clipmodel", "encoder.clipmodel.vision_model", "generator.clip_reconstructor"
    return {
        f"{clip}.logit_scale": (),
        f"{clip}.text_projection.weight": (dim, text),
        f"{clip}.visual_projection.weight": (dim, vision),
        **words(f"{clip}.text_model"),
        f"{see}.embeddings.class_embedding": (vision,),
        f"{see}.embeddings.added_cls": (3, vision),
        f"{see}.embeddings.cls_in_frames": (vision,),
        f"{see}.embeddings.temporal_embedding": (1, 4, vision),
        f"{see}.embeddings.patch_embedding.weight": (vision, 3, 8, 8),
        f"{see}.embeddings.position_embedding.weight": (5, vision),
        **{
            f"{see}.{norm}.{part}": (vision,)
            for norm in ("pre_layrnorm", "post_layernorm")
            for part in ("weight", "bias")
        },
        **blocks(see, vision),
        **words(reads),
        f"{reads}.video_mapper.weight": (text, dim),
        f"{reads}.video_mapper.bias": (text,),
        **{f"fusioner.cross_attn.{p}_proj.weight": (dim, dim) for p in ("q", "k", "v", "out")},
        **{f"fusioner.cross_attn.{p}_proj.bias": (dim,) for p in ("q", "k", "v", "out")},
        "fusioner.linear_proj.weight": (dim, dim),
        "fusioner.linear_proj.bias": (dim,),
        **{f"fusioner.layer_norm{n}.{part}": (dim,) for n in (1, 2, 3) for part in ("weight", "bias")},
    }


def checkpoint() -> dict[str, Tensor]:
    """A whole model as its authors save it, position ids of old versions of transformers included."""
    generator = torch.Generator().manual_seed(5)
    state = {name: torch.randn(shape, generator=generator) / 8 for name, shape in theirs().items()}
    ids = {"encoder.clipmodel.text_model": 24, "encoder.clipmodel.vision_model": 5, "generator.clip_reconstructor": 24}
    return state | {f"{place}.embeddings.position_ids": torch.arange(count)[None] for place, count in ids.items()}


ARRIVES = {  # theirs -> ours, a few of every part
    "encoder.clipmodel.vision_model.embeddings.added_cls": "proxies.added",
    "encoder.clipmodel.vision_model.embeddings.cls_in_frames": "proxies.in_frames",
    "encoder.clipmodel.vision_model.embeddings.temporal_embedding": "proxies.temporal",
    "encoder.clipmodel.vision_model.pre_layrnorm.weight": "clip.visual.ln_pre.weight",
    "encoder.clipmodel.vision_model.encoder.layers.1.mlp.fc1.bias": "clip.visual.transformer.resblocks.1.mlp.c_fc.bias",
    "encoder.clipmodel.text_model.final_layer_norm.bias": "clip.text.ln_final.bias",
    "encoder.clipmodel.text_model.embeddings.token_embedding.weight": "clip.text.token_embedding.weight",
    "generator.clip_reconstructor.final_layer_norm.weight": "generator.ln_final.weight",
    "generator.clip_reconstructor.embeddings.position_embedding.weight": "generator.positions",
    "generator.clip_reconstructor.video_mapper.weight": "generator.mapper.weight",
    "generator.clip_reconstructor.encoder.layers.0.layer_norm2.bias": "generator.transformer.resblocks.0.ln_2.bias",
    "fusioner.cross_attn.out_proj.weight": "cross.out_proj.weight",
    "fusioner.linear_proj.bias": "cross.linear_proj.bias",
    "fusioner.layer_norm3.weight": "cross.norm3.weight",
}


def test_every_tensor_of_a_checkpoint_arrives(tmp_path: Path):
    state = checkpoint()
    torch.save(state, tmp_path / "model_best.pt")
    done = convert(tmp_path / "model_best.pt", "pig", tmp_path / "release", Options(words=16, selected=3))
    found = load_file(tmp_path / "release" / "model.safetensors")
    for name, ours in ARRIVES.items():
        assert torch.equal(found[ours], state[name]), name
    reads, clip = "generator.clip_reconstructor", "encoder.clipmodel"
    stacked = [state[f"{reads}.encoder.layers.1.self_attn.{letter}_proj.weight"] for letter in "qkv"]
    assert torch.equal(found["generator.transformer.resblocks.1.attn.in_proj_weight"], torch.cat(stacked))
    assert torch.equal(found["generator.ends"], state[f"{reads}.embeddings.token_embedding.weight"][-2:])
    assert torch.equal(found["clip.text.text_projection"], state[f"{clip}.text_projection.weight"].T)
    assert found["clip.logit_scale.log"].item() == state[f"{clip}.logit_scale"].item()
    parts = 3 * 2 * TOWERS["layers"] * 2  # of three transformers: two more names for each weight and bias of q, k, v
    assert len(found) == len(theirs()) - parts
    assert done.record["unused"].keys() == {name for name in state if name.endswith("position_ids")}
    assert done.record["tensors"] == {"converted": len(theirs()), "unused": 3}
    release = distill.release.load(tmp_path / "release")
    assert release.frames_config["sampler"] == {"kind": "pig", "num_frames": 4}
    assert release.config.model["generator"]["selected"] == 3
    assert release.encode_video(torch.zeros(4, 3, 16, 16, dtype=torch.uint8).numpy()).vector.shape == (1, 64)
    assert "--frames 4 --sampler pig" in done.report() and "taken for" not in done.report()
    with pytest.raises(ExpectedError, match=r"reads 26 tokens of a video, .* 24 positions"):
        convert(tmp_path / "model_best.pt", "pig", tmp_path / "guess", Options(words=16))  # the authors' 16 patches


@pytest.mark.parametrize(
    ("changes", "kind", "options", "words"),
    [
        ({"fusioner.extra": torch.ones(1)}, "pig", {}, "unknown: fusioner.extra"),
        ({"fusioner.linear_proj.bias": None}, "pig", {}, "missing: fusioner.linear_proj.bias"),
        ({}, "xpool", {"selected": None}, "so it is not xpool; use --kind pig"),
        ({}, "pig", {"frames": 12}, "--frames 12, but its positions in time are 4; leave it out"),
        ({}, "pig", {"selected": 15}, "reads 25 tokens of a video"),
        ({"generator.query_tokens": torch.ones(64)}, "pig", {}, "F-PIG, the earlier release"),
        ({}, "teachclip", {"selected": 3}, "--selected does not go with --kind teachclip, only with pig"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict, kind: str, options: dict, words: str, tmp_path: Path):
    state = {name: value for name, value in (checkpoint() | changes).items() if value is not None}
    torch.save(state, tmp_path / "model_best.pt")
    with pytest.raises(ExpectedError, match=words):
        convert(
            tmp_path / "model_best.pt", kind, tmp_path / "release", Options(**{"words": 16, "selected": 3} | options)
        )
    assert not (tmp_path / "release").exists()
