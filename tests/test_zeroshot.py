"""A CLIP of open_clip labels without training, and a student with another tower learns from its labels.

Teacher and student take pictures of other sizes, cut or squashed, with another mean and another tokenizer, from one
whole frame set.
"""

import io
import json
from pathlib import Path

import families
import numpy as np
import open_clip
import pytest
import torch
from conftest import World, make_towers, python, quick, tree_bytes
from labelling import losses_while_learning
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from test_jsontokens import towers
from tokenizers import Tokenizer

import tools.dump_soft_labels
import tools.labels
from distill.config import read_recipe
from distill.data.frames import FrameSet
from distill.data.labelset import LabelSet
from distill.data.sampler import Clip4ClipSampler
from distill.errors import ArtefactError, ExpectedError
from distill.labelling.zeroshot import ZeroShot
from distill.packing.packing import PackConfig, pack
from distill.recipe import Recipe


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The videos of validation, whole, with a shorter side of 160 pixels at most."""
    out = tmp_path_factory.mktemp("whole") / "frames"
    config = PackConfig(sampler=Clip4ClipSampler(kind="clip4clip", num_frames=3), size=160, whole=True)
    pack(world.corpus / "val.csv", "msrvtt", world.corpus / "videos", out, config, workers=1)
    return out


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SigLIP's way: squashed pictures of 160 pixels, Gemma's tokens."""
    return towers(tmp_path_factory.mktemp("teacher") / "towers")


@pytest.fixture(scope="module")
def labels(whole: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("labels") / "zero"
    given = (f"open_clip:{teacher}", whole, "--out", out, "--dtype", "float32")
    tools.dump_soft_labels.main([str(one) for one in given])
    return out


@torch.no_grad()
def test_labels_are_the_cosines_of_open_clip_s_own_features(whole: Path, teacher: Path, labels: Path):
    """Against open_clip alone: its model, its transform of each stored picture, and the tokens as its tower wants."""
    frames = FrameSet(whole)
    stored, chosen = LabelSet(labels, frames), [0, 3, 5]
    batch = stored.batch([(video, 0) for video in chosen])
    own, tokenizer = families.build("siglip"), Tokenizer.from_file(str(teacher / "tokenizer.json"))
    told = {**families.FAMILIES["siglip"][2], "interpolation": "bicubic"}
    transform = image_transform_v2(PreprocessCfg(size=160, **told), is_train=False)
    for row, video in enumerate(chosen):
        about, pictures = frames.videos[video], []
        for number in range(len(about.timestamps)):
            jpeg = frames._shards.read(about.key, f"{number:03d}.jpg")
            pictures.append(transform(Image.open(io.BytesIO(jpeg))))
        text = open_clip.tokenizer.get_clean_fn("canonicalize")(about.captions[0].text)
        ids = tokenizer.encode(text).ids
        ids = [*ids[:15], 1] if len(ids) > 16 else ids + [0] * (16 - len(ids))
        sentence = own.encode_text(torch.tensor([ids]), normalize=True)[0]
        seen = own.encode_image(torch.stack(pictures), normalize=True)
        np.testing.assert_allclose(batch["relevance"][row, : len(seen)], seen @ sentence, atol=1e-5)


def test_verify_accepts_the_teacher_and_no_other(whole, teacher, labels, tmp_path, capsys):
    capsys.readouterr()
    asked = ("verify", labels, "--frames", whole, "--rows", "3", "--json", "--teacher")
    tools.labels.main([*map(str, asked), f"open_clip:{teacher}"])
    found = json.loads(capsys.readouterr().out)["recomputed"]
    assert all(one["largest"] <= 1e-5 for one in found.values())
    other = families.write("convnext", tmp_path / "other")
    with pytest.raises(ArtefactError, match="was made by teacher open_clip:towers sha256:"):
        tools.labels.main([*map(str, asked), f"open_clip:{other}"])


def test_a_student_with_another_tower_learns_from_the_same_frames(world: World, whole, labels, tmp_path: Path):
    """Pictures of 64 pixels, cut, with another mean, and CLIP's tokens; no setting says so."""
    student = families.write("mobileclip", tmp_path / "towers")
    data = {"train": str(whole), "val": str(whole), "test": None, "num_frames": 3, "max_words": 12}
    losses = {"contrastive": {"weight": 0.0}, "coarse": {"temperature": "auto"}, "fine": {"temperature": "auto"}}
    path = world.recipe("student", "teachclip", tmp_path, data=data, labels=[str(labels)], losses=losses)
    recipe = read_recipe(path, [f"model.clip.model={student}", "model.clip.freeze_vision=null"], Recipe)
    found = losses_while_learning(recipe, 4)
    assert found[-1]["total"] < found[0]["total"]


def test_what_is_no_teacher_is_refused_in_one_line(world: World, whole: Path, tmp_path: Path):
    for name, words in (
        ("open_clip:nothing", ("no such folder", "NAME/TAG")),
        ("open_clip:ViT-B-32/nothing", ("has no weights 'nothing'",)),
        ("open_clip:vit-b-32/openai", ("did you mean",)),
        ("open_clip:", ("no such folder",)),
        (f"open_clip:{families.write('pe', tmp_path / 'pe')}", ("160 pixels at most", "squashed to 384 x 384")),
    ):
        result = python("tools/dump_soft_labels.py", name, whole, "--out", tmp_path / "l", check=False)
        assert result.returncode == 2 and len(result.stderr.strip().splitlines()) == 1, result.stderr
        assert all(word in result.stderr for word in words), result.stderr
    assert not (tmp_path / "l").exists()


@torch.inference_mode()
@pytest.mark.parametrize("family", quick([*families.FAMILIES, "plain"], ["siglip", "plain"]))
@pytest.mark.parametrize("memory", [1e-6, 0.007])
def test_towers_that_do_not_fit_give_the_same_features(family: str, memory: float, tmp_path: Path):
    """With 0.007 GB part of most towers lies on disk, with 0.000001 GB all of it."""
    folder = make_towers(tmp_path / "plain") if family == "plain" else families.write(family, tmp_path / family)
    size = 64 if family == "plain" else families.FAMILIES[family][0]["image_size"]
    whole, divided = (ZeroShot(str(folder), torch.device("cpu"), given) for given in (None, memory))
    assert whole.id == divided.id
    if memory < 1e-5:
        assert all(parameter.device.type == "meta" for parameter in divided.clip.parameters()), "nothing is in memory"
    pixels = torch.randint(0, 256, (1, 2, 3, size, size), dtype=torch.uint8)
    real = torch.ones(1, 2, dtype=torch.bool)
    seen, said = (
        [one.encode_videos([], pixels, real).frames for one in (whole, divided)],
        [one.encode_texts(["a red square", "an apple"]).sentence for one in (whole, divided)],
    )
    assert torch.equal(*seen) and torch.equal(*said)


def test_labels_of_a_teacher_that_does_not_fit_are_the_same(whole: Path, teacher: Path, labels: Path, tmp_path: Path):
    given = (f"open_clip:{teacher}", whole, "--out", tmp_path / "zero", "--dtype", "float32", "--memory", "1e-6")
    tools.dump_soft_labels.main([str(one) for one in given])
    assert tree_bytes(tmp_path / "zero") == tree_bytes(labels)
    for wrong in ("0", "-1", "nan", "inf"):
        with pytest.raises(ExpectedError, match=r"--memory: .* GB, expected more than 0"):
            tools.dump_soft_labels.main([*[str(one) for one in given[:-1]], wrong])


OPENED = """
import sys
from pathlib import Path

import torch

from distill.labelling.zeroshot import ZeroShot


def megabytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


ZeroShot(sys.argv[1], torch.device("cpu"))  # what libraries take for themselves
before = megabytes()
teacher = ZeroShot(sys.argv[2], torch.device("cpu"), None if sys.argv[3] == "all" else float(sys.argv[3]))
print(megabytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_a_teacher_that_does_not_fit_is_never_in_memory_as_a_whole(tmp_path: Path):
    small, large = make_towers(tmp_path / "small"), tmp_path / "large"
    config = json.loads((small / "open_clip_config.json").read_text())
    text = config["model_cfg"]["text_cfg"]
    text.update(width=512, heads=8)  # 49,408 tokens of 512 numbers: 101 MB
    config["model_cfg"]["embed_dim"] = 512
    large.mkdir()
    (large / "open_clip_config.json").write_text(json.dumps(config))
    clip = open_clip.CLIP(**config["model_cfg"])
    save_file(
        {key: value.contiguous() for key, value in clip.state_dict().items()}, large / "open_clip_model.safetensors"
    )
    script, taken = tmp_path / "opened.py", {}
    script.write_text(OPENED)
    for memory in ("all", "0.02"):
        taken[memory] = float(python(script, small, large, memory).stdout.splitlines()[-1])
    assert taken["all"] > 90 and taken["0.02"] < 45, taken
