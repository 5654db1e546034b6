"""A release as a model of sentence-transformers: its own vectors, its own bytes when saved, and a task of MTEB.

The code blocks of its sections in docs/libraries.md run word for word.
"""

import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers.dynamic_module_utils
from conftest import ROOT, tree_bytes
from sentence_transformers import SentenceTransformer
from test_release import TEXTS, make, release

import distill.release
import tools.evaluate
import tools.pack_frames
from distill.data.frames import FrameSet
from distill.data.video import write_video
from distill.errors import ArtefactError, ExpectedError, VideoError
from distill.evaluation.evaluate import encode, rank
from distill.release.release import Release
from distill.release.sentencemodule import SentenceModule

PAGE = (ROOT / "docs/libraries.md").read_text()
OPENED, MEASURED = (
    re.search(rf"^## {title}\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)[1]
    for title in ("sentence-transformers", "MTEB")
)
VIDEOS = 12


@pytest.fixture(autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of releases is copied to a folder of this test, not to that of the user."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))


@pytest.fixture(scope="module")
def my(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, as docs/libraries.md names it: twelve videos of moving colours, their frames, a release."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "my/videos").mkdir(parents=True)
    drawn = np.random.default_rng(3)
    rows = ["video,caption"]
    for number in range(VIDEOS):
        name = "dogs.mp4" if number == 0 else f"v{number}.mp4"
        still = drawn.integers(0, 256, (6, 8, 3)).repeat(8, 0).repeat(8, 1)
        video = np.stack([np.roll(still, (8 * step, 4 * number), (0, 1)) for step in range(9 + number)])
        write_video(folder / "my/videos" / name, video.astype(np.uint8), 4)
        rows += [f"{name},{TEXTS[number % 3]} {'slowly ' * (number % 4)}", f"{name},a {'blue ' * (number + 1)}circle"]
    (folder / "my/test.csv").write_text("\n".join(rows) + "\n")
    given = ["--layout", "csv", "--size", "32", "--frames", "4", "--out", folder / "my/frames/test"]
    tools.pack_frames.main([str(one) for one in (folder / "my/test.csv", folder / "my/videos", *given)])
    config, model = make()
    packed = FrameSet(folder / "my/frames/test").manifest.config
    release(folder / "runs/my-teachclip/release", config, model, frames_config=packed)
    return folder


@pytest.fixture
def student(my: Path) -> Release:
    return distill.release.load(my / "runs/my-teachclip/release")


@pytest.fixture
def opened(my: Path) -> SentenceTransformer:
    return SentenceTransformer(str(my / "runs/my-teachclip/release"), trust_remote_code=True, device="cpu")


def vectors_of(student: Release, videos: list) -> np.ndarray:
    """The project's own, one video at a time."""
    found = [student.model.index_vectors(student.encode_video(video)) for video in videos]
    return torch.cat(found).numpy(force=True)


def test_texts_files_and_frames_have_the_vectors_of_the_release(my: Path, student: Release, opened):
    assert opened.modalities == ["text", "video"] and opened.get_embedding_dimension() == student.dim
    ours = student.embed_text(TEXTS).numpy()
    for encoder in (opened.encode, opened.encode_query, opened.encode_document):
        np.testing.assert_allclose(encoder(TEXTS), ours, atol=1e-6)
    files = sorted((my / "my/videos").glob("*.mp4"))
    ours = vectors_of(student, files)
    assert np.abs(ours - ours[:1]).max() > 1e-3  # they differ
    for given in ([str(path) for path in files], [{"video": str(path)} for path in files]):
        np.testing.assert_allclose(opened.encode(given, batch_size=5), ours, atol=1e-6)
    frames = FrameSet(my / "my/frames/test")
    pixels = [torch.from_numpy(frames.pixels(number)) for number in range(VIDEOS)]
    np.testing.assert_allclose(opened.encode(pixels), vectors_of(student, files_of(my, frames)), atol=1e-6)


def files_of(my: Path, frames: FrameSet) -> list[Path]:
    return [my / "my/videos" / video.source for video in frames.videos]


def test_frames_of_any_size_and_number_are_what_the_release_makes_of_them(student: Release, opened):
    drawn = np.random.default_rng(1).integers(0, 256, (3, 40, 56, 3), np.uint8)  # frame height width colour
    ours = vectors_of(student, [drawn])
    first = drawn.transpose(0, 3, 1, 2)
    listed = {"array": torch.from_numpy(first), "video_metadata": {"fps": 4}}
    for given in (torch.from_numpy(first), first, listed, {"video": torch.from_numpy(first)}):
        np.testing.assert_allclose(opened.encode([given]), ours, atol=1e-6)
    np.testing.assert_allclose(opened.encode(torch.from_numpy(first)), ours[0], atol=1e-6)
    with pytest.raises(ExpectedError, match="frames: 6, expected at most 4; sample them first"):
        opened.encode([torch.from_numpy(first).repeat(2, 1, 1, 1)])
    with pytest.raises(ExpectedError, match=r"frames: float32 .*, expected uint8"):
        opened.encode([torch.from_numpy(first).float()])


def test_a_prompt_stands_before_texts(student: Release, opened):
    found = opened.encode(["circle"], prompt="a blue ")
    np.testing.assert_allclose(found, student.embed_text(["a blue circle"]).numpy(), atol=1e-6)


def test_inputs_that_cannot_be_encoded_are_refused(my: Path, opened):
    with pytest.raises(ValueError, match="mixes multiple modalities"):
        opened.encode(["a circle", str(my / "my/videos/dogs.mp4")])
    with pytest.raises(ValueError, match="Modality 'image' is not supported"):
        opened.encode([np.zeros((3, 32, 32), np.uint8)])
    with pytest.raises(VideoError, match=r"nowhere\.mp4: missing"):
        opened.encode([{"video": "nowhere.mp4"}])
    with pytest.raises(ExpectedError, match="a video is int; expected the path of a file, or frames"):
        opened.encode([{"video": 3}])


def test_what_is_saved_again_is_the_same_release(my: Path, tmp_path: Path, student: Release, opened):
    opened.save_pretrained(str(tmp_path / "saved"))
    saved = tree_bytes(tmp_path / "saved")
    assert saved.keys() - tree_bytes(student.path).keys() == {"config_sentence_transformers.json"}
    saved.pop("config_sentence_transformers.json")  # versions of the libraries, which no reader of releases needs
    assert saved == tree_bytes(student.path)
    assert distill.release.load(tmp_path / "saved").manifest.id == student.manifest.id
    again = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    assert np.array_equal(again.encode(TEXTS), opened.encode(TEXTS))
    opened.save_pretrained(str(tmp_path / "saved"))  # over itself
    opened.save_pretrained(str(my / "runs/my-teachclip/release"))
    assert distill.release.load(student.path).manifest.id == student.manifest.id
    (student.path / "config_sentence_transformers.json").unlink()


def test_changed_weights_and_foreign_folders_are_not_saved_over(tmp_path: Path, student: Release, opened):
    release(tmp_path / "other", *make(seed=1))
    before = (tmp_path / "other/model.safetensors").read_bytes()
    with pytest.raises(ExpectedError, match="already holds another release; choose another folder"):
        opened.save_pretrained(str(tmp_path / "other"))
    assert (tmp_path / "other/model.safetensors").read_bytes() == before
    with torch.no_grad():
        next(opened.parameters()).add_(1)
    with pytest.raises(ExpectedError, match="changed since it was loaded, and a release does not change; train on"):
        opened.save_pretrained(str(tmp_path / "saved"))


def test_no_code_runs_without_trust(student: Release, tmp_path: Path):
    folder = shutil.copytree(student.path, tmp_path / "release")
    (folder / "release_module.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')")
    with pytest.raises(ValueError, match=r"(?s)release_module\.ReleaseModule.*trust_remote_code=True"):
        SentenceTransformer(str(folder))
    assert not (tmp_path / "harm").exists()
    with pytest.raises(ArtefactError, match=r"release_module\.py"):
        distill.release.load(folder)


def test_a_damaged_release_is_refused(student: Release, tmp_path: Path):
    folder = shutil.copytree(student.path, tmp_path / "release")
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    with pytest.raises(ArtefactError, match=r"model\.safetensors: sha256"):
        SentenceTransformer(str(folder), trust_remote_code=True)


def test_without_the_project_the_error_names_it(student: Release, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, SentenceModule.__module__, None)  # which Python takes for not installed
    with pytest.raises(
        ImportError, match=r"run by the package retrieval-distill, .*pip install 'retrieval-distill\[st"
    ):
        SentenceTransformer(str(student.path), trust_remote_code=True)


@pytest.mark.parametrize("kind", ["clip4clip", "pig", "xclip"])
def test_only_students_of_one_vector_have_the_files(kind: str, tmp_path: Path):
    release(tmp_path / "release", *make(kind))
    assert (tmp_path / "release/modules.json").exists() == (kind != "xclip")
    assert ("SentenceTransformer(" in (tmp_path / "release/README.md").read_text()) == (kind != "xclip")
    if kind != "xclip":
        model = SentenceTransformer(str(tmp_path / "release"), trust_remote_code=True, device="cpu")
        ours = distill.release.load(tmp_path / "release").embed_text(TEXTS).numpy()
        np.testing.assert_allclose(model.encode(TEXTS), ours, atol=1e-6)


def test_a_release_from_before_opens_by_its_class(tmp_path: Path):
    folder = ROOT / "tests/artefacts/5368ee6/teachclip"
    old = distill.release.load(folder)
    assert not (folder / "modules.json").exists()
    model = SentenceTransformer(modules=[SentenceModule.load(str(folder))], device="cpu")
    np.testing.assert_allclose(model.encode(TEXTS), old.embed_text(TEXTS).numpy(), atol=1e-6)
    with pytest.raises(ExpectedError, match="opened by its class, and can only be saved by copying the folder"):
        model.save_pretrained(str(tmp_path / "saved"))


@pytest.mark.filterwarnings("ignore")  # of MTEB's own
def test_the_examples_of_the_docs_run_and_mteb_agrees(my: Path, student: Release, monkeypatch, capsys):
    monkeypatch.chdir(my)
    capsys.readouterr()
    exec(OPENED, {})
    expected = (
        student.embed_text(["two dogs fight over a ball", "a red apple"]).numpy()
        @ vectors_of(student, ["my/videos/dogs.mp4"]).T
    )
    printed = [float(number) for number in re.findall(r"-?[\d.]+", capsys.readouterr().out)]
    np.testing.assert_allclose(printed, expected[:, 0], atol=1e-4)
    names = {"__name__": "__main__"}
    exec(MEASURED, names)
    frames = FrameSet("my/frames/test")
    ranks = rank(student.model.similarity, encode(student.model, frames, student.tokenizer))
    gained = np.where(ranks.t2v < 10, 1 / np.log2(ranks.t2v.numpy() + 2), 0)  # one relevant video a query
    scores = names["scores"]
    assert 0 < gained.mean() < 1
    np.testing.assert_allclose(scores["ndcg_at_10"], gained.mean(), atol=1e-5)
    np.testing.assert_allclose(100 * scores["recall_at_1"], ranks.metrics["t2v"]["R@1"], atol=1e-3)
