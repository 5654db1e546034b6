"""Vectors that were computed elsewhere become labels whose scores are their cosines, and anything else is refused."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from conftest import ROOT, World, python, tree_bytes
from labelling import losses_while_learning, pack_shards
from pyarrow import parquet
from safetensors.torch import save_file

import tools.dump_soft_labels
import tools.labels
import tools.pack_frames
from distill import catalogue
from distill.config import read_recipe
from distill.data.frames import FrameSet
from distill.data.labels import StoredLabels
from distill.data.labelset import LabelSet
from distill.data.vectorfiles import VectorFiles
from distill.errors import ArtefactError, ExpectedError
from distill.experiment import prepare
from distill.labelling.forecast import forecast
from distill.labelling.given import GivenVectors
from distill.labelling.job import LabelJob, LabelJobConfig
from distill.model.contract import teacher_logits
from distill.recipe import Recipe

WIDTH = 6
Vectors = dict[str, np.ndarray]  # under their names in a safetensors file


@pytest.fixture(scope="module")
def shards(world: World, tmp_path_factory: pytest.TempPathFactory) -> FrameSet:
    """The training frames in shards of seven, with fewer frames than videos are padded to."""
    return FrameSet(pack_shards(world, tmp_path_factory.mktemp("shards") / "frames", 7))


def drawn(frames: FrameSet, *fields: str) -> Vectors:
    """Random vectors of all captions and videos of a frame set, of many lengths."""
    rng, found = np.random.default_rng(0), {}
    texts = {caption.text for video in frames.videos for caption in video.captions}
    for text in sorted(texts):
        found[f"sentence/{text}"] = rng.normal(size=WIDTH).astype(np.float32) * 10.0 ** rng.integers(-9, 15)
    for video in frames.videos:
        made = {
            "vector": rng.normal(size=WIDTH).astype(np.float32),
            "frames": 3 * rng.normal(size=(len(video.timestamps), WIDTH)).astype(np.float32),
            "timestamps": np.array(video.timestamps),
        }
        found |= {f"{field}/{video.id}": made[field] for field in fields}
    return found


def stored(folder: Path, vectors: Vectors) -> Path:
    """Vectors as a safetensors file in a new folder."""
    folder.mkdir(parents=True)
    save_file({name: torch.from_numpy(value) for name, value in vectors.items()}, folder / "all.safetensors")
    return folder


def tables(folder: Path, vectors: Vectors) -> Path:
    """The same as Parquet files, one of captions and one of videos."""
    folder.mkdir(parents=True)
    said = [name.partition("/")[2] for name in vectors if name.startswith("sentence/")]
    columns = {"text": said, "sentence": [vectors[f"sentence/{text}"].tolist() for text in said]}
    parquet.write_table(pyarrow.table(columns), folder / "captions.parquet")
    ids = list(dict.fromkeys(name.partition("/")[2] for name in vectors if not name.startswith("sentence/")))
    columns = {"id": ids}
    for field in ("vector", "frames", "timestamps"):
        rows = [vectors.get(f"{field}/{id}") for id in ids]
        if any(row is not None for row in rows):
            columns[field] = [None if row is None else row.tolist() for row in rows]
    parquet.write_table(pyarrow.table(columns), folder / "videos.parquet")
    return folder


def dump(vectors: Path, frames: Path, out: Path, *options: str) -> Path:
    given = ["--vectors", vectors, frames, "--out", out, "--dtype", "float32", *options]
    tools.dump_soft_labels.main([str(one) for one in given])
    return out


def unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.mark.parametrize("fields", [("frames", "timestamps"), ("vector",), ("vector", "frames")], ids="+".join)
@pytest.mark.parametrize("write", [stored, tables])
def test_labels_are_the_cosines_of_the_vectors(
    shards: FrameSet, tmp_path: Path, fields: tuple[str, ...], write: Callable[[Path, Vectors], Path]
):
    """Against NumPy in double precision: the given vector, or the mean of unit frame vectors; relevance in time."""
    vectors = drawn(shards, *fields)
    labels = LabelSet(dump(write(tmp_path / "vectors", vectors), shards.path, tmp_path / "labels"), shards)
    pairs = [(video, len(shards.videos[video].captions) - 1) for video in range(len(shards))]
    batch = labels.batch(pairs)
    about = [shards.videos[video] for video, _ in pairs]
    sentences = unit(np.stack([vectors[f"sentence/{video.captions[-1].text}"] for video in about]))
    if "vector" in fields:
        videos = unit(np.stack([vectors[f"vector/{video.id}"] for video in about]))
    else:
        videos = unit(np.stack([unit(vectors[f"frames/{video.id}"]).mean(0) for video in about]))
    logits = teacher_logits(catalogue.scoring_head(labels), batch)
    np.testing.assert_allclose(logits.numpy(), sentences @ videos.T, atol=1e-6)
    assert labels.tiers == (["relevance", "features"] if "frames" in fields else ["features"])
    if "frames" not in fields:
        assert "relevance" not in batch
        return
    for row, video in enumerate(about):
        cosines = unit(vectors[f"frames/{video.id}"]) @ sentences[row]
        np.testing.assert_allclose(batch["relevance"][row, : len(cosines)].numpy(), cosines, atol=1e-6)
        np.testing.assert_allclose(batch["relevance"][row, len(cosines) :].numpy(), cosines.min(), atol=1e-6)


def test_both_formats_give_the_same_labels_and_any_number_of_parts_one_manifest(shards: FrameSet, tmp_path: Path):
    vectors = drawn(shards, "frames")
    one = dump(stored(tmp_path / "one", vectors), shards.path, tmp_path / "labels")
    other = dump(tables(tmp_path / "other", vectors), shards.path, tmp_path / "others")
    tars = [{name: data for name, data in tree_bytes(labels).items() if "tar" in name} for labels in (one, other)]
    assert tars[0] == tars[1]
    for part in ("2/2", "1/2"):
        dump(tmp_path / "one", shards.path, tmp_path / "parts", "--part", part)
    assert tree_bytes(tmp_path / "parts") == tree_bytes(one)
    assert StoredLabels(one).manifest.id == StoredLabels(tmp_path / "parts").manifest.id


def test_verify_knows_the_vectors_again(shards: FrameSet, tmp_path: Path, capsys: pytest.CaptureFixture):
    vectors = drawn(shards, "frames")
    labels = dump(stored(tmp_path / "vectors", vectors), shards.path, tmp_path / "labels")
    capsys.readouterr()
    asked = ["verify", str(labels), "--vectors", str(tmp_path / "vectors"), "--frames", str(shards.path), "--json"]
    tools.labels.main(asked)
    said = json.loads(capsys.readouterr().out)["recomputed"]
    assert {"relevance", "sentence", "vector"} <= said.keys() and all(one["largest"] <= 1e-6 for one in said.values())
    vectors[f"frames/{shards.videos[0].id}"][0] *= -1
    other = stored(tmp_path / "changed", vectors)
    with pytest.raises(ArtefactError, match=r"was made by teacher [0-9a-f]{12}, but the one given is [0-9a-f]{12}"):
        tools.labels.main([str(other) if part == str(tmp_path / "vectors") else part for part in asked])


def test_a_student_learns_from_them(world: World, tmp_path: Path, capsys: pytest.CaptureFixture):
    frames = FrameSet(world.frames["train"])
    labels = dump(stored(tmp_path / "vectors", drawn(frames, "frames")), frames.path, tmp_path / "labels")
    losses = {"contrastive": {"weight": 0.0}, "coarse": {"temperature": "auto"}, "fine": {"temperature": "auto"}}
    path = world.recipe("student", "teachclip", tmp_path, labels=[str(labels)], losses=losses)
    for name, other in (("coarse", "fine"), ("fine", "coarse")):
        found = losses_while_learning(read_recipe(path, [f"losses.{other}.weight=0.0"], Recipe))
        assert found[-1][name] < 0.95 * found[0][name] and other not in found[0]
    softness = StoredLabels(labels).config.softness
    assert softness is not None and softness.coarse is not None
    assert f"losses.coarse.temperature: auto is {softness.coarse.recommended:g}" in capsys.readouterr().err


def test_a_loss_that_needs_relevance_refuses_labels_of_whole_videos(world: World, tmp_path: Path):
    frames = FrameSet(world.frames["train"])
    labels = dump(stored(tmp_path / "vectors", drawn(frames, "vector")), frames.path, tmp_path / "labels")
    path = world.recipe("student", "teachclip", tmp_path, labels=[str(labels)])
    with pytest.raises(ArtefactError, match=r"labels: holds tiers features, but losses\.fine needs 'relevance'; its"):
        prepare(read_recipe(path, [], Recipe))
    alone = read_recipe(path, ["losses.fine.weight=0.0", "losses.coarse.temperature=auto"], Recipe)
    assert "fine" not in losses_while_learning(alone, 1)[0]
    tools.labels.main(["stats", str(labels)])
    tools.labels.main(["verify", str(labels)])
    with pytest.raises(ArtefactError, match="a comparison of relevance"):
        tools.labels.main(["diff", str(labels), str(labels)])
    with pytest.raises(ExpectedError, match="--tiers: relevance alone, but the teacher has no vectors of frames"):
        dump(tmp_path / "vectors", frames.path, tmp_path / "other", "--tiers", "relevance")


def test_the_example_of_the_documentation_writes_vectors_that_are_taken(world: World, tmp_path: Path):
    code = (ROOT / "docs" / "labels.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    assert len(code.splitlines()) <= 12
    code = code.replace("my/frames/train", str(world.frames["train"])).replace("my/vectors", str(tmp_path / "vectors"))
    (tmp_path / "vectors").mkdir()
    models = {
        "my_image_model": lambda pixels: torch.from_numpy(pixels.mean((2, 3))).float() + 1,
        "my_text_model": lambda text: torch.tensor([len(text), 1.0, 2.0]),
    }
    exec(code, models)
    labels = dump(tmp_path / "vectors", world.frames["train"], tmp_path / "labels")
    assert StoredLabels(labels).tiers == ["relevance", "features"]


def test_a_plan_of_videos_without_captions_is_what_is_written(world: World, tmp_path: Path):
    """A forecast asks for no caption that has no vector."""
    listed = sorted((world.corpus / "videos").glob("*.mp4"))[:3]
    for path in listed:
        (tmp_path / "clips").mkdir(exist_ok=True)
        (tmp_path / "clips" / path.name).symlink_to(path)
    tools.pack_frames.main([str(tmp_path / "clips"), "--size", "64", "--out", str(tmp_path / "frames")])
    frames = FrameSet(tmp_path / "frames")
    vectors = stored(tmp_path / "vectors", drawn(frames, "frames"))
    config = LabelJobConfig(tiers=["features"], storage="float16", batch=2, precision="fp32")
    job = LabelJob(GivenVectors(VectorFiles(vectors), frames), frames, tmp_path / "labels", config)
    planned = forecast(job)
    dump(vectors, frames.path, tmp_path / "labels", "--dtype", "float16", "--batch", "2", "--tiers", "features")
    sizes = [len(data) for name, data in tree_bytes(tmp_path / "labels").items() if name != "manifest.json"]
    assert sum(sizes) == sum(planned.bytes.values()) and planned.captions == 0


def test_captions_of_a_text_file_get_theirs(tmp_path: Path):
    (tmp_path / "lines.txt").write_text("a dog\na cat\n")
    vectors = {f"sentence/{text}": np.eye(3, dtype=np.float32)[row] for row, text in enumerate(["a dog", "a cat"])}
    labels = dump(stored(tmp_path / "vectors", vectors), tmp_path / "lines.txt", tmp_path / "labels")
    assert StoredLabels(labels).tensor("00000", "sentence").tolist() == [[1, 0, 0], [0, 1, 0]]


def test_vectors_that_are_not_needed_are_counted(shards: FrameSet, tmp_path: Path, capsys: pytest.CaptureFixture):
    more = {"sentence/nobody says so": np.ones(3, np.float32), "vector/../../etc/passwd": np.ones(4, np.float32)}
    dump(stored(tmp_path / "vectors", drawn(shards, "vector") | more), shards.path, tmp_path / "labels")
    assert "vectors of 1 captions and 1 videos that are not in" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels", "vectors"]


def wrong(frames: FrameSet) -> dict[str, tuple[Vectors, str]]:
    """Vectors with one fault each, and the words of the refusal."""
    fields = ("vector", "frames", "timestamps")
    video, text = frames.videos[3], frames.videos[3].captions[0].text
    good = drawn(frames, *fields)

    def without(*names: str) -> Vectors:
        return {name: value for name, value in good.items() if name not in names}

    def changed(name: str, value: np.ndarray) -> Vectors:
        return good | {name: value}

    nan, zero = good[f"frames/{video.id}"].copy(), good[f"frames/{video.id}"].copy()
    nan[0, 1], zero[1] = np.nan, 0
    far = np.array(video.timestamps) + 0.5
    return {
        "caption": (without(f"sentence/{text}"), f"no sentence of 1 of .* captions of .*{text!r}"),
        "video": (without(f"vector/{video.id}"), f"no vector of 1 of .* videos of .*'{video.id}'; add"),
        "frames": (without(f"frames/{video.id}"), "no frames of 1 of"),
        "nan": (changed(f"frames/{video.id}", nan), f"frames of '{video.id}' is not finite"),
        "infinite": (changed(f"sentence/{text}", np.full(WIDTH, np.inf)), "is not finite"),
        "zero": (changed(f"frames/{video.id}", zero), "is zero"),
        "width": (changed(f"vector/{video.id}", np.ones(5)), f"has 5 dimensions, others have {WIDTH}"),
        "shape": (changed(f"vector/{video.id}", np.ones((2, WIDTH))), r"is \[2, 6\], expected \[dim\]"),
        "count": (changed(f"frames/{video.id}", np.ones((99, WIDTH))), "has 99 rows, but"),
        "times": (
            changed(f"timestamps/{video.id}", far),
            r"timestamps of .* begins \[.*, but the packed frames are at",
        ),
        "whole": (changed(f"vector/{video.id}", np.ones(WIDTH, np.int64)), "is torch.int64, expected real numbers"),
        "name": (changed("patches/3", np.ones(2)), "holds 'patches/3', expected sentence/..., vector/..."),
    }


@pytest.mark.parametrize(
    "fault",
    [*("caption", "video", "frames", "nan", "infinite", "zero", "width", "shape", "count", "times", "whole", "name")],
)
def test_vectors_that_do_not_fit_are_refused_before_anything_is_written(shards: FrameSet, tmp_path: Path, fault: str):
    vectors, words = wrong(shards)[fault]
    with pytest.raises(ArtefactError, match=words):
        dump(stored(tmp_path / "vectors", vectors), shards.path, tmp_path / "labels")
    assert not (tmp_path / "labels" / "00000.tar").exists()


def test_files_of_other_kinds_are_never_loaded(shards: FrameSet, tmp_path: Path):
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    folder = tmp_path / "vectors"
    folder.mkdir()
    for name in ("vectors.pt", "vectors.pkl", "vectors.npy"):
        (folder / name).write_bytes(pickle.dumps(Harm()))
    for name, words in (
        (None, r"holds vectors\.npy, vectors\.pkl, vectors\.pt, expected \*\.safetensors or \*\.parquet"),
        ("a.safetensors", "not safetensors"),
        ("b.parquet", "of one kind"),
    ):
        if name:
            (folder / name).write_bytes(pickle.dumps(Harm()))
        with pytest.raises(ArtefactError, match=words):
            dump(folder, shards.path, tmp_path / "labels")
    (folder / "a.safetensors").unlink()
    with pytest.raises(ArtefactError, match="not Parquet"):
        dump(folder, shards.path, tmp_path / "labels")
    assert not (tmp_path / "harm").exists()


def test_tables_that_are_damaged_are_refused(shards: FrameSet, tmp_path: Path):
    vectors = drawn(shards, "frames")
    for number, (columns, words) in enumerate(
        (
            ({"caption": ["a"], "sentence": [[1.0]]}, "has the columns caption, sentence, expected one of text and id"),
            ({"id": [3], "vector": [[1.0]]}, "expected one of text and id, of strings"),
            ({"id": [shards.videos[0].id], "frames": [[[1.0, 2.0], [3.0]]]}, "stands twice"),
            ({"id": ["other", None], "frames": [None, [[1.0]]]}, "holds 'frames/None', expected"),
        )
    ):
        folder = tables(tmp_path / str(number), vectors)
        parquet.write_table(pyarrow.table(columns), folder / "more.parquet")
        with pytest.raises(ArtefactError, match=words):
            dump(folder, shards.path, tmp_path / "labels")
    video, rows = shards.videos[0].id, vectors.pop(f"frames/{shards.videos[0].id}")
    for number, (ragged, words) in enumerate(
        (
            ([*rows[1:].tolist(), [1.0]], "its rows differ in length"),
            ([[None] * WIDTH, *rows[1:].tolist()], "is not finite"),
            ([None, *rows[1:].tolist()], "its rows differ in length"),
        )
    ):
        folder = tables(tmp_path / f"ragged{number}", vectors)
        parquet.write_table(pyarrow.table({"id": [video], "frames": [ragged]}), folder / "more.parquet")
        with pytest.raises(ArtefactError, match=words):
            dump(folder, shards.path, tmp_path / "labels")


def test_a_command_says_in_one_line_what_is_missing(shards: FrameSet, tmp_path: Path):
    for given, words in (
        ((shards.path,), "expected one of a teacher and --vectors"),
        (("--vectors", tmp_path / "none", shards.path), "no such folder; expected one with"),
    ):
        result = python("tools/dump_soft_labels.py", *given, "--out", tmp_path / "labels", check=False)
        assert result.returncode == 2 and result.stderr.count("error: ") == 1 and words in result.stderr
