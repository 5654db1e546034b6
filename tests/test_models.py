"""Whole models: X-CLIP against a NumPy oracle; padding, stems, keys and precision of all."""

import numpy as np
import pytest
import torch

from distill.errors import RecipeError
from distill.model.afa import AfaConfig
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.similarity import unit
from distill.model.temporal import TemporalConfig
from distill.model.towers import ClipConfig, Towers
from students.clip4clip import Clip4Clip, Clip4ClipConfig
from students.teachclip import TeachClip, TeachClipConfig
from teachers import xclip
from teachers.xclip import XClip, XClipConfig, XClipInteraction

BLOCK = ["attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias", "ln_1.weight"]
BLOCK += ["ln_1.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"]
BLOCK += ["ln_2.weight", "ln_2.bias"]
MATRICES = {"global_proj", "local_proj", "word_cross", "word_fine", "word_fine2"}
MATRICES |= {"frame_cross", "frame_fine", "frame_fine2"}
ARCHITECTURE = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 100, "width": 64, "heads": 1, "layers": 2},
}
CLIP = ClipConfig(model="unused")
TEMPORAL = TemporalConfig(layers=1)


def random_xclip() -> tuple[XClipInteraction, TextFeatures, VideoFeatures]:
    """A head with matrices that are no identities, three captions of 7 words, two videos of 5 frames."""
    generator = torch.Generator().manual_seed(0)
    interaction = XClipInteraction(64, 7, 5, 0.01).double()
    with torch.no_grad():
        for parameter in interaction.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    shapes = ((3, 64), (3, 7, 64), (2, 64), (2, 5, 64))
    sentence, words, vector, frames = (torch.randn(*shape, generator=generator).double() for shape in shapes)
    text = TextFeatures(sentence=sentence, words=words)
    return interaction, text, VideoFeatures(vector=vector, frames=frames)


def test_xclip_leaves_autocast():
    interaction, text, video = random_xclip()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        single_text = TextFeatures(sentence=text.sentence.float(), words=text.words.float())
        single_video = VideoFeatures(vector=video.vector.float(), frames=video.frames.float())
        found = interaction.float()(single_text, single_video)
    assert found.dtype == torch.float32
    assert (found - interaction.double()(text, video)).abs().max() < 1e-4


def test_xclip_in_chunks_is_the_same(monkeypatch):
    interaction, text, video = random_xclip()
    video = VideoFeatures.cat([video, video[:1]])
    whole = interaction(text, video)
    for cells in (1, 2 * 3 * 7 * 5):  # one video at a time; two, and a last chunk of one
        monkeypatch.setattr(xclip, "MAX_CELLS", cells)
        assert (interaction(text, video) - whole).abs().max() < 1e-12


def oracle(scores, mix):
    weights = np.exp((scores - scores.max()) / 0.01)
    return ((weights / weights.sum()) @ mix * scores).sum()


def test_xclip_equals_a_numpy_oracle():
    """The four terms written pair by pair, with the learned matrices of the code."""
    interaction, text, video = random_xclip()
    m = {name: value.detach().numpy() for name, value in interaction.state_dict().items()}
    sentence, words, vector, frames = text.sentence, text.words, video.vector, video.frames
    found = interaction(text, video, scaled=False)
    for t in range(3):
        for v in range(2):
            s, w, x, f = (unit(a).numpy() for a in (sentence[t], words[t], vector[v], frames[v]))
            cells = w @ m["local_proj"] @ f.T  # word frame
            by_frame = np.array([oracle(cells[:, i], m["word_fine"]) for i in range(5)])
            by_word = np.array([oracle(cells[i], m["frame_fine"]) for i in range(7)])
            fine = (oracle(by_frame, m["frame_fine2"]) + oracle(by_word, m["word_fine2"])) / 2
            coarse = s @ m["global_proj"] @ x + oracle(w @ x, m["word_cross"]) + oracle(f @ s, m["frame_cross"])
            assert found[t, v].item() == pytest.approx((coarse + fine) / 4, abs=1e-12)


def build(kind, *, freeze=None, seed=0):
    torch.manual_seed(seed)
    towers = Towers.from_architecture(ARCHITECTURE, freeze_vision=freeze)
    if kind == "xclip":
        return XClip(XClipConfig(kind="xclip", clip=CLIP, temporal=TEMPORAL, words=8, frames=4), towers)
    if kind == "teachclip":
        config = TeachClipConfig(kind="teachclip", clip=CLIP, temporal=TEMPORAL, afa=AfaConfig(mask_padding=True))
        return TeachClip(config, towers)
    return Clip4Clip(Clip4ClipConfig(kind="clip4clip", clip=CLIP, head=kind, temporal=TEMPORAL), towers)


KINDS = ["meanP", "seqTransf", "teachclip", "xclip"]


def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 90, (3, 8), generator=generator)
    ids[:, 5], ids[:, 6:] = 99, 0
    frames = torch.randint(0, 256, (3, 4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    real = torch.tensor([[True] * 4, [True, True, True, False], [True, False, False, False]])
    return ids, frames, real


def test_few_texts_and_many_score_alike():
    """The number of words decides whether frames or products are reordered."""
    interaction, _, video = random_xclip()
    generator = torch.Generator().manual_seed(6)
    sentence, words = torch.randn(20, 64, generator=generator), torch.randn(20, 7, 64, generator=generator)
    text = TextFeatures(sentence=sentence.double(), words=words.double())
    assert text.words.shape[0] * text.words.shape[1] > 64 > text.words.shape[1]
    alone = torch.cat([interaction(text[i : i + 1], video) for i in range(20)])
    assert (interaction(text, video) - alone).abs().max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_scaled_similarity_and_train_every_parameter(kind):
    model = build(kind)
    ids, frames, real = batch()
    text, video = model.encode_text(ids), model.encode_video(frames, real)
    logits = model.logits(text, video)
    assert logits.shape == (3, 3) and logits.dtype == torch.float32
    assert torch.allclose(logits, model.similarity(text, video) / 0.07, atol=1e-4)
    relevance = video.relevance.sum() if video.relevance is not None else 0
    (logits.square().sum() + relevance).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_in_padded_frames_changes_nothing(kind):
    model = build(kind).eval()
    ids, frames, real = batch()
    changed = frames.clone()
    changed[~real] = 255 - changed[~real]
    with torch.no_grad():
        text = model.encode_text(ids)
        found = [model.similarity(text, model.encode_video(given, real)) for given in (frames, changed)]
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", ["meanP", "seqTransf", "teachclip"])
def test_more_padding_changes_nothing(kind):
    model = build(kind).eval()
    ids, frames, real = batch()
    longer = torch.cat([frames, frames[:, :2]], dim=1), torch.cat([real, torch.zeros(3, 2, dtype=torch.bool)], dim=1)
    with torch.no_grad():
        text = model.encode_text(ids)
        short, long = (model.similarity(text, model.encode_video(*given)) for given in ((frames, real), longer))
    assert (short - long).abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_stem_tokens_stand_for_pixels(kind):
    model = build(kind, freeze=1).eval()
    _, frames, real = batch()
    with torch.no_grad():
        tokens = model.clip.frames_to_stem(frames, real)
        from_pixels, from_stem = (model.encode_video(given, real).tensors() for given in (frames, tokens))
    assert all(torch.equal(value, from_stem[name]) for name, value in from_pixels.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["bf16 parameters", "autocast"])
def test_models_run_in_half_precision(kind, mode):
    model = build(kind)
    ids, frames, real = batch()
    expected = model.similarity(model.encode_text(ids), model.encode_video(frames, real))
    if mode == "bf16 parameters":
        model = model.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
        found = model.similarity(model.encode_text(ids), model.encode_video(frames, real))
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.03


def test_added_modules_have_the_released_keys():
    def added(kind):
        return {name for name in build(kind).state_dict() if not name.startswith("clip.")}

    temporal = {f"temporal.blocks.0.{key}" for key in BLOCK} | {"temporal.pos_embed.weight"}
    afa = {f"afa.score.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    assert added("meanP") == set()
    assert added("seqTransf") == temporal
    assert added("teachclip") == temporal | afa
    matrices = {f"interaction.{name}" for name in MATRICES}
    assert added("xclip") == temporal | matrices | {"interaction.logit_scale.log"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_logit_scale_exists_once(kind):
    names = [name for name in build(kind).state_dict() if "logit_scale" in name]
    assert names == (["interaction.logit_scale.log"] if kind == "xclip" else ["clip.logit_scale.log"])


def test_an_interaction_is_rebuilt_from_its_config_and_weights():
    model = build("xclip")
    ids, frames, real = batch()
    text, video = model.encode_text(ids), model.encode_video(frames, real)
    again = XClipInteraction(**model.interaction.config())
    again.load_state_dict(model.interaction.state_dict())
    assert torch.equal(again(text, video), model.logits(text, video))
    assert torch.equal(again.relevance(text, video), model.interaction.relevance(text, video))


def test_xclip_refuses_features_of_another_size():
    model = build("xclip")
    ids, frames, real = batch()
    with pytest.raises(RecipeError, match="built for 8 words and 4 frames, but the features have 7 and 4"):
        model.logits(model.encode_text(ids[:, :7]), model.encode_video(frames, real))


def test_a_new_temporal_transformer_starts_from_the_text_tower():
    model = build("seqTransf")
    assert torch.equal(model.temporal.pos_embed.weight, model.clip.text.positional_embedding)
