"""Releases as ONNX graphs: any batch size, the scores of the weights, a gate that holds, and queries without torch."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import ROOT, quick
from exports import compare, trained
from onnx import TensorProto, helper, numpy_helper

from distill.bench.drawn import draw_frames
from distill.data.datasets import VideoDataset
from distill.data.frames import FrameSet
from distill.errors import ArtefactError, ExpectedError
from distill.evaluation.evaluate import texts_of
from distill.exporting.graphs import sides, write_graph
from distill.exporting.onnx import export_onnx
from distill.exporting.parity import CLOSE
from distill.manifest import NAME, Manifest, seal, sealed_file
from distill.onnx.exported import FOLDER, Export, Measured
from distill.onnx.session import BATCH, RELEASES, TextSession, open_graph
from distill.onnx.session import CONFIG as RELEASE_CONFIG
from distill.release.release import CONFIG, READ, load
from distill.retrieval import Gallery
from distill.retrieval.indexing import build_gallery


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> FrameSet:
    """Twenty-four drawn videos of two frames, with a caption each."""
    return draw_frames(tmp_path_factory.mktemp("onnx") / "frames", videos=24, captions=1, num_frames=2, size=32)


class Exports(dict[str, tuple[Path, Measured]]):
    """Exported students by kind, made when they are first asked for, and what was measured."""

    def __init__(self, folder: Path, frames: FrameSet):
        super().__init__()
        self.folder, self.frames = folder, frames

    def __missing__(self, kind: str) -> tuple[Path, Measured]:
        path = trained(kind, self.frames, self.folder / kind)
        self[kind] = path, export_onnx(path, self.frames.path, int8=False)
        return self[kind]


@pytest.fixture(scope="module")
def exported(frames: FrameSet, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """The students of this file's tests."""
    return Exports(tmp_path_factory.mktemp("exported"), frames)


@pytest.fixture
def student(exported: Exports, tmp_path: Path) -> Path:
    """A copy of the exported TeachCLIP."""
    return Path(shutil.copytree(exported["teachclip"][0], tmp_path / "student"))


@pytest.mark.parametrize("kind", quick(["teachclip", "prompt_switch"], ["teachclip"]))
@pytest.mark.parametrize("side", ["text", "video"])
def test_a_graph_takes_any_number_of_rows(kind, side, exported, frames):
    path, _ = exported[kind]
    compare(load(path), side, path / FOLDER / f"{side}.onnx", frames)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["eercf", "glscl"])
def test_the_text_side_of_a_model_of_two_stages_gives_what_both_stages_ask_with(kind, frames, tmp_path):
    release = load(trained(kind, frames, tmp_path))
    side, examples = sides(release)["text"]
    assert side.outputs == ("vector", "sentence", *(["concepts"] if kind == "glscl" else []))
    write_graph(side, examples, tmp_path / "text.onnx")
    compare(release, "text", tmp_path / "text.onnx", frames)
    ids = release.tokenizer(texts_of(frames))
    found = torch.from_numpy(open_graph(tmp_path / "text.onnx").run(["vector"], {"ids": ids})[0])
    videos = release.model.index_vectors(release.encode_frames(*VideoDataset(frames).__getitems__([*range(24)])))
    assert (found @ videos.T - release.embed_text(texts_of(frames)) @ videos.T).abs().max() < CLOSE


@pytest.mark.parametrize("kind", quick(["teachclip", "prompt_switch"], ["teachclip"]))
def test_the_seal_says_how_far_graphs_agree_with_their_weights(kind, exported, frames):
    path, measured = exported[kind]
    manifest = Manifest.model_validate_json((path / FOLDER / NAME).read_bytes())
    release = load(path)
    assert manifest.parents == {"release": release.manifest.id, "frames": frames.manifest.id}
    assert Export.model_validate(manifest.config).measured == measured
    print(f"{kind}: {measured}")
    assert measured.float32.score <= CLOSE and measured.float32.top10 == 100 and measured.int8 is None
    # Once more without the code that measured: ranks of the captions by the graph's own vectors.
    with torch.inference_mode():
        video = release.encode_frames(*VideoDataset(frames).__getitems__([*range(24)]))
        scores = release.embed_text(texts_of(frames)) @ release.model.index_vectors(video).T
    assert measured.torch.r1 == pytest.approx(100 * float((scores.argmax(1) == torch.arange(24)).float().mean()))
    assert measured.float32.r1 == measured.torch.r1
    assert measured.float32.bytes == sum(graph.stat().st_size for graph in (path / FOLDER).glob("*.onnx"))
    assert all(str(ROOT).encode() not in graph.read_bytes() for graph in (path / FOLDER).glob("*.onnx"))


def change_one_weight(graph: Path) -> None:
    """Negate the largest number of the largest weight."""
    model = onnx.load(graph)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    numbers = numpy_helper.to_array(weight).copy()
    numbers.flat[np.abs(numbers).argmax()] *= -1
    weight.CopyFrom(numpy_helper.from_array(numbers, weight.name))
    onnx.save(model, graph)


@pytest.mark.parametrize("side", ["text", "video"])
def test_a_graph_with_one_changed_weight_is_refused_and_nothing_is_left(side, student, frames, monkeypatch):
    written = shutil.move(student / FOLDER, student.parent / "written")
    change_one_weight(written / f"{side}.onnx")
    monkeypatch.setattr(
        "distill.exporting.onnx.write_graph", lambda _, __, path: shutil.copy(written / path.name, path)
    )
    before = sorted(student.iterdir())
    with pytest.raises(ExpectedError, match=r"a score differs from torch's by .*nothing was exported"):
        export_onnx(student, frames.path, int8=False)
    assert sorted(student.iterdir()) == before


def test_queries_are_answered_without_torch(student, frames):
    (student / "model.safetensors").rename(student.parent / "kept")  # a copy for a server needs no weights
    script = (
        "import json, sys; from pathlib import Path; from distill.onnx.session import TextSession\n"
        "session = TextSession.open(Path(sys.argv[1])); found = session.vectors(json.loads(sys.argv[2]))\n"
        "heavy = {'torch', 'open_clip', 'transformers', 'timm', 'av'} & sys.modules.keys()\n"
        "print(json.dumps([sorted(heavy), session.id, session.dim, found.tolist()]))"
    )
    queries = [*texts_of(frames), "A DOG &amp; a cat, then a café\u0345!", ""]
    out = subprocess.run(
        [sys.executable, "-c", script, student, json.dumps(queries)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    heavy, id, dim, found = json.loads(out.stdout)
    (student.parent / "kept").rename(student / "model.safetensors")
    release = load(student)
    assert (heavy, id, dim) == ([], release.manifest.id, release.dim)
    np.testing.assert_allclose(np.array(found), release.embed_text(queries).numpy(), atol=1e-5)


def test_many_queries_are_encoded_in_batches(student, frames):
    session, queries = TextSession.open(student), texts_of(frames) * 6
    assert len(queries) > 2 * BATCH
    found = session.vectors(queries)
    assert found.shape == (len(queries), session.dim) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found[100], session.vectors(queries[100:101])[0], atol=1e-6)
    with pytest.raises(ExpectedError, match="no texts to encode"):
        session.vectors([])


def reseal(folder: Path, **changes) -> None:
    """Make a manifest agree with changed files, as someone who edits them would."""
    manifest = Manifest.model_validate_json((folder / NAME).read_bytes())
    files = {name: sealed_file(folder / name) for name in manifest.files}
    seal(folder, manifest.model_copy(update={"files": files, **changes}))


def test_a_changed_byte_of_a_graph_is_found(student):
    graph = student / FOLDER / "text.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    for opened in (load, TextSession.open):
        with pytest.raises(ArtefactError, match=r"text\.onnx: sha256 .* changed after sealing"):
            opened(student)


def test_what_is_no_export_of_the_release_is_refused_in_one_line(student, exported):
    other = exported["prompt_switch"][0]
    with pytest.raises(ArtefactError, match=r"was exported without text_int8\.onnx"):
        TextSession.open(student, int8=True)
    (student / FOLDER / "text.onnx").write_bytes(b"no graph")
    reseal(student / FOLDER)
    with pytest.raises(ArtefactError, match=r"text\.onnx: not a graph that can be run"):
        TextSession.open(student)
    shutil.copy(other / FOLDER / "video.onnx", student / FOLDER / "text.onnx")
    reseal(student / FOLDER)
    with pytest.raises(ArtefactError, match=r"text\.onnx: not the text side of this release"):
        TextSession.open(student)
    shutil.rmtree(student / FOLDER)
    shutil.copytree(other / FOLDER, student / FOLDER)
    for opened in (load, TextSession.open):
        with pytest.raises(ArtefactError, match=r"onnx: made of release .*, but .*student is "):
            opened(student)
    shutil.rmtree(student / FOLDER)
    with pytest.raises(ArtefactError, match="holds no folder onnx; run `distill export"):
        TextSession.open(student)


def test_a_graph_that_asks_for_any_memory_gets_no_more_than_its_bound(student):
    graph = student / FOLDER / "text.onnx"
    session = TextSession.open(student)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 16])
    vector = helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", session.dim])
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [2**31, session.dim])  # a quarter of a terabyte
    node = helper.make_node("ConstantOfShape", ["shape"], ["vector"])
    made = helper.make_graph([node], "bomb", [ids], [vector], [shape])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), graph)
    reseal(student / FOLDER)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArtefactError, match="the graph does not run"):
        TextSession.open(student).vectors(["a dog"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


def test_a_second_export_is_refused_before_any_work(student, frames):
    with pytest.raises(ExpectedError, match=r"onnx: is there already; delete it"):
        export_onnx(student, frames.path, int8=False)


def test_formats_of_releases_are_those_that_are_loaded():
    assert RELEASES == READ and RELEASE_CONFIG == CONFIG


@pytest.mark.parametrize("kind", quick(["teachclip", "prompt_switch"], ["teachclip"]))
def test_a_gallery_answers_without_torch_as_with_it(kind: str, exported: Exports, frames: FrameSet, tmp_path: Path):
    path, queries, gallery = exported[kind][0], texts_of(frames)[:6], tmp_path / "gallery"
    build_gallery(load(path), frames.path, gallery)
    by_weights, by_graph = (Gallery.open(gallery, one) for one in (load(path), TextSession.open(path)))
    for found, expected in zip(by_graph.search(queries, 8), by_weights.search(queries, 8), strict=True):
        assert [(hit.video, hit.seconds) for hit in found] == [(hit.video, hit.seconds) for hit in expected]
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-4)
        assert {hit.weighed_by for hit in found} == {"query"}
    packages = "torch,open_clip,timm,torchvision,transformers"
    line = [ROOT / "tools/search.py", gallery, queries[0], "--backend", "onnx", "--json"]
    result = subprocess.run(
        [sys.executable, ROOT / "tests/without.py", packages, *line], capture_output=True, text=True, check=True
    )
    expected = by_graph.search(queries[:1], 5)
    assert [hit["video"] for hit in json.loads(result.stdout)] == [hit.video for hit in expected[0]]
