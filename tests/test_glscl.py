"""GLSCL: the authors' numbers, formulas against NumPy and torch, padding, batches, what labels teach, checkpoints."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import World, launch, python, steps
from labelling import write_labels
from parity.modules import build_on
from safetensors.torch import load_file
from test_convert import (
    DIM,
    FRAMES,
    POSITIONS,
    SMALL,
    TEMPORAL_LAYERS,
    WORDS,
    blocks,
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
from distill.data.frames import FrameSet
from distill.errors import ArtefactError, ExpectedError, RecipeError
from distill.evaluation import normalise
from distill.evaluation.metrics import ranks_t2v, summarise
from distill.losses.consistency import consistency
from distill.losses.diversity import diversity, margin_ranking
from distill.model.clip import ClipModel, real_words
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.queries import LearnedQueries, QueryConfig
from distill.model.similarity import mean_pool, unit
from distill.model.temporal import TemporalConfig
from distill.model.towers import ClipConfig, Towers
from distill.model.wiring import Wiring
from distill.recipe import Recipe
from distill.retrieval import calibration
from distill.training.lossconfig import ContrastiveConfig, FineConfig, LossConfig
from distill.training.objective import total_loss
from distill.training.teachers import TeacherScores
from students.glscl import Glscl, GlsclConfig, local_score
from tools.convert_checkpoint import main as convert_main
from tools.pack_frames import main as pack_main

GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "golden_glscl.json").read_text())
CLIP = ClipConfig(model="unused")
TEMPORAL = TemporalConfig(layers=1, init="normal")
ALONE = LossConfig(contrastive=ContrastiveConfig(weight=1.0))
ARCHITECTURE = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 3, "head_width": 32},
    "text_cfg": {"context_length": 20, "vocab_size": 100, "width": 32, "heads": 2, "layers": 2},
}


def det(*shape: int, a: float = 0.37, b: float = 0.0) -> Tensor:
    """Deterministic values: the recipe of the golden rows."""
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * a + b).reshape(shape)


def fill(module: nn.Module) -> None:
    """Deterministic values for parameters in the order of their names; weights of norms lie around one."""
    with torch.no_grad():
        for k, (name, parameter) in enumerate(sorted(module.named_parameters())):
            value = 0.05 * torch.sin(0.1 * torch.arange(parameter.numel()).double() + k).reshape(parameter.shape)
            parameter.copy_(value + 1 if name.endswith("weight") and parameter.ndim == 1 else value)


def near(found: Tensor, expected: object) -> bool:
    """As close as the rows are printed."""
    return torch.allclose(found.detach(), torch.as_tensor(expected, dtype=found.dtype), atol=1e-9, rtol=0)


def golden(queries: Tensor, **options) -> tuple[Glscl, TextFeatures, VideoFeatures]:
    """Four captions of five words, four videos of three frames; frame 2 of video 1 is padding."""
    frames, real = det(4, 3, 64, a=0.53, b=0.1), torch.ones(4, 3, dtype=torch.bool)
    real[1, 2] = False
    size = QueryConfig(count=4, layers=2, heads=4, feed_forward=256, **options)
    model = build_on(Glscl, GlsclConfig(kind="glscl", clip=CLIP, temporal=TEMPORAL, queries=size), frames)
    model = model.double().eval()
    fill(model.queries.decoder)
    with torch.no_grad():
        model.queries.queries.copy_(queries)
        model.clip.logit_scale.log.fill_(4.6052)
    text = TextFeatures(sentence=det(4, 64, a=0.91, b=0.3), words=det(4, 5, 64, a=0.83, b=0.4))
    return model, text, VideoFeatures(vector=mean_pool(frames, real), frames=frames, real=real)


QUERIES = det(4, 64, a=0.77, b=0.2)
ALIKE = det(1, 64, a=0.77, b=0.2) + 0.05 * det(4, 64, a=0.3)


def test_row_9_local_score():
    model, text, video = golden(QUERIES)
    text, video = model.read_text(text), model.read_video(video)
    assert near(local_score(text, video), GOLDEN["local"])
    for concepts, expected in ((video.concepts, "video_concepts"), (text.concepts, "text_concepts")):
        flat = concepts.flatten()
        assert near(flat[:8], GOLDEN[expected]["first8"]) and near(flat[-8:], GOLDEN[expected]["last8"])
        assert near(flat.sum(), GOLDEN[expected]["sum"]) and near(flat.abs().sum(), GOLDEN[expected]["abs_sum"])


def test_rows_10_and_11_training():
    model, text, video = golden(QUERIES)
    scores, expected = model.training_scores(text, video, None), GOLDEN["training"]
    assert near(scores.rankings["whole"] / math.exp(4.6052), expected["logits"])
    found = total_loss(scores, [], ALONE)
    for name in ("idl", "icl", "contrastive", "total"):
        assert near(found[name], expected[name]), name


def test_row_12_evaluation():
    """Without logit scale; unlike in the authors' code, one call gives the sum of both scores."""
    model, text, video = golden(QUERIES)
    assert near(model.global_score(text, video), GOLDEN["global"])
    assert near(model.similarity(text, video), GOLDEN["whole"])


def test_row_13_diversity_of_queries_that_are_alike():
    model, text, video = golden(ALIKE)
    scores = model.training_scores(text, video, None)
    assert near(scores.rankings["whole"] / math.exp(4.6052), GOLDEN["alike"]["logits"])
    assert scores.own["idl"].item() == pytest.approx(GOLDEN["alike"]["idl"], rel=1e-9)
    assert scores.own["icl"].item() == pytest.approx(GOLDEN["alike"]["icl"], rel=1e-9)


def test_row_14_margin_ranking():
    similarity = det(5, 5, a=0.9, b=0.2)
    found = margin_ranking(similarity), margin_ranking(similarity.T)
    assert [x.item() for x in found] == pytest.approx([GOLDEN["margin"]["s2n"], GOLDEN["margin"]["n2s"]], abs=1e-9)
    assert sum(found).item() == pytest.approx(GOLDEN["margin"]["both"], abs=1e-9)


def test_row_15_queries_that_are_not_shared():
    model, text, video = golden(QUERIES, share_queries=False)
    with torch.no_grad():
        model.queries.text_queries.copy_(det(4, 64, a=0.57, b=0.9))
    assert near(local_score(model.read_text(text), model.read_video(video)), GOLDEN["own_queries"])


def test_row_16_hidden_padding_changes_padded_words_only():
    sizes = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 64}
    text = {"context_length": 77, "vocab_size": 100, "width": 64, "heads": 1, "layers": 3}
    architecture = {"embed_dim": 32, "quick_gelu": True, "vision_cfg": sizes, "text_cfg": text}
    plain, masked = (
        ClipModel(Towers.from_architecture(architecture), wiring).text.eval()
        for wiring in (Wiring(), Wiring(mask_padding=True))
    )
    masked.load_state_dict(plain.state_dict())
    ids = torch.tensor([[98, 5, 7, 99, 0, 0], [98, 5, 6, 8, 9, 99]])
    with torch.no_grad():
        sentence, words = plain(ids)
        same_sentence, hidden = masked(ids)
    there = real_words(ids)
    assert there.tolist() == [[True] * 4 + [False] * 2, [True] * 6]
    assert torch.allclose(same_sentence, sentence, atol=1e-7) and torch.allclose(hidden[there], words[there], atol=1e-7)
    assert (hidden - words)[~there].abs().max() > 1e-5


def test_row_28_ties_and_query_banks(monkeypatch):
    """The authors count a tied query twice (R@1 80 of five ranks) and pick videos by another count than QB-Norm's."""
    tied = torch.eye(4)
    tied[0, 1] = 1
    ranks = ranks_t2v(tied, torch.arange(4))
    assert ranks.tolist() == [1, 0, 0, 0] and summarise(ranks)["R@1"] == 75
    monkeypatch.setattr(calibration, "BETA", 70.0)
    bank, similarity = det(6, 3, a=0.7) / 5, det(2, 3, a=1.3, b=0.4) / 5
    found = normalise.query_bank_t2v(similarity, normalise.bank_of([bank], 3))
    activated = set(bank.argmax(1).tolist())
    for row, scores in enumerate(similarity):
        inverted = (70 * scores).exp() / (70 * bank).exp().sum(0)
        assert torch.allclose(found[row], inverted.log() if int(scores.argmax()) in activated else scores)


def build(*, freeze: int | None = None, heads: int = 4, **options) -> Glscl:
    torch.manual_seed(0)
    size = QueryConfig(count=4, layers=2, heads=heads, feed_forward=48, **options.pop("queries", {}))
    config = GlsclConfig(kind="glscl", clip=CLIP, temporal=TEMPORAL, queries=size, **options)
    return Glscl(config, Towers.from_architecture(ARCHITECTURE, freeze_vision=freeze)).double()


def batch(videos: int = 3, frames: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 90, (videos, 8), generator=generator)
    ids[:, 5], ids[:, 6:] = 99, 0
    pixels = torch.randint(0, 256, (videos, frames, 3, 32, 32), dtype=torch.uint8, generator=generator)
    real = torch.arange(frames) < torch.tensor([frames, 3, 1] * videos)[:videos, None]
    return ids, pixels, real


def features(texts: int = 3, videos: int = 3) -> tuple[TextFeatures, VideoFeatures]:
    generator = torch.Generator().manual_seed(2)
    sentence, words = (torch.randn(texts, *rest, 32, generator=generator).double() for rest in ((), (6,)))
    frames = torch.randn(videos, 5, 32, generator=generator).double()
    real = torch.arange(5) < torch.tensor([5, 2, 4, 3])[:videos, None]
    spoken = torch.arange(6) < torch.tensor([6, 3, 4])[:texts, None]
    video = VideoFeatures(vector=mean_pool(frames, real), frames=frames, real=real)
    return TextFeatures(sentence=sentence, words=words, real=spoken), video


@pytest.mark.parametrize("masked", [False, True])
def test_queries_read_as_torchs_decoder_does(masked: bool):
    torch.manual_seed(3)
    queries = LearnedQueries(32, QueryConfig(count=4, layers=2, heads=4, feed_forward=48)).double().eval()
    for parameter in queries.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    layer = nn.TransformerDecoderLayer(32, 4, 48, batch_first=True)
    decoder = nn.TransformerDecoder(layer, 2).double().eval()
    decoder.layers.load_state_dict(queries.decoder.state_dict())
    weights = {}
    decoder.layers[-1].multihead_attn.register_forward_pre_hook(
        lambda _, args, given: (args, given | {"need_weights": True}), with_kwargs=True
    )
    decoder.layers[-1].multihead_attn.register_forward_hook(lambda *given: weights.update(mean=given[2][1]))
    _, video = features()
    items, hidden = video.frames, ~video.real if masked else None
    read = decoder(queries.queries.expand(3, -1, -1), items, memory_key_padding_mask=hidden)
    concepts, reading = queries(items, "video", video.real if masked else None)
    assert torch.allclose(concepts, F.normalize(read, dim=-1), atol=1e-12)
    assert torch.allclose(reading, weights["mean"], atol=1e-12)
    assert torch.allclose(reading.sum(-1), torch.ones(3, 4).double())
    assert not masked or not reading.masked_select(hidden[:, None].expand_as(reading)).any()


def test_sides_that_share_nothing_have_their_own_and_begin_as_copies():
    queries = LearnedQueries(32, QueryConfig(share_queries=False, share_decoder=False))
    assert {name.split(".")[0] for name in queries.state_dict()} == {
        "queries",
        "text_queries",
        "decoder",
        "video_decoder",
    }
    assert all(((part >= 0) & (part < 1)).all() for part in (queries.queries, queries.text_queries))
    first, *others = (layer.state_dict() for layer in queries.video_decoder)
    assert all(torch.equal(other[name], first[name]) for other in others for name in first)
    shared = LearnedQueries(32, QueryConfig(init="normal"))
    assert {name.split(".")[0] for name in shared.state_dict()} == {"queries", "decoder"} and shared.queries.min() < 0


def test_scores_equal_a_numpy_oracle():
    """The mask multiplied after the softmax, as in the authors' code; the frames summed for every pair."""
    model = build().eval()
    text, video = features(3, 4)
    text, video = model.read_text(text), model.read_video(video)
    found, scale = model.similarity(text, video), model.clip.logit_scale.log.exp()
    for t in range(3):
        for v in range(4):
            s, x, m = text.sentence[t].numpy(), video.frames[v].numpy(), video.real[v].numpy()
            weights = np.exp(x @ s / 3 - (x @ s / 3).max())
            pooled = (weights / weights.sum() * m) @ x
            local = (text.concepts[t] * video.concepts[v]).sum(-1).mean().item()
            whole = pooled @ s / np.linalg.norm(pooled) / np.linalg.norm(s) + 0.5 * local
            assert found[t, v].item() == pytest.approx(whole, abs=1e-12)
    assert torch.allclose(model.logits(text, video), found * scale)


def test_losses_equal_a_numpy_oracle():
    text, video = (unit(det(5, 4, 6, a=a, b=0.3)) for a in (0.41, 0.67))
    t, v = text.numpy(), video.numpy()
    similarity = np.mean([x @ x.T for x in v], axis=0)
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    hinge = [max(0, 0.1 + similarity[i, j] - similarity[k, k]) for i, j in pairs for k in (i, j)]
    assert diversity(video).item() == pytest.approx(sum(hinge) / 12, abs=1e-12)
    apart = ((v.mean(0) - t.mean(0)) ** 2).mean()
    total = (t * v).sum(-1).sum(0)
    for over, count in (("queries", 4), ("batch", 5)):
        expected = apart + 0.02 * ((total / count - 0.75) ** 2).sum()
        assert consistency(text, video, 0.02, over).item() == pytest.approx(expected, abs=1e-12)


def test_what_labels_teach_equals_a_numpy_oracle():
    model = build(temperature=2.0, concept_temperature=0.3).eval()
    text, video = features()
    scores = model.training_scores(text, video, None)
    text, video = model.read_text(text), model.read_video(video)
    scale = model.clip.logit_scale.log.exp()
    assert torch.allclose(scores.rankings["local"], scale * local_score(text, video))
    assert torch.allclose(scores.rankings["whole"], scale * model.similarity(text, video))
    assert scores.contrasts[0][0] == 1 and scores.contrasts[0][1] is scores.rankings["whole"]
    for pair in range(3):
        gate = video.frames[pair].numpy() @ text.sentence[pair].numpy() / 2
        np.testing.assert_allclose(scores.frames["gate"][pair].detach().numpy(), gate, atol=1e-12)
        agreement = np.exp((text.concepts[pair] * video.concepts[pair]).sum(-1).detach().numpy() / 0.3)
        read = agreement / agreement.sum() @ video.reading[pair].detach().numpy()
        np.testing.assert_allclose(scores.frames["concepts"][pair].detach().exp().numpy(), read, atol=1e-12)


@pytest.mark.parametrize("place", ["gate", "concepts"])
@pytest.mark.parametrize("masked", [False, True])
def test_relevance_teaches_finite_gradients(place: str, masked: bool):
    model = build(mask_padding=masked)
    ids, frames, real = batch()
    text, video = model.encode_text(ids), model.encode_video(frames, real)
    config = LossConfig(contrastive=ContrastiveConfig(weight=0.0), fine=FineConfig(temperature=0.1, targets=[place]))
    target = TeacherScores(logits=None, relevance=det(3, 4, a=1.1))
    config = config.model_copy(update={"coarse": config.coarse.model_copy(update={"weight": 0.0})})
    scores = model.training_scores(text, video, None)
    found = total_loss(scores, [target], config, real=real if masked else None)
    found["fine"].backward()
    learned = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    assert all(value.grad.isfinite().all() for name, value in model.named_parameters() if name in learned)
    assert ("queries.queries" in learned) == (place == "concepts")
    assert {"temporal.blocks.0.mlp.c_fc.weight", "clip.text.text_projection", "clip.visual.proj"} <= learned


def test_training_reads_after_the_gather_and_trains_every_parameter():
    model = build()
    ids, frames, real = batch()
    text, video = model.encode_text(ids), model.encode_video(frames, real)
    assert text.concepts is None and video.concepts is None and text.words is not None
    torch.manual_seed(5)
    scores = model.training_scores(text, video, None)
    torch.manual_seed(5)
    assert torch.equal(model.training_scores(text, video, None).contrasts[0][1], scores.contrasts[0][1])
    assert not torch.equal(model.training_scores(text, video, None).contrasts[0][1], scores.contrasts[0][1])
    sum([scores.contrasts[0][1].square().sum(), *scores.own.values()]).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_encoding_each_side_and_scoring_is_what_training_sees_without_dropout():
    model = build(queries={"dropout": 0.0})
    ids, frames, real = batch()
    seen = model.training_scores(model.encode_text(ids), model.encode_video(frames, real), None).rankings["whole"]
    model.eval()
    with torch.no_grad():
        text, video = model.encode_text(ids), model.encode_video(frames, real)
        assert text.words is None and text.concepts is not None
        assert torch.allclose(model.logits(text, video), seen, atol=1e-12)
        assert torch.allclose(model.query_vectors(text) @ model.index_vectors(video).T, local_score(text, video))
        model.index_by = "coarse"
        assert model.index_vectors(video).shape == (3, 32) and model.query_vectors(text).shape == (3, 32)


def test_padding_never_changes_a_score_where_it_is_masked():
    model = build(mask_padding=True).eval()
    ids, frames, real = batch()
    more_ids = F.pad(ids, (0, 4))
    more_frames = torch.cat([frames, frames.flip(0)], dim=1)
    more_real = F.pad(real, (0, 4))
    changed = torch.where(real[..., None, None, None], frames, 255 - frames)
    with torch.no_grad():
        found = model.similarity(model.encode_text(ids), model.encode_video(frames, real))
        text = model.encode_text(more_ids)
        for given in ((more_frames, more_real), (changed, real)):
            assert torch.allclose(model.similarity(text, model.encode_video(*given)), found, atol=1e-12)
        model.mask_padding = False  # as published
        other = model.similarity(model.encode_text(more_ids), model.encode_video(more_frames, more_real))
    assert (other - found).abs().max() > 1e-6


def test_videos_do_not_depend_on_one_another():
    model = build().eval()
    ids, frames, real = batch()
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        text, together = model.encode_text(ids), model.encode_video(frames, real)
        alone = [model.encode_video(frames[i : i + 1], real[i : i + 1]) for i in range(3)]
        moved = model.similarity(text, model.encode_video(frames[order], real[order]))
        assert torch.allclose(moved, model.similarity(text, together)[:, order], atol=1e-12)
    for name, value in together.tensors().items():
        assert torch.allclose(torch.cat([one.tensors()[name] for one in alone]), value, atol=1e-12), name


def test_stem_tokens_stand_for_pixels():
    model = build(freeze=2).eval()
    _, frames, real = batch()
    with torch.no_grad():
        tokens = model.clip.frames_to_stem(frames, real)
        from_pixels, from_stem = (model.encode_video(given, real).tensors() for given in (frames, tokens))
    assert all(torch.equal(value, from_stem[name]) for name, value in from_pixels.items())


def test_scores_leave_autocast_and_a_video_without_frames_is_finite():
    model = build(mask_padding=True).float().eval()
    ids, frames, real = batch()
    real[1] = False
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        text, video = model.encode_text(ids), model.encode_video(frames, real)
        found = model.similarity(text, video)
    assert text.concepts.dtype == video.concepts.dtype == found.dtype == torch.float32 and found.isfinite().all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["losses.fine.targets=[pooling]"], "losses.fine.targets: glscl.* called 'pooling'; it has: gate, concepts"),
        (["losses.coarse.targets=[logits]"], "losses.coarse.targets: glscl.* called 'logits'; it has: whole, local"),
        (["model.queries.count=1"], "queries.count: found 1, input should be greater"),
        (["model.temperature=0.0"], "temperature: found 0.0, input should be greater"),
        (["model.consistency=pairs"], "consistency: found 'pairs', input should be 'queries' or 'batch'"),
    ],
)
def test_what_a_recipe_cannot_mean_is_refused(overrides: list[str], message: str):
    with pytest.raises(RecipeError, match=message):
        read_recipe("recipes/glscl.yaml", overrides, Recipe)
    with pytest.raises(RecipeError, match="5 heads do not divide features of size 32"):
        build(heads=5)


COUNT, LAYERS, INSIDE = 6, 2, 40


def decoder_layer() -> dict[str, tuple[int, ...]]:
    """Tensors of torch's decoder layer."""
    attention = {"in_proj_weight": (3 * DIM, DIM), "in_proj_bias": (3 * DIM,)}
    attention |= {"out_proj.weight": (DIM, DIM), "out_proj.bias": (DIM,)}
    shapes = {f"{part}.{name}": shape for part in ("self_attn", "multihead_attn") for name, shape in attention.items()}
    shapes |= {"linear1.weight": (INSIDE, DIM), "linear1.bias": (INSIDE,)}
    shapes |= {"linear2.weight": (DIM, INSIDE), "linear2.bias": (DIM,)}
    return shapes | {f"norm{n}.{part}": (DIM,) for n in (1, 2, 3) for part in ("weight", "bias")}


def checkpoint() -> dict[str, Tensor]:
    """A whole model as its authors save it, with all that it never uses; shared queries and decoder."""
    shapes: dict[str, tuple[int, ...]] = {f"clip.{name}": shape for name, shape in openai_shapes().items()}
    shapes |= {"spatial_queries": (COUNT, DIM), "noun_queries": (COUNT, DIM)}
    shapes |= {"weight_fc.0.weight": (32, 2 * DIM), "weight_fc.0.bias": (32,)}
    shapes |= {"weight_fc.2.weight": (1, 32), "weight_fc.2.bias": (1,)}
    shapes |= {"frame_position_embeddings.weight": (POSITIONS, DIM)}
    shapes |= blocks("transformerClip.resblocks", DIM, TEMPORAL_LAYERS)
    for side in ("noun", "spatial"):
        shapes |= {f"decoder_layer_{side}.{name}": shape for name, shape in decoder_layer().items()}
    decoder = [f"layers.{n}.{name}" for n in range(LAYERS) for name in decoder_layer()]
    shapes |= {f"transformer_decoder_noun.{name}": decoder_layer()[name.split(".", 2)[2]] for name in decoder}
    state = filled(shapes)
    state["noun_queries"] = torch.rand(COUNT, DIM)  # never trained, and so the layers that were copied
    for name in decoder:
        state[f"transformer_decoder_spatial.{name}"] = state[f"decoder_layer_spatial.{name.split('.', 2)[2]}"].clone()
    return state


def expected(state: dict[str, Tensor], *, own_queries: bool = False, own_decoder: bool = False) -> dict[str, Tensor]:
    """Everything that has to arrive, in float32, under our names."""
    found = {"queries.queries": state["spatial_queries"]}
    found["temporal.pos_embed.weight"] = state["frame_position_embeddings.weight"]
    ours = {"transformerClip.resblocks.": "temporal.blocks.", "transformer_decoder_noun.layers.": "queries.decoder."}
    if own_queries:
        found["queries.text_queries"] = state["noun_queries"]
    if own_decoder:
        ours["transformer_decoder_spatial.layers."] = "queries.video_decoder."
    for name in openai_shapes():
        found[f"clip.{name}" if name.startswith("visual.") else f"clip.text.{name}"] = state[f"clip.{name}"]
    found["clip.logit_scale.log"] = found.pop("clip.text.logit_scale").reshape(1)
    for theirs, prefix in ours.items():
        found |= {name.replace(theirs, prefix): tensor for name, tensor in state.items() if name.startswith(theirs)}
    return {name: tensor.float() for name, tensor in found.items()}


def test_every_tensor_of_a_checkpoint_arrives_or_is_named_as_unused(tmp_path: Path):
    state = checkpoint()
    source = saved(state, tmp_path / "best.pth")
    done = convert(source, "glscl", tmp_path / "release", SMALL)
    arrived = expected(state)
    same(load_file(tmp_path / "release" / "model.safetensors"), arrived)
    assert done.record["tensors"] == {"converted": len(arrived), "unused": len(state) - len(arrived)}
    assert done.record["notes"] == [
        "the token table has 90 rows, CLIP's tokenizer has 49408 tokens: this model takes ids, not text"
    ]
    beginnings = {name.split(".")[0] for name in done.record["unused"]}
    dead = {"weight_fc", "noun_queries", "decoder_layer_noun", "decoder_layer_spatial", "transformer_decoder_spatial"}
    assert beginnings == dead
    release = distill.release.load(tmp_path / "release")
    assert release.frames_config["sampler"] == {"kind": "glscl", "fps": 1, "num_frames": FRAMES}
    config = release.config.model
    assert (config["temperature"], config["queries"]["count"], config["queries"]["layers"]) == (3.0, COUNT, LAYERS)
    assert (config["queries"]["heads"], config["queries"]["feed_forward"]) == (8, INSIDE)
    assert "--sampler glscl" in done.report() and "queries: count 6, layers 2, heads 8" in done.report()
    with pytest.raises(ArtefactError, match="table has 90 rows, its tokenizer gives numbers up to 49407: this model"):
        release.embed_text(["a chick"])


def test_what_a_file_cannot_tell_is_said(tmp_path: Path, capsys: pytest.CaptureFixture):
    state = checkpoint()
    state["noun_queries"] = torch.randn(COUNT, DIM)
    state["transformer_decoder_spatial.layers.1.linear1.bias"].add_(1)
    source, sizes = saved(state, tmp_path / "own.pth"), ["--words", str(WORDS), "--frames", str(FRAMES)]
    told = ["--shared", "none", "--temperature", "5", "--sampler", "clip4clip"]
    convert_main([str(source), "--kind", "glscl", "--out", str(tmp_path / "own"), *sizes, *told])
    assert "tensors converted, 40 unused" in capsys.readouterr().out
    same(load_file(tmp_path / "own" / "model.safetensors"), expected(state, own_queries=True, own_decoder=True))
    release = distill.release.load(tmp_path / "own")
    assert release.config.model["temperature"] == 5 and release.frames_config["sampler"]["kind"] == "clip4clip"
    notes = convert(source, "glscl", tmp_path / "both", SMALL).record["notes"]
    assert "noun_queries were trained" in notes[0] and "transformer_decoder_spatial was trained" in notes[1]


def test_the_authors_mistakes_are_not_repeated_in_silence(tmp_path: Path):
    """Their test script for MSR-VTT reads texts with queries that were never trained."""
    source = saved(checkpoint(), tmp_path / "best.pth")
    options = Options(words=WORDS, frames=FRAMES, shared="decoder")
    notes = convert(source, "glscl", tmp_path / "own", options).record["notes"]
    assert "noun_queries look as they were drawn" in notes[0]
    with pytest.raises(
        ExpectedError, match=r"transformer_decoder_spatial was never trained.* use --shared decoder or both"
    ):
        convert(source, "glscl", tmp_path / "none", Options(words=WORDS, frames=FRAMES, shared="queries"))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda state: state.pop("spatial_queries"), "glscl", "no spatial_queries, which a glscl checkpoint must hold"),
        (lambda state: state, "clip4clip", "holds spatial_queries, so it is not clip4clip; use --kind glscl"),
        (lambda state: state.update(center=torch.zeros(1)), "glscl", "unknown: center"),
        (
            lambda state: state.pop("transformer_decoder_noun.layers.1.norm3.bias"),
            "glscl",
            r"missing: transformer_decoder_noun\.layers\.1\.norm3\.bias",
        ),
        (
            lambda state: [state.pop(name) for name in list(state) if name.startswith("transformer_decoder_noun")],
            "glscl",
            r"no transformer_decoder_noun\.layers",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change, kind: str, message: str, tmp_path: Path):
    state = checkpoint()
    change(state)
    options = Options(words=WORDS, frames=FRAMES, head="meanP" if kind == "clip4clip" else None)
    with pytest.raises(ExpectedError, match=message):
        convert(saved(state, tmp_path / "best.pth"), kind, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_options_of_other_kinds_are_refused(tmp_path: Path):
    for given, message in (
        ({"shared": "both"}, "--shared does not go"),
        ({"temperature": 3.0}, "--temperature does not"),
    ):
        with pytest.raises(ExpectedError, match=message):
            convert(tmp_path / "none", "teachclip", tmp_path / "out", Options(**given))
    with pytest.raises(ExpectedError, match="--temperature -1: expected a number above 0"):
        convert(tmp_path / "none", "glscl", tmp_path / "out", Options(temperature=-1.0))


def test_frames_of_the_other_sampler_are_refused(world: World, tmp_path: Path):
    """Packed by GLSCL's rule; a model that was trained on frames of CLIP4Clip's does not look at them."""
    corpus, out = str(world.corpus), str(tmp_path / "frames")
    pack = [f"{corpus}/val.csv", f"{corpus}/videos", "--layout", "msrvtt", "--size", "64", "--out", out]
    pack_main([*pack, "--sampler", "glscl"])
    frames = FrameSet(out)
    assert frames.manifest.config["sampler"] == {"kind": "glscl", "fps": 1, "num_frames": 12}
    settings = FrameSet(world.frames["val"]).manifest.config
    with pytest.raises(ArtefactError, match=r'"kind": "glscl".* but model was trained with .*"kind": "clip4clip"'):
        frames.check_settings({key: settings[key] for key in ("sampler", "size")}, Path("model"))
    with pytest.raises(ArtefactError, match="already holds another frame set"):
        pack_main(pack)


@pytest.mark.slow
def test_two_processes_equal_one_with_dropout_and_labels(world: World, tmp_path: Path):
    labels = write_labels(world, "xclip", tmp_path / "labels")
    model = {"kind": "glscl", "clip": {"model": str(world.towers), "freeze_vision": 2}}
    model |= {"temporal": {"layers": 1, "init": "normal"}, "queries": {"layers": 2, "feed_forward": 64, "dropout": 0.3}}
    recipe = world.recipe("one", "glscl", tmp_path, model=model, labels=[str(labels)], data={"batch_size": 16})
    python("distill/run.py", recipe)
    launch(2, "distill/run.py", recipe, "name=two", "train.zero=3")
    for a, b in zip(steps(tmp_path / "one"), steps(tmp_path / "two"), strict=True):
        assert {"idl", "icl", "coarse", "fine"} <= a.keys()
        assert math.isclose(a["total"], b["total"], rel_tol=1e-4), f"step {a['step']}"
        assert math.isclose(a["grad_norm"], b["grad_norm"], rel_tol=1e-3), f"step {a['step']}"
