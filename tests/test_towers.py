"""Any tower of open_clip: its own features and preprocessing, frozen and released as it is, or refused in one line."""

import copy
import hashlib
import io
import json
from pathlib import Path

import families
import numpy as np
import open_clip
import pytest
import torch
from conftest import ARCHITECTURE, World, make_towers, quick
from families import FAMILIES
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import nn

from distill.catalogue import build, parse_model_config
from distill.data.frames import FrameSet
from distill.data.pictures import Fit, decode_jpeg
from distill.data.sampler import Clip4ClipSampler
from distill.errors import ArtefactError, RecipeError
from distill.model.architecture import check_architecture
from distill.model.clip import ClipModel
from distill.model.preprocessing import OPENAI, Preprocessing, preprocessing_of
from distill.model.towers import ClipConfig, Towers, read_architecture
from distill.packing.packing import PackConfig, pack
from distill.release.export import export_clip
from distill.release.release import load
from distill.release.writing import write_release

MODELS = {
    "clip4clip": {"head": "meanP"},
    "teachclip": {"temporal": {"layers": 1, "init": "normal"}, "afa": {}},
    "glscl": {},
    "xclip": {"temporal": {"layers": 1, "init": "normal"}},
    "xpool": {},
}
SAMPLER = {"kind": "clip4clip", "fps": 1, "num_frames": 3}


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory):
    """The tower folder of every family."""
    folder = tmp_path_factory.mktemp("towers")
    return {family: families.write(family, folder / family) for family in FAMILIES}


def model_of(kind: str, folder, **clip):
    config = parse_model_config({"kind": kind, "clip": {"model": str(folder), **clip}, **MODELS[kind]}, "test")
    return config, build(config, Towers.from_config(config.clip))


def ids_of(clip: ClipModel) -> torch.Tensor:
    words = open_clip.get_tokenizer("ViT-B-32", context_length=clip.text.context)
    return words(["a red square moves to the left", "an apple", "a blue circle and a fire engine"])


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return float((found - expected).abs().max()) <= 2e-6 * float(expected.abs().max())


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_open_clip_s_own(family: str, towers):
    own = families.build(family)
    clip = ClipModel(Towers.from_config(ClipConfig(model=str(towers[family])))).train()
    size, ids = FAMILIES[family][0]["image_size"], ids_of(clip)
    frames = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    told = {"mean": OPENAI.mean, "std": OPENAI.std, **FAMILIES[family][2]}
    mean, std = (torch.tensor(told[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert close(clip.visual(frames), own.encode_image((frames / 255 - mean) / std))
    sentence, words = clip.text(ids)
    assert close(sentence, own.encode_text(ids))
    own.text.output_tokens = True
    tokens, projection = own.text(ids)[1], own.text.text_projection
    assert close(words, projection(tokens) if isinstance(projection, nn.Linear) else tokens @ projection)


@torch.inference_mode()
def test_short_ids_are_padded_as_the_tower_was_trained(towers):
    clip = ClipModel(Towers.from_config(ClipConfig(model=str(towers["siglip"]))))
    ids = ids_of(clip)
    length = int(ids.argmax(1).max()) + 1
    sentence, words = clip.text(ids[:, :length])
    whole = clip.text(ids)
    assert torch.equal(sentence, whole[0]) and torch.equal(words, whole[1][:, :length])
    with pytest.raises(RecipeError, match="captions of 17 tokens do not fit a text tower of 16"):
        clip.text(torch.zeros(1, 17, dtype=torch.int64))


@torch.inference_mode()
def test_a_plain_clip_has_the_same_features_through_either_tower(tmp_path):
    folder = make_towers(tmp_path / "towers")
    plain = ClipModel(Towers.from_config(ClipConfig(model=str(folder)))).eval()
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"] |= {"custom_text": True}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    other = ClipModel(Towers.from_config(ClipConfig(model=str(folder))))
    assert type(plain.visual) is not type(other.visual) and type(plain.text) is not type(other.text)
    frames = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    ids = ids_of(plain)
    pairs = [(plain.visual(frames), other.visual(frames)), *zip(plain.text(ids), other.text(ids), strict=True)]
    for found, expected in pairs:
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_are_made_as_open_clip_s_transform_makes_them(family: str):
    size, told = FAMILIES[family][0]["image_size"], FAMILIES[family][2]
    preprocessing = Preprocessing(**told)
    transform = image_transform_v2(PreprocessCfg(size=size, **preprocessing.model_dump()), is_train=False)
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    for shape in ((640, 360), (361, 483), (240, 240), (300, 900)):
        picture = Image.fromarray(noise).resize(shape, Image.Resampling.BICUBIC)
        fitted = np.asarray(preprocessing.fit(size)(picture)).transpose(2, 0, 1)
        found = preprocessing.normalise(torch.from_numpy(fitted.copy()))
        assert float((found - transform(picture)).abs().max() * max(preprocessing.std)) < 1e-5, shape


@pytest.mark.parametrize("family", quick(FAMILIES, [family for family in FAMILIES if family != "pe"]))
def test_training_depends_on_no_batch_and_on_no_chance(family: str, towers):
    """The features of a video are the same whatever else is in its batch, twice in a row, and every weight learns."""
    model = model_of("teachclip", towers[family])[1].train()
    size = FAMILIES[family][0]["image_size"]
    frames = torch.randint(0, 256, (2, 2, 3, size, size), dtype=torch.uint8)
    real = torch.tensor([[True, True], [True, False]])
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    together = model.encode_video(frames, real)
    apart = [model.encode_video(frames[i : i + 1], real[i : i + 1]) for i in range(2)]
    for i in range(2):
        assert torch.allclose(together.vector[i], apart[i].vector[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(together.vector, model.encode_video(frames, real).vector)
    text = model.encode_text(ids_of(model.clip)[:2])
    model.training_scores(text, together, None).contrasts[0][1].diagonal().sum().backward()
    still = [
        name
        for name, p in model.named_parameters()
        if (p.requires_grad and p.grad is None) or not p.is_contiguous() or not p.ndim
    ]
    assert not still, "DeepSpeed refuses such parameters, or they do not learn"
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers()), "no statistics move"


def test_a_tower_is_in_evaluation_mode_before_anybody_asks(towers):
    clip = ClipModel(Towers.from_config(ClipConfig(model=str(towers["mobileclip"]))))
    for called in (clip, clip.train()):
        assert not [name for name, module in called.named_modules() if module.training and ".tower" in name]


@pytest.mark.filterwarnings("ignore:Importing from timm.models.helpers")  # by open_clip's lock, which is the oracle
@pytest.mark.parametrize("family", FAMILIES)
def test_groups_are_frozen_as_open_clip_counts_them(family: str, towers):
    own = families.build(family)
    for unlocked in (0, 1):
        expected = copy.deepcopy(own)
        clip = {"unlocked_vision": unlocked, "unlocked_text": unlocked}
        if family == "resnet" and unlocked:
            with pytest.raises(RecipeError, match=r"clip\.unlocked_vision: 1: this tower cannot be frozen in part"):
                ClipModel(Towers.from_config(ClipConfig(model=str(towers[family]), **clip)))
            continue
        expected.lock_image_tower(unlocked)
        expected.lock_text_tower(unlocked)
        found = ClipModel(Towers.from_config(ClipConfig(model=str(towers[family]), **clip)))
        trained = {name.replace(".tower.", ".", 1) for name, p in found.named_parameters() if p.requires_grad}
        rest = {"logit_scale.log"}
        assert trained - rest == {n for n, p in expected.named_parameters() if p.requires_grad and "logit" not in n}


@pytest.mark.parametrize("family", quick(FAMILIES, ["siglip"]))
def test_a_release_holds_the_tower_and_its_preprocessing(family: str, towers, tmp_path):
    config, model = model_of("teachclip", towers[family])
    size = FAMILIES[family][0]["image_size"]
    text, frames = {"max_words": 14, "vocabulary": None}, {"sampler": SAMPLER, "size": size, "whole": True}
    write_release(
        tmp_path / "release", model=model, model_config=config, weights=model.state_dict(), text=text,
        frames_config=frames, provenance={"name": "x"},
    )  # fmt: skip
    release = load(tmp_path / "release")
    told = FAMILIES[family][2]
    assert preprocessing_of(release.config.architecture) == Preprocessing(**told)
    assert release.fit == Fit(size, told.get("resize_mode", "shortest"), told.get("interpolation", "bicubic"))
    for name, value in model.state_dict().items():
        found = release.model.state_dict()[name]
        assert torch.equal(found, value) and found.dtype == value.dtype, name
    pixels, real = torch.randint(0, 256, (1, 3, 3, size, size), dtype=torch.uint8), torch.ones(1, 3, dtype=torch.bool)
    with torch.inference_mode():
        assert torch.equal(release.encode_frames(pixels, real).vector, model.eval().encode_video(pixels, real).vector)

    export_clip(release, tmp_path / "towers", torch.float32)
    again = Towers.from_config(ClipConfig(model=str(tmp_path / "towers")))
    assert again.architecture == model.clip.architecture
    for name, value in families.build(family).state_dict().items():
        assert name == "logit_bias" or torch.equal(again.clip.state_dict()[name].reshape(value.shape), value), name


def test_the_preprocessing_of_a_folder_changes_what_a_model_sees(tmp_path):
    folder = make_towers(tmp_path / "towers")
    frames = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    features = []
    for told in ({}, {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}):
        config = {"model_cfg": ARCHITECTURE, "preprocess_cfg": told}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        clip = ClipModel(Towers.from_config(ClipConfig(model=str(folder))))
        features.append(clip.visual(frames))
    assert not torch.allclose(*features, atol=1e-3)
    for told, message in (
        ({"mean": [0.5, 0.5]}, "mean"),
        ({"std": [0.5, 0.0, 0.5]}, "std"),
        ({"resize_mode": "longest"}, "resize_mode"),
        ({"interpolation": "random"}, "interpolation"),
        ([1], "expected a mapping"),
    ):
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": ARCHITECTURE, "preprocess_cfg": told}))
        with pytest.raises(RecipeError, match=message):
            read_architecture(ClipConfig(model=str(folder)))


def test_a_tag_brings_its_preprocessing_or_is_refused(monkeypatch: pytest.MonkeyPatch):
    found = read_architecture(ClipConfig(model="MobileCLIP2-S0", weights="dfndr2b"))
    assert found["preprocess_cfg"] == {
        "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "interpolation": "bilinear", "resize_mode": "shortest",
    }  # fmt: skip
    pe = read_architecture(ClipConfig(model="PE-Core-T-16-384", weights="meta"))
    assert pe["preprocess_cfg"]["resize_mode"] == "squash" and pe["preprocess_cfg"]["mean"] == [0.5, 0.5, 0.5]
    assert "preprocess_cfg" not in read_architecture(ClipConfig(model="ViT-B-32-quickgelu", weights="openai"))
    monkeypatch.setattr("distill.model.towers.get_pretrained_cfg", lambda *_: {"url": "x", "quick_gelu": True})
    with pytest.raises(RecipeError, match="open_clip does not say mean of 'openai'"):
        read_architecture(ClipConfig(model="ViT-B-32-quickgelu", weights="openai"))


def test_what_no_model_can_take_is_refused_in_words(towers):
    temporal = {"layers": 1, "init": "normal"}
    for raw in (
        {"kind": "eercf", "frames": 3, "temporal": temporal},
        {"kind": "ts2net", "frames": 3, "temporal": temporal},
        {"kind": "prompt_switch", "frames": 4, "prompts": 2},
    ):
        config = parse_model_config({"clip": {"model": str(towers["pe"])}, **raw}, "test")
        with pytest.raises(RecipeError, match="not a plain vision transformer"):
            build(config, Towers.from_config(config.clip))
    with pytest.raises(RecipeError, match=r"temporal\.init: clip_text needs a plain text tower"):
        raw = {"kind": "clip4clip", "head": "seqTransf", "temporal": {"init": "clip_text"}}
        config = parse_model_config({"clip": {"model": str(towers["pe"])}, **raw}, "test")
        build(config, Towers.from_config(config.clip))
    with pytest.raises(RecipeError, match=r"clip\.freeze_vision: .* is not a plain transformer; use clip\.unlocked_v"):
        read_architecture(ClipConfig(model=str(towers["pe"]), freeze_vision=1))
    with pytest.raises(RecipeError, match=r"clip\.unlocked_text: .* is a plain transformer; use clip\.freeze_text"):
        read_architecture(ClipConfig(model="ViT-B-32", weights="random", unlocked_text=1))
    with pytest.raises(RecipeError, match="did you mean ViT-B-32"):
        read_architecture(ClipConfig(model="vit-b-32", weights="random"))
    for change, message in (
        ({"multimodal_cfg": {"width": 8}}, "multimodal_cfg: a kind of tower"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "hf_model_name: a kind of tower"),
        ({"vision_cfg": {"timm_model_name": "hf-hub:someone/something"}}, "is no model of timm's"),
        ({"vision_cfg": {"timm_model_name": "test_vit", "image_size": [64, 32]}}, "only square pictures"),
        ({"vision_cfg": {"timm_model_name": "test_vit", "colour": 1}}, "vision_cfg.colour"),
    ):
        given = {**families.model_cfg("convnext"), **change}
        with pytest.raises(RecipeError, match=message):
            check_architecture(given, where="x")


def test_a_name_that_stands_for_a_large_tower_is_not_built(towers, tmp_path):
    """timm's name says the size of a tower, so a small file of weights could ask for gigabytes."""
    folder = families.write("convnext", tmp_path / "towers")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["timm_model_name"] = "convnext_xxlarge"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match=r"open_clip_config\.json: 8\d\d\d\d\d\d\d\d, but no weight beside it"):
        Towers.from_config(ClipConfig(model=str(folder)))


def test_one_frame_set_serves_towers_of_several_sizes(world: World, tmp_path):
    """Whole frames, of which each tower cuts or squashes its own; the bytes of the set decide, not the tower."""
    out, csv = tmp_path / "frames", world.corpus / "val.csv"
    config = PackConfig(sampler=Clip4ClipSampler(kind="clip4clip", num_frames=3), size=96, whole=True)
    pack(csv, "msrvtt", world.corpus / "videos", out, config, workers=1)
    frames = FrameSet(out)
    assert frames.whole and frames.manifest.config["whole"] is True
    for fit in (Fit(64), Fit(96, "squash"), Fit(40, "shortest", "bilinear")):
        fitted = frames.fitted(fit, "data.train")
        video, pixels = frames.videos[0], fitted.pixels(0)
        assert pixels.shape == (len(video.timestamps), 3, fit.size, fit.size) and fitted.size == fit.size
        for number in range(len(video.timestamps)):
            picture = Image.open(io.BytesIO(frames._shards.read(video.key, f"{number:03d}.jpg")))
            assert min(picture.size) <= 96
            assert np.array_equal(np.asarray(fit(picture)).transpose(2, 0, 1), pixels[number])
    refused = r"data\.train: .* holds frames of 96 pixels at most, but the tower takes pictures cut to 224 x 224"
    with pytest.raises(ArtefactError, match=refused):
        frames.fitted(Fit(224), "data.train")
    cut = FrameSet(world.frames["val"])
    assert cut.fitted(Fit(cut.size), "data.train") is cut
    for fit in (Fit(cut.size, "squash"), Fit(32)):
        with pytest.raises(ArtefactError, match="pack again with"):
            cut.fitted(fit, "data.train")


def released(family: str, folder: Path) -> Path:
    """A release of a family's small tower, which is sealed again after each change."""
    config, model = model_of("clip4clip", families.write(family, folder / "towers"))
    frames = {"sampler": SAMPLER, "size": FAMILIES[family][0]["image_size"], "whole": True}
    write_release(
        folder / "release", model=model, model_config=config, weights=model.state_dict(),
        text={"max_words": 14, "vocabulary": None}, frames_config=frames, provenance={"name": "x"},
    )  # fmt: skip
    return folder / "release"


HOSTILE = [({"vision_cfg": value}, "vision_cfg: expected a mapping") for value in (None, [], "x", 1, float("nan"))] + [
    ({"text_cfg": 1.5}, "text_cfg: expected a mapping"),
    ({"preprocess_cfg": []}, "preprocess_cfg"),
    ({"preprocess_cfg": None}, "preprocess_cfg"),
    ({"embed_dim": 0}, "embed_dim: 0: expected a whole number from 1 on"),
    ({"vision_cfg.image_size": True}, "image_size: True"),
    ({"vision_cfg.image_size": 0}, "image_size: 0"),
    ({"vision_cfg.image_size": 96}, "doesn't match model"),
    ({"vision_cfg.timm_model_name": [1]}, "no model of timm's"),
    ({"vision_cfg.timm_model_name": "hf-hub:someone/something"}, "no model of timm's"),
    ({"text_cfg.context_length": 0}, "context_length: 0"),
    ({"text_cfg.layers": 4096}, "4096, but no weight"),
    ({"text_cfg.layers": -1}, "layers: -1"),
    ({"text_cfg.act_kwargs": {"approximate": "x"}}, "approximate"),
    ({"vision_cfg.layers": [10**9, 10**9]}, "1000000000, but no weight"),
]


def changed(tree: dict, changes: dict) -> dict:
    for key, value in changes.items():
        *part, name = key.split(".")
        (tree[part[0]] if part else tree)[name] = value
    return tree


def test_a_hostile_architecture_in_a_release_is_refused_in_one_line(tmp_path, monkeypatch):
    """Nothing is fetched either: a name of timm's may stand for something on the Hub."""
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *_, **__: pytest.fail("fetches"))
    folder = released("siglip", tmp_path)
    kept = (folder / "config.json").read_text()
    for changes, message in HOSTILE:
        config = json.loads(kept)
        changed(config["architecture"], changes)
        reseal(folder, config)
        with pytest.raises(ArtefactError, match=message) as found:
            load(folder)
        assert "\n" not in str(found.value)
    for frames in ({"size": 0}, {"size": -1}, {"size": 96}, {"size": 10**9}, {"size": 200, "whole": False}):
        config = json.loads(kept)
        config["frames"] |= frames
        reseal(folder, config)
        with pytest.raises(ArtefactError, match=r"size"):
            load(folder)
    for field in ("timm_model_pretrained", "timm_drop_path"):  # what is not said or not meant is open_clip's default
        config = json.loads(kept)
        config["architecture"]["vision_cfg"][field] = True
        del config["architecture"]["text_cfg"]["vocab_size"]
        reseal(folder, config)
        assert load(folder).encode_text(["a red square"]).sentence.shape == (1, 32)


def reseal(folder: Path, config: dict) -> None:
    """Write a release's config, and its hash into the manifest."""
    (folder / "config.json").write_text(json.dumps(config))
    manifest = json.loads((folder / "manifest.json").read_text())
    content = (folder / "config.json").read_bytes()
    manifest["files"]["config.json"] |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_towers_whose_sizes_contradict_one_another_are_refused_with_and_without_weights(towers, tmp_path):
    folder = families.write("siglip", tmp_path / "towers")
    kept = (folder / "open_clip_config.json").read_text()
    for changes, message in (
        ({"vision_cfg.image_size": 96}, "doesn't match model"),
        ({"text_cfg.heads": 3}, "divisible"),
        ({"text_cfg.act_kwargs": {"approximate": "x"}}, "approximate"),
        ({"embed_dim": -4}, "embed_dim: -4"),
        ({"embed_dim": "x"}, "embed_dim: 'x'"),
    ):
        config = json.loads(kept)
        changed(config["model_cfg"], changes)
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        for weights in ("folder", "random"):
            with pytest.raises(RecipeError, match=message):
                Towers.from_config(ClipConfig(model=str(folder), weights=weights))


def test_a_release_of_whole_frames_refuses_a_set_of_cut_ones(world: World, tmp_path):
    release = load(released("mobileclip", tmp_path))
    with pytest.raises(ArtefactError, match=r'"whole": false.* was trained with .*"whole": true'):
        release.accept(FrameSet(world.frames["val"]))


def test_a_stored_picture_that_would_take_gigabytes_is_not_fitted():
    buffer = io.BytesIO()
    Image.new("RGB", (60_000, 1)).save(buffer, "JPEG")
    with pytest.raises(ValueError, match="60000 x 1 pixels, expected at most 100 to 1"):
        decode_jpeg(buffer.getvalue(), Fit(224))
