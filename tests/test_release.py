"""Releases: what goes in comes out bit for bit, and a folder is whole, refused, or not there."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import distill.release
from distill.catalogue import build, parse_model_config
from distill.config import validate
from distill.data.tokens import Tokenizer, prune
from distill.data.video import write_video
from distill.errors import ArtefactError, ExpectedError, VideoError
from distill.manifest import NAME, Manifest, seal, sealed_file
from distill.model.towers import Towers
from distill.release.card import model_card
from distill.release.release import FramesConfig, load
from distill.release.writing import write_release

TEXTS = ["a red square moves", "a blue circle", "the green star falls slowly"]
VOCABULARY = prune(TEXTS)
ARCHITECTURE = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": len(VOCABULARY), "width": 64, "heads": 1, "layers": 2},
}
TEMPORAL = {"layers": 1, "init": "clip_text", "positions": 16}
MODELS = {
    "teachclip": {"temporal": TEMPORAL},
    "clip4clip": {"head": "seqTransf", "temporal": TEMPORAL},
    "pig": {"frames": 4, "proxies": 2, "generator": {"selected": 5}},
    "xclip": {"temporal": TEMPORAL, "words": 16, "frames": 4},
}
FRAMES = {"sampler": {"kind": "clip4clip", "num_frames": 4}, "size": 32}
METRICS = {
    "t2v": {"R@1": 40.0, "R@5": 70.5, "R@10": 80.0, "MdR": 2.0, "MnR": 14.25},
    "v2t": {"R@1": 41.0, "R@5": 71.5, "R@10": 81.0, "MdR": 2.0, "MnR": 12.5},
}
PROVENANCE = {"recipe": {"seed": 1}, "parents": {"frames": "a" * 64, "labels xclip": "b" * 64}, "seconds": 720.0}


def make(kind="teachclip", seed=0):
    """A random model and its config; the towers are named by a path of this machine."""
    raw = {"kind": kind, "clip": {"model": "/home/someone/towers/tiny", "freeze_vision": 1}, **MODELS[kind]}
    config = parse_model_config(raw, "test")
    torch.manual_seed(seed)
    towers = Towers.from_architecture(ARCHITECTURE, config.clip.freeze_vision, config.clip.freeze_text)
    return config, build(config, towers).eval()


def release(folder, config, model, **changes):
    given = {
        "model": model,
        "model_config": config,
        "weights": model.state_dict(),
        "text": {"max_words": 16, "vocabulary": VOCABULARY},
        "frames_config": {**FRAMES, "jpeg_quality": 95},
        "provenance": PROVENANCE,
    }
    return write_release(folder, **(given | changes))


def pixels_and_mask(videos=3):
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (videos, 4, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return pixels, torch.arange(4) < torch.tensor([[4], [1], [3]])


def reseal(folder):
    """Makes the manifest agree with changed files, as someone who edits a release would."""
    manifest = Manifest.model_validate_json((folder / NAME).read_bytes())
    seal(folder, manifest.model_copy(update={"files": {name: sealed_file(folder / name) for name in manifest.files}}))


@pytest.mark.parametrize("kind", MODELS)
def test_a_release_encodes_bit_for_bit_like_the_model_it_was_made_of(kind, tmp_path):
    config, model = make(kind)
    manifest = release(tmp_path / "release", config, model)
    loaded = distill.release.load(tmp_path / "release")
    pixels, real = pixels_and_mask()
    with torch.inference_mode():
        text = model.encode_text(torch.from_numpy(Tokenizer(16, VOCABULARY)(TEXTS)))
        video = model.encode_video(pixels, real)
    for expected, found in ((text, loaded.encode_text(TEXTS)), (video, loaded.encode_frames(pixels, real))):
        assert expected.tensors().keys() == found.tensors().keys()
        assert all(torch.equal(value, found.tensors()[name]) for name, value in expected.tensors().items())
    assert torch.equal(
        model.similarity(text, video),
        loaded.model.similarity(loaded.encode_text(TEXTS), loaded.encode_frames(pixels, real)),
    )
    assert loaded.manifest.id == manifest.id
    assert (loaded.num_frames, loaded.size, loaded.dim) == (4, 32, 64)
    assert loaded.searchable == (kind != "xclip")
    assert not loaded.model.training


def test_embedded_texts_are_unit_vectors(tmp_path):
    release(tmp_path / "release", *make())
    vectors = load(tmp_path / "release").embed_text(TEXTS * 30)
    assert vectors.shape == (90, 64)
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(90))
    assert torch.allclose(vectors[:3], vectors[-3:], atol=1e-6)


def test_loading_leaves_the_random_stream_alone(tmp_path):
    release(tmp_path / "release", *make())
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load(tmp_path / "release")
    assert torch.equal(torch.rand(4), expected)


def test_config_names_no_place_on_the_machine_that_made_it(tmp_path):
    manifest = release(tmp_path / "release", *make())
    text = (tmp_path / "release" / "config.json").read_text()
    assert "someone" not in text
    assert json.loads(text)["model"]["clip"]["model"] == "tiny"
    assert manifest.parents == PROVENANCE["parents"]


def test_the_same_model_gives_the_same_bytes_and_is_kept_where_it_stands(tmp_path):
    config, model = make()
    first = release(tmp_path / "one", config, model)
    assert release(tmp_path / "two", config, model).id == first.id
    later = {**PROVENANCE, "seconds": 9.0}
    assert release(tmp_path / "one", config, model, provenance=later).id == first.id
    with pytest.raises(ArtefactError, match="already holds another release"):
        release(tmp_path / "one", *make(seed=1))
    with pytest.raises(ArtefactError, match="already holds another release"):
        release(tmp_path / "one", config, model, text={"max_words": 12, "vocabulary": VOCABULARY})
    assert load(tmp_path / "one").manifest.id == first.id
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_weights_that_are_not_finite_are_not_released(tmp_path):
    config, model = make()
    broken = {
        name: tensor * torch.nan if name == "afa.score.0.bias" else tensor
        for name, tensor in model.state_dict().items()
    }
    with pytest.raises(ExpectedError, match=r"afa\.score\.0\.bias not finite"):
        release(tmp_path / "release", config, model, weights=broken)
    assert list(tmp_path.iterdir()) == []


def test_at_no_moment_of_writing_is_there_a_release_that_is_not_whole(tmp_path):
    config, model = make()
    folder, leftover = tmp_path / "release", tmp_path / ".release.part"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")  # of a process that was killed
    seen, watching = [], True

    def watch(event, args):
        flushed = bool(args) and str(args[0]) == str(
            tmp_path
        )  # after the rename, so that its new name survives a power cut
        if watching and event in ("open", "os.rename", "os.remove", "os.mkdir") and not flushed:
            seen.append(folder.exists())

    sys.addaudithook(watch)  # cannot be removed again
    manifest = release(folder, config, model)
    watching = False
    assert len(seen) > 10
    assert not any(seen), "the folder was there before it was whole"
    assert load(folder).manifest.id == manifest.id
    assert not leftover.exists()


def test_a_flipped_byte_in_the_weights_is_refused_in_one_line(tmp_path):
    release(tmp_path / "release", *make())
    path = tmp_path / "release" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ArtefactError, match=r"model\.safetensors: sha256 .* expected .* changed after sealing"
    ) as error:
        load(tmp_path / "release")
    assert "\n" not in str(error.value)


def test_weights_that_do_not_fit_the_config_are_listed(tmp_path):
    release(tmp_path / "release", *make())
    path = tmp_path / "release" / "model.safetensors"
    weights = load_file(path)
    weights["surplus"] = weights.pop("afa.score.0.bias")
    weights["afa.score.2.bias"] = torch.zeros(7)
    save_file(weights, path)
    reseal(tmp_path / "release")
    with pytest.raises(ArtefactError) as error:
        load(tmp_path / "release")
    for words in ("missing: afa.score.0.bias", "unexpected: surplus", "another shape: afa.score.2.bias [7] for [1]"):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("text", {}, "max_words"),
        ("model", {"kind": "gan"}, "does not match"),
        ("architecture", {}, "config.json: .*embed_dim is missing"),
    ],
)
def test_a_config_of_another_version_is_refused(key, value, words, tmp_path):
    release(tmp_path / "release", *make())
    path = tmp_path / "release" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    reseal(tmp_path / "release")
    with pytest.raises(ArtefactError, match=words):
        load(tmp_path / "release")


def test_a_video_file_is_sampled_cut_and_padded_as_in_training(tmp_path):
    release(tmp_path / "release", *make())
    loaded = load(tmp_path / "release")
    noise = np.random.default_rng(0).integers(0, 256, (30, 4, 6, 3), np.uint8).repeat(12, axis=1).repeat(12, axis=2)
    write_video(tmp_path / "clip.mp4", noise, fps=10)
    found = loaded.encode_video(tmp_path / "clip.mp4")
    assert found.real.tolist() == [[True, True, True, False]]  # three seconds, one frame of each
    from_array = loaded.encode_video(noise[[0, 10, 20]])
    assert torch.cosine_similarity(found.vector, from_array.vector).item() > 0.99  # but for compression
    with pytest.raises(VideoError, match=r"nothing\.mp4: missing"):
        loaded.encode_video(tmp_path / "nothing.mp4")


def test_frames_may_be_cut_already_and_odd_arrays_are_refused(tmp_path):
    release(tmp_path / "release", *make())
    loaded = load(tmp_path / "release")
    pixels, real = pixels_and_mask()
    ready = pixels[2, :3].numpy()
    expected = loaded.encode_frames(pixels[2:] * real[2:, :, None, None, None], real[2:])
    assert torch.equal(loaded.encode_video(ready).vector, expected.vector)
    assert torch.equal(loaded.encode_video(ready.transpose(0, 2, 3, 1)).vector, expected.vector)
    for odd in (ready.astype(np.float32), ready[0], ready[:0], np.zeros((2, 5, 40, 40), np.uint8)):
        with pytest.raises(ExpectedError, match="expected uint8 RGB"):
            loaded.encode_video(odd)
    with pytest.raises(ExpectedError, match="expected at most 4"):
        loaded.encode_video(np.zeros((5, 40, 40, 3), np.uint8))


def test_the_card_states_the_task_the_numbers_and_where_the_model_comes_from():
    provenance = {**PROVENANCE, "name": "tiny", "test": METRICS, "evaluated_on": "demo/test"}
    card = model_card("teachclip", provenance, None, parameters=1_000)
    assert "# tiny" in card and "On demo/test." in card
    block = yaml.safe_load(card.split("---")[1])
    assert block["pipeline_tag"] == "feature-extraction"
    assert "text-to-video-retrieval" in block["tags"]
    measured = [entry for result in block["model-index"][0]["results"] for entry in result["metrics"]]
    assert {entry["type"] for entry in measured} == {
        "recall_at_1",
        "recall_at_5",
        "recall_at_10",
        "median_rank",
        "mean_rank",
    }
    assert {entry["value"] for entry in measured if entry["type"] == "recall_at_5"} == {70.5, 71.5}
    for words in ("| text to video | 40.0 | 70.5 | 80.0 | 2.0 | 14.2 |", "a" * 64, "b" * 64, "0.20 h", "## Licence"):
        assert words in card


def test_a_card_says_how_large_the_file_is_and_what_was_left_out():
    card = model_card("teachclip", {}, None, parameters=153_600_000, left_out=33_800_000)
    assert "153,600,000 parameters in float32: 614.4 MB." in card
    assert "Another 33,800,000 parameters only took part in training" in card
    assert "left out" not in model_card("teachclip", {}, None, parameters=1_000)


def test_a_release_leaves_out_what_the_model_lacks_and_its_card_counts_it(tmp_path):
    config, model = make()
    manifest = release(tmp_path / "release", config, model, weights=model.state_dict() | {"captioner": torch.ones(7)})
    assert "captioner" not in load_file(tmp_path / "release" / "model.safetensors")
    parameters = sum(tensor.numel() for tensor in model.state_dict().values())
    assert manifest.counts == {"parameters": parameters}
    card = (tmp_path / "release" / "README.md").read_text()
    for words in (f"{parameters:,} parameters in float32", "Another 7 parameters", "one vector per video, 256 bytes"):
        assert words in card


def test_a_card_without_numbers_claims_none():
    card = model_card("teachclip", {}, None, parameters=1_000)
    assert "model-index" not in card
    assert "model_name" not in card
    assert "Not evaluated." in card


def test_a_card_says_what_its_model_is_good_for():
    cards = {kind: model_card(kind, {}, None, parameters=1_000) for kind in MODELS}
    assert {kind: "tools/search.py" in card for kind, card in cards.items()} == {
        "teachclip": True,
        "clip4clip": True,
        "pig": True,
        "xclip": False,
    }
    assert "tools/dump_soft_labels.py" in cards["xclip"]


def test_frame_settings_are_read_strictly():
    with pytest.raises(ExpectedError, match="size"):
        validate({**FRAMES, "size": "32"}, FramesConfig, where="frames")
