"""Exports and the approximate index: other engines give the same answers, and what is approximate says how much."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from test_gallery import corpus, two_stage_release  # noqa: F401 a fixture
from test_release import make, release

from distill.data.video import write_video
from distill.errors import ArtefactError, ExpectedError
from distill.manifest import Manifest, seal
from distill.ranking.topk import top_k
from distill.release.release import load
from distill.retrieval import Gallery, approximate, upkeep
from distill.retrieval.approximate import Approximate, build
from distill.retrieval.export import export, read_bigfile
from distill.retrieval.indexing import build_gallery
from distill.retrieval.segment import id_hash, sealed_segment
from distill.retrieval.sources import Cut
from distill.retrieval.table_features import TableTokens
from students.eercf import OF_BEST
from tools import export as command
from tools import gallery as gallery_tool

K = 10


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A gallery of spans and whole files in two segments, one video deleted, and the release that made it."""
    folder, rng = tmp_path_factory.mktemp("small"), np.random.default_rng(0)
    for number in range(12):
        clip = rng.integers(0, 256, (12, 4, 4, 3), np.uint8).repeat(12, 1).repeat(12, 2)
        write_video(folder / "videos" / f"{number // 6}" / f"{number}.mp4", clip, fps=4)
    loaded = two_stage_release(folder / "release", kind="eercf", frames=4)
    build_gallery(loaded, folder / "videos" / "0", folder / "gallery", cut=Cut(1.0), videos=folder / "videos")
    build_gallery(loaded, folder / "videos", folder / "gallery", append=True)
    upkeep.delete(folder / "gallery", ["1/7"])
    return Gallery.open(folder / "gallery", loaded)


def first_stage(gallery, query):
    """The ids of the best ten, as the first stage ranks them, and the vector that asks."""
    vector = gallery.release.embed_text([query])
    rows = gallery.table.nearest(vector.numpy(), K)[1][0].tolist()
    return [gallery.about(row)["id"] for row in rows], vector[0].numpy()


QUERIES = ["a red square moves", "something green", "blue"]


def test_lancedb_answers_alike(small, tmp_path):
    lancedb = pytest.importorskip("lancedb", reason="the extra [export] is not installed")
    export(small.path, "lancedb", tmp_path / "out")
    table = lancedb.connect(tmp_path / "out").open_table("videos")
    assert table.count_rows() == len(small)
    for query in QUERIES:
        expected, vector = first_stage(small, query)
        found = table.search(vector, vector_column_name="vector").distance_type("dot").limit(K).to_list()
        assert [row["id"] for row in found] == expected
    row = small.row(expected[0])
    tokens = TableTokens(small.table, small.release.model.rerank_fields)[torch.tensor([row])]
    assert found[0]["source"] == small.about(row)["source"] and found[0]["file"] == str(small.file(expected[0]))
    real = tokens.real[0]
    for name in ("frames", "patches"):
        stored = np.array(found[0][f"token_{name}"], np.float32)
        assert np.array_equal(stored, getattr(tokens, name)[0][real].reshape(-1, 64).numpy())


def test_qdrant_answers_alike(small, tmp_path):
    qdrant = pytest.importorskip("qdrant_client", reason="the extra [export] is not installed")
    export(small.path, "qdrant", tmp_path / "out")
    client = qdrant.QdrantClient(path=str(tmp_path / "out"))
    for query in QUERIES:
        expected, vector = first_stage(small, query)
        found = client.query_points("videos", query=vector.tolist(), using="vector", limit=K, with_vectors=True).points
        assert [point.payload["id"] for point in found] == expected
    tokens = TableTokens(small.table, small.release.model.rerank_fields)[torch.tensor([small.row(expected[0])])]
    frames = tokens.frames[0][tokens.real[0]].numpy()
    assert np.allclose(np.array(found[0].vector["token_frames"]), frames, rtol=1e-3)
    query = frames[:1].tolist()
    best = client.query_points("videos", query=query, using="token_frames", limit=1).points[0]
    assert best.score >= float((frames[:1] @ frames.T).max()) * 0.999, "the engine scores them as a multi-vector"
    client.close()


def test_parquet_and_faiss_hold_the_same_rows(small, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra [export] is not installed")
    faiss = pytest.importorskip("faiss", reason="the extra [export] is not installed")
    export(small.path, "parquet", tmp_path / "parquet")
    export(small.path, "faiss", tmp_path / "faiss")
    rows = parquet.read_table(tmp_path / "parquet" / "videos.parquet").to_pylist()
    vectors = small.table.vectors(small.table.rows())
    assert np.array_equal(np.array([row["vector"] for row in rows], np.float32), vectors)
    lines = [json.loads(line) for line in (tmp_path / "faiss" / "videos.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [line["id"] for line in lines]
    assert {tuple(line["span"]) if line["span"] else None for line in lines} >= {None, (0.0, 1.0)}
    assert all(len(line["weights"]) == len(line["timestamps"]) for line in lines)
    index = faiss.read_index(str(tmp_path / "faiss" / "index.faiss"))
    for query in QUERIES:
        expected, vector = first_stage(small, query)
        found = index.search(vector[None], K)[1][0]
        assert [lines[number]["id"] for number in found] == expected


def test_the_door_writes_a_bigfile_and_leaves_other_folders_alone(small, corpus, tmp_path, capsys):  # noqa: F811
    command.main([str(small.path), "--to", "bigfile", str(tmp_path / "out")])
    said = f"{tmp_path / 'out'}: {len(small)} vectors of 64 floats, unit length, for bigfile\n"
    assert capsys.readouterr().out == said
    ids, vectors = read_bigfile(tmp_path / "out")
    assert ids == [small.about(row)["id"] for row in small.table.rows().tolist()] and "1/7" not in ids
    assert np.array_equal(vectors, small.table.vectors(small.table.rows()))
    with pytest.raises(ArtefactError, match="expected a gallery"):
        command.main([str(corpus / "frames4"), str(tmp_path / "other"), "--to", "bigfile"])
    with pytest.raises(ArtefactError, match="holds something already"):
        export(small.path, "parquet", tmp_path / "out")


def grown(gallery, path, rows, dim):
    """Makes a small gallery one of `rows` clustered random vectors, in the format's own files."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(50, dim, generator=generator)
    vectors = centres[torch.randint(50, (rows,), generator=generator)] + torch.randn(rows, dim, generator=generator)
    folder = gallery.path / "segments" / "00001"
    line = (folder / "videos.jsonl").read_bytes().splitlines()[0]
    ids = [f"v{number}" for number in range(rows)]
    lines = [json.dumps(json.loads(line) | {"id": name}).encode() + b"\n" for name in ids]
    starts = torch.tensor([0, *map(len, lines)]).cumsum(0)
    hashes = torch.tensor([id_hash(name) for name in ids]).sort()
    out = path / "segments" / "00001"
    out.mkdir(parents=True)
    frames = load_file(folder / "vectors.safetensors")["frame_weights"][:1]
    unit = torch.nn.functional.normalize(vectors, dim=1)
    save_file({"vectors": unit, "frame_weights": frames.expand(rows, -1).contiguous()}, out / "vectors.safetensors")
    save_file({"lines": starts, "hashes": hashes.values, "rows": hashes.indices}, out / "rows.safetensors")
    (out / "videos.jsonl").write_bytes(b"".join(lines))
    manifest: Manifest = gallery.manifest
    files = {f"segments/00001/{name}": file for name, file in sealed_segment(out).items()}
    counts = {"videos": rows, "rows": rows, "generation": 1, "dim": dim, "vector_bytes": 4 * dim}
    config = manifest.config | {"stored_frames": "none"}
    seal(path, manifest.model_copy(update={"config": config, "files": files, "counts": counts}))


def test_a_search_looks_at_patches_of_the_best_alone_unless_it_is_exact(small):
    model, rows = small.release.model, small.table.rows()
    text = small.release.encode_text(QUERIES)
    whole = TableTokens(small.table, model.rerank_fields)[torch.from_numpy(rows)]
    assert len(rows) > OF_BEST * 10
    with torch.inference_mode():
        first, second = (part.score(text, whole) for part in model.score_parts())
    for number, query in enumerate(QUERIES):
        names = [small.about(row)["id"] for row in rows.tolist()]
        best = first[number].topk(OF_BEST * 10).indices
        expected = best[(first + second)[number, best].argmax()]
        (hit,) = small.search([query], 1, len(rows))[0]
        assert hit.video == names[expected]
        assert hit.score == pytest.approx(float((first + second)[number, expected]), abs=1e-5)
        hits = small.search([query], len(rows), len(rows), exact=True)[0]
        assert [hit.video for hit in hits] == [names[i] for i in (first + second)[number].argsort(descending=True)]


def test_an_approximate_index_finds_what_it_says(corpus, tmp_path, capsys):  # noqa: F811
    pytest.importorskip("faiss", reason="the extra [index] is not installed")
    release(tmp_path / "release", *make())
    loaded = load(tmp_path / "release")
    build_gallery(loaded, corpus / "videos", tmp_path / "three")
    with pytest.raises(ExpectedError, match="expected at least 400; search so few"):
        upkeep.approximate(tmp_path / "three")
    path = tmp_path / "gallery"
    grown(Gallery.open(tmp_path / "three", loaded), path, 20000, 64)
    exact = Gallery.open(path, loaded)
    gallery_tool.main([str(path), "approximate"])
    assert re.search(r"approximate index with recall@10 (0\.99\d|1\.000)", capsys.readouterr().out)
    found = exact.refreshed()
    facts = found.manifest.config["approximate"]
    assert facts["covers"] == 20000 and 0.99 <= facts["recall@10"] <= 1 and facts["depth"] < 16
    stored = torch.from_numpy(found.table.vectors(np.arange(1000, 1100)))
    asked = torch.nn.functional.normalize(stored + torch.randn(stored.shape) / 8, dim=1).numpy()
    scores, rows = found.table.nearest(asked, K)
    _, true_rows = found.table.nearest(asked, K, exact=True)
    recall = sum(len({*a} & {*b}) for a, b in zip(rows.tolist(), true_rows.tolist(), strict=True)) / (100 * K)
    assert abs(recall - facts["recall@10"]) < 0.05, "as measured when it was built"
    assert np.allclose(
        scores, np.einsum("qd,qkd->qk", asked, found.table.vectors(rows.flatten()).reshape(100, K, -1)), atol=1e-6
    )

    best = found.about(int(true_rows[0, 0]))["id"]
    upkeep.delete(path, [best])
    build_gallery(loaded, corpus / "videos", path, append=True)
    less = found.refreshed()
    assert best not in less and int(true_rows[0, 0]) not in less.table.nearest(asked[:1], K)[1][0].tolist()
    red = less.table.vectors(np.array([less.row("red")]))
    assert less.about(int(less.table.nearest(red, 1)[1][0, 0]))["id"] == "red", "what came later is found too"
    few = Gallery.open(path, loaded).table.nearest(asked[:1], 19000)
    assert few[1].shape == (1, 19000) and len(set(few[1][0].tolist())) == 19000, "too many asked: searched exactly"
    upkeep.compact(path)
    assert "approximate" not in less.refreshed().manifest.config and not list((path / "approximate").iterdir())


NONE = np.empty(0, np.int64)


def drawn(rows, dim, seed):
    """Random unit vectors."""
    found = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(found, dim=1).numpy()


def build_index(path, vectors):
    """An approximate index of the rows with even numbers."""
    rows = np.arange(0, len(vectors), 2)

    def exact(queries, k):
        scores, found = top_k(torch.from_numpy(queries), torch.from_numpy(vectors[rows]), k)
        return scores.numpy(), rows[found.numpy()]

    facts = build(path, vectors.__getitem__, exact, rows)
    return Approximate(path, facts | {"covers": len(vectors) - 1}, vectors.shape[1])


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """Random vectors, an approximate index of some, and its facts."""
    pytest.importorskip("faiss", reason="the extra [index] is not installed")
    vectors = drawn(3000, 1536, 0)
    index = build_index(tmp_path_factory.mktemp("indexed") / "index.safetensors", vectors)
    return vectors, index.path, {"covers": 2999, "depth": index.depth}


@pytest.mark.parametrize(("dim", "parts"), [(64, 64), (512, 512), (768, 768), (1024, 1024), (1536, 768)])
def test_estimates_are_those_of_the_stored_codes(dim, parts, tmp_path):
    pytest.importorskip("faiss", reason="the extra [index] is not installed")
    vectors, asked = drawn(2000, dim, 0), drawn(20, dim, 1)
    index = build_index(tmp_path / "index.safetensors", vectors)
    stored = load_file(index.path)
    assert stored["centres"].shape == (parts, 16, dim // parts) and stored["codes"].shape == (1000, parts // 2)
    assert stored["rows"].tolist() == list(range(0, 2000, 2))
    halves = torch.stack([stored["codes"] & 15, stored["codes"] >> 4], 2).flatten(1)  # the first part in the low bits
    kept = stored["centres"][torch.arange(parts), halves.long()].flatten(1)
    assert (kept.numpy() * vectors[::2]).sum(1).mean() > 0.6, "what is kept is like what was stored"
    expected = asked @ kept.numpy().T
    scores, rows = index.estimated(asked, 1000, NONE)
    assert all(sorted(row) == list(range(0, 2000, 2)) for row in rows.tolist())
    assert (np.diff(scores) <= 0).all()
    off = np.abs(scores - np.take_along_axis(expected, rows // 2, 1))
    assert off.max() < 0.15 * expected.std(), "but for tables of 8 bits"
    found = index.candidates(asked, 20, vectors.__getitem__, NONE)
    same = index.estimated(asked, 20, NONE) if dim == parts else index.top(asked, 20, vectors.__getitem__, NONE)
    assert np.array_equal(found[0], same[0]) and np.array_equal(found[1], same[1])


def test_an_approximate_index_looks_further_where_much_is_deleted(indexed):
    vectors, path, facts = indexed
    index = Approximate(path, facts | {"covers": 2999}, 1536)
    live = np.array([2, 1000, 1002, 2998])
    deleted = np.array([row for row in range(3000) if row not in live])
    queries = vectors[:7]
    expected = torch.from_numpy(queries @ vectors[live].T).sort(dim=1, descending=True)
    scores, rows = index.top(queries, 4, vectors.__getitem__, deleted)
    assert np.array_equal(rows, live[expected.indices]) and np.allclose(scores, expected.values, atol=1e-6)
    assert (np.sort(index.estimated(queries, 4, deleted)[1], axis=1) == live).all()
    scores, rows = index.top(queries, 6, vectors.__getitem__, deleted)
    assert np.isneginf(scores[:, 4:]).all() and np.array_equal(rows[:, :4], live[expected.indices])


THREADS = """
import sys
from pathlib import Path

import faiss  # first: it does not follow a PyTorch that comes later by itself
import numpy as np
import torch

from distill.retrieval.approximate import Approximate

for threads in (1, 2):
    torch.set_num_threads(threads)
    index = Approximate(Path(sys.argv[1]), {"covers": 2999, "depth": 2}, 1536)
    index.estimated(np.ones((1, 1536), np.float32), 1, np.empty(0, np.int64))
    print(faiss.omp_get_max_threads())
"""


def test_an_approximate_search_takes_as_many_threads_as_pytorch(indexed, tmp_path):
    script = tmp_path / "threads.py"
    script.write_text(THREADS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # a new interpreter: the tests' own have PyTorch already
    run = subprocess.run(
        [sys.executable, script, indexed[1]], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["1", "2"]


def test_however_many_ask_no_more_than_some_stored_vectors_are_held(indexed, monkeypatch):
    vectors, path, facts = indexed
    index = Approximate(path, facts, 1536)
    expected = index.top(vectors[:9], 5, vectors.__getitem__, NONE)
    held = []

    def read(rows):
        held.append(len(rows))
        return vectors[rows]

    looked_at = 5 * facts["depth"]
    monkeypatch.setattr(approximate, "READ", 2 * looked_at * 1536)
    found = index.top(vectors[:9], 5, read, NONE)
    assert held == [2 * looked_at] * 4 + [looked_at]
    assert np.array_equal(found[1], expected[1]) and np.allclose(found[0], expected[0], atol=1e-6)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda stored: {"codes": stored["codes"][:, 1:].contiguous()}, "383.* expected 1536 numbers"),
        (lambda stored: {"centres": stored["centres"][:, :, 1:].contiguous()}, "parts of 1, expected 1536 numbers"),
        (lambda stored: {"rows": stored["rows"].float()}, "holds .*rows"),
        (lambda stored: {"rows": stored["rows"].flip(0)}, "rows do not ascend"),
        (lambda stored: {"rows": stored["rows"] + 1}, "rows do not ascend"),
        (lambda stored: {"centres": stored["centres"] / 0}, "centres are not finite"),
    ],
)
def test_a_damaged_index_says_how_to_mend_it(damage, words, indexed, tmp_path):
    _, path, facts = indexed
    stored = load_file(path)
    save_file(stored | damage(stored), tmp_path / "index.safetensors")
    with pytest.raises(ArtefactError, match=f"{words}.*build it again with tools/gallery.py approximate"):
        Approximate(tmp_path / "index.safetensors", facts | {"covers": 2999}, 1536).estimated(
            np.ones((1, 1536), np.float32), 3, NONE
        )
    (tmp_path / "index.safetensors").write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtefactError, match=r"not whole.*build it again"):
        Approximate(tmp_path / "index.safetensors", facts | {"covers": 2999}, 1536)
