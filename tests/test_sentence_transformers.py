"""A model of sentence-transformers labels without training, as its own library encodes; hostile ones are refused.

The model is a CLIP of transformers with random weights, made here: nothing is fetched.
"""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import transformers
from conftest import World, python
from labelling import losses_while_learning
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule, Transformer

import tools.dump_soft_labels
import tools.labels
from distill import catalogue
from distill.config import read_recipe
from distill.data.frames import FrameSet
from distill.data.labelset import LabelSet
from distill.errors import ArtefactError, ExpectedError
from distill.labelling.embedder import Embedder, open_embedder
from distill.labelling.job import LabelJob, LabelJobConfig
from distill.model.contract import teacher_logits
from distill.recipe import Recipe

WORDS, SIZE = 60, 32
ENDS = ("<|startoftext|>", "<|endoftext|>")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP as transformers writes it; its tokens are letters."""
    folder = tmp_path_factory.mktemp("raw")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.-'"
    spelled = [*letters, *(f"{letter}</w>" for letter in letters), *ENDS]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(spelled)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    start, end = (spelled.index(token) for token in ENDS)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    text = {"vocab_size": len(spelled), "max_position_embeddings": WORDS, **tower, **ids}
    vision = {"image_size": SIZE, "patch_size": 16, **tower}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer = transformers.CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=WORDS
    )
    cut = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    pictures = transformers.CLIPImageProcessor(**cut)
    transformers.CLIPProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a folder of sentence-transformers."""
    folder = tmp_path_factory.mktemp("st") / "model"
    SentenceTransformer(modules=[Transformer(str(raw))], device="cpu").save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def labels(world: World, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its labels of the training frames."""
    out = tmp_path_factory.mktemp("labels") / "st"
    given = [f"sentence-transformers:{model}", world.frames["train"], "--out", out, "--dtype", "float32"]
    tools.dump_soft_labels.main([str(one) for one in given])
    return out


@torch.no_grad()
def test_labels_are_the_cosines_of_the_towers_of_transformers(world: World, raw: Path, labels: Path):
    """Against transformers itself, each caption and each frame by itself."""
    frames = FrameSet(world.frames["train"])
    stored, chosen = LabelSet(labels, frames), [0, 7, 13, 30]
    batch = stored.batch([(video, 0) for video in chosen])
    clip, processor = transformers.CLIPModel.from_pretrained(raw), transformers.CLIPProcessor.from_pretrained(raw)
    sentences, videos = [], []
    for row, video in enumerate(chosen):
        ids = processor.tokenizer(frames.videos[video].captions[0].text, return_tensors="pt")
        sentences.append(clip.get_text_features(**ids).pooler_output[0].numpy())
        pictures = [Image.fromarray(picture.transpose(1, 2, 0)) for picture in frames.pixels(video)]
        given = [processor.image_processor(picture, return_tensors="pt") for picture in pictures]
        seen = np.stack([clip.get_image_features(**one).pooler_output[0].numpy() for one in given])
        seen /= np.linalg.norm(seen, axis=1, keepdims=True)
        videos.append(seen.mean(0) / np.linalg.norm(seen.mean(0)))
        sentences[-1] /= np.linalg.norm(sentences[-1])
        np.testing.assert_allclose(batch["relevance"][row, : len(seen)].numpy(), seen @ sentences[-1], atol=1e-5)
    logits = teacher_logits(catalogue.scoring_head(stored), batch)
    np.testing.assert_allclose(logits.numpy(), np.stack(sentences) @ np.stack(videos).T, atol=1e-5)


def test_verify_accepts_the_teacher_and_no_other(
    world: World, model: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    def verify(folder: Path) -> dict[str, Any]:
        teacher = f"sentence-transformers:{folder}"
        asked = ["verify", labels, "--teacher", teacher, "--frames", world.frames["train"], "--rows", "3", "--json"]
        tools.labels.main([str(one) for one in asked])
        return json.loads(capsys.readouterr().out)["recomputed"]

    capsys.readouterr()
    assert all(one["largest"] <= 1e-5 for one in verify(model).values())
    other = shutil.copytree(model, tmp_path / "other")
    (other / "README.md").write_text("another card")
    verify(other)  # a name and a card do not make another teacher
    settings = json.loads((other / "processor_config.json").read_text())
    settings["image_processor"]["image_mean"] = [0.1, 0.2, 0.3]
    (other / "processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        ArtefactError, match=r"was made by teacher sha256:[0-9a-f]{64} \{.*, but the one given is sha256"
    ):
        verify(other)


def test_a_student_learns_from_it(world: World, labels: Path, tmp_path: Path):
    losses = {"contrastive": {"weight": 0.0}, "coarse": {"temperature": "auto"}, "fine": {"temperature": "auto"}}
    path = world.recipe("student", "teachclip", tmp_path, labels=[str(labels)], losses=losses)
    for name, other in (("coarse", "fine"), ("fine", "coarse")):
        found = losses_while_learning(read_recipe(path, [f"losses.{other}.weight=0.0"], Recipe))
        assert found[-1][name] < 0.95 * found[0][name] and other not in found[0]


def test_a_repository_is_known_by_its_revision(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    revision = "0123456789abcdef" * 2 + "01234567"
    repo = tmp_path / "models--someone--tiny"
    shutil.copytree(model, repo / "snapshots" / revision)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(revision)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    expected = f'someone/tiny@{revision} {{"modality": "image", "query": "", "document": ""}}'
    assert [open_embedder(name, CPU).id for name in ("someone/tiny", f"someone/tiny@{revision}")] == [expected] * 2
    for name in ("someone/other", "someone/tiny@unknown", "../../nowhere", "a/b/c", ""):
        with pytest.raises(ArtefactError, match="no such folder"):
            open_embedder(name, CPU)


def test_prompts_are_the_models_own_and_part_of_the_id(model: Path, tmp_path: Path):
    folder = shutil.copytree(model, tmp_path / "prompted")
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    settings["prompts"] = {"query": "find, ", "document": ""}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    prompted, plain = open_embedder(str(folder), CPU), open_embedder(str(model), CPU)
    assert prompted.id.endswith('{"modality": "image", "query": "find, ", "document": ""}')
    found, said = prompted.encode_texts(["a dog"]).sentence, plain.encode_texts(["find, a dog", "a dog"]).sentence
    torch.testing.assert_close(found, said[:1], atol=1e-5, rtol=0)
    assert (found - said[1:]).abs().max() > 1e-3


def test_captions_that_are_cut_are_counted(model: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    monkeypatch.setattr("distill.labelling.embedder.log.warning", said.append)
    open_embedder(str(model), CPU).warn_of_cuts(["a dog", "a" * 58, "a" * 59], "FRAMES")
    assert said == ["FRAMES: 1 of 3 captions are cut at 60 tokens by the teacher"]


class Clips(InputModule):
    """A model of text and whole videos: the mean colour, and lengths of words."""

    modalities = ("text", "video")

    def preprocess(self, inputs: list[Any], prompt: str | None = None, **options: Any) -> dict[str, torch.Tensor]:
        rows = []
        for one in inputs:
            if isinstance(one, str):
                rows.append([1.0, float(len(one)), 2.0])
            else:
                assert one["video"].dtype == torch.uint8 and one["video"].shape[1:] == (3, 64, 64)
                rows.append([*one["video"].float().mean((0, 2, 3)).tolist()])
        return {"rows": torch.tensor(rows)}

    def forward(self, features: dict[str, torch.Tensor], **options: Any) -> dict[str, torch.Tensor]:
        return features | {"sentence_embedding": features["rows"]}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **options: Any) -> None:
        raise AssertionError("not saved")


def test_a_model_of_whole_videos_ranks_them_and_gives_no_relevance(world: World, tmp_path: Path):
    frames = FrameSet(world.frames["train"])
    teacher = Embedder(SentenceTransformer(modules=[Clips()], device="cpu"), "clips")
    config = LabelJobConfig(tiers=["relevance", "features"], storage="float32", batch=8, precision="fp32")
    job = LabelJob(teacher, frames, tmp_path / "labels", config)
    assert job.begin() is None and job.label() is not None
    stored = LabelSet(tmp_path / "labels", frames)
    assert stored.tiers == ["features"] and '"modality": "video"' in stored.config.teacher
    batch = stored.batch([(0, 0), (5, 0)])
    wanted = np.stack([frames.pixels(video).mean((0, 2, 3)) for video in (0, 5)])
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(batch["vector"].numpy(), wanted, rtol=1e-5)


def test_a_model_that_sees_nothing_cannot_label():
    class Reader(Clips):
        modalities = ("text",)

    with pytest.raises(ExpectedError, match="reader: encodes text; a teacher needs text, and image or video"):
        Embedder(SentenceTransformer(modules=[Reader()], device="cpu"), "reader")


def _pickled(folder: Path) -> None:
    class Harm:
        def __reduce__(self):
            return (Path.touch, (folder.parent / "harm",))

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harm()))


def _modules(change: dict[str, str]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        (folder / "modules.json").write_text(json.dumps([{**modules[0], **change}]))
        (folder / "evil.py").write_text(f"open({str(folder.parent / 'harm')!r}, 'w')")

    return write


def _with_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(folder.parent / 'harm')!r}, 'w')")


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "module": (_modules({"type": "evil.Module"}), r"its module 'evil.Module' is code of its own, which is never run"),
    "place": (_modules({"path": "../raw"}), r"names a place outside its folder"),
    "auto_map": (_with_code, r"has code of its own \(auto_map\), which is never run"),
    "pickle": (_pickled, r"pytorch_model\.bin: may hold code, and is never loaded"),
    "no modules": (
        lambda folder: (folder / "modules.json").unlink(),
        r"modules\.json: missing; expected a folder that",
    ),
    "text": (lambda folder: (folder / "modules.json").write_text("[1]"), "expected a list of modules"),
    "torn": (lambda folder: (folder / "model.safetensors").write_bytes(b"torn"), "cannot be opened by"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_models_are_refused_and_their_code_is_not_run(model: Path, tmp_path: Path, kind: str):
    folder = shutil.copytree(model, tmp_path / "model")
    spoil, words = HOSTILE[kind]
    spoil(folder)
    with pytest.raises(ArtefactError, match=words):
        open_embedder(str(folder), CPU)
    assert not (tmp_path / "harm").exists()


def test_vectors_that_are_not_finite_stop_the_job(world: World, model: Path, tmp_path: Path):
    teacher = open_embedder(str(model), CPU)
    with torch.no_grad():
        for weight in teacher.model.parameters():
            weight.fill_(torch.nan)
    with pytest.raises(ArtefactError, match="gives a vector that is zero or not finite"):
        teacher.encode_texts(["a dog"])


def test_a_command_refuses_in_one_line(world: World, tmp_path: Path):
    given = ("sentence-transformers:nobody/nothing", world.frames["train"], "--out", tmp_path / "labels")
    result = python("tools/dump_soft_labels.py", *given, check=False, HF_HUB_CACHE=str(tmp_path))
    assert result.returncode == 2 and result.stderr.count("error: ") == 1, result.stderr
    assert "nobody/nothing: no such folder, and as a repository not to be had" in result.stderr


def test_a_model_that_does_not_fit_gives_the_same_vectors(world: World, model: Path):
    whole, divided = (open_embedder(str(model), CPU, memory) for memory in (None, 2e-5))
    assert any(weight.device.type == "meta" for weight in divided.model.parameters()), "some of it lies on disk"
    frames = FrameSet(world.frames["train"])
    real = torch.ones(1, len(frames.videos[0].timestamps), dtype=torch.bool)
    pixels = torch.from_numpy(frames.pixels(0)).unsqueeze(0)
    for one in (whole, divided):
        assert one.id == whole.id
    seen = [one.encode_videos([frames.videos[0]], pixels, real).frames for one in (whole, divided)]
    said = [one.encode_texts(["a red square", "an apple"]).sentence for one in (whole, divided)]
    assert torch.equal(*seen) and torch.equal(*said)
