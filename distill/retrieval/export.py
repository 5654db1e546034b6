"""Exports: a gallery's vectors, rerank tokens, ids and what is known of its videos, for engines that people run.

    lancedb   a database with the table `videos`
    qdrant    a collection `videos`, as qdrant-client keeps it in a folder
    parquet   videos.parquet
    faiss     index.faiss, an exact inner-product index whose numbers are the lines of videos.jsonl
    bigfile   BigFile, the format of TeachCLIP's tools: ids in id.txt, joined by one space; their vectors in
              feature.bin, float32, little-endian; and last shape.txt, "N D": how many vectors, of how many dimensions

`vector` is what the first stage searches by inner product with `Release.embed_text` of a query. The tokens of a model
that reranks follow as `token_<name>`, float16: a vector, or several per video without those of padding (multi-vectors).
Deleted videos are left out. Nothing stands under the name of the folder before all is written.
"""

import importlib.util
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from distill.errors import ArtefactError, ExpectedError
from distill.manifest import Manifest
from distill.publishing import publish, published_folder
from distill.retrieval import generation
from distill.retrieval.approximate import write_exact
from distill.retrieval.segment import Segment
from distill.retrieval.table import Table

TABLE = "videos"
TOGETHER = 1024  # rows handed over at once
NEEDS = {"lancedb": ("lancedb", "pyarrow"), "qdrant": ("qdrant_client",), "parquet": ("pyarrow",), "faiss": ("faiss",)}

FEATURES, IDS, SHAPE = "feature.bin", "id.txt", "shape.txt"
FLOAT = np.dtype("<f4")

About = dict[str, Any]  # of a row: id, source, file, duration, timestamps, weights, span
Vectors = dict[str, np.ndarray]  # of a row: `vector`, float32 [dim]; `token_<name>`, float16 [dim] or [any, dim]


def export(path: Path, engine: str, out: Path) -> tuple[int, int]:
    """Writes the gallery into the new folder `out`; returns the number of videos and of dimensions.

    Raises `ExpectedError` where the engine's library is not installed, `ArtefactError` where `out` holds something.
    """
    missing = [name for name in NEEDS.get(engine, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise ExpectedError(f"--to {engine}: needs {missing[0]}; pip install 'retrieval-distill[export]'")
    manifest = generation.read(path)
    if not manifest.counts["videos"]:
        raise ExpectedError(f"{path}: holds no videos to export")
    keeps = engine == "bigfile"  # a folder of the same content
    if not keeps and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArtefactError(f"{out}: holds something already; choose a new folder")
    with nullcontext(out) if keeps else published_folder(out) as part:
        EXPORTERS[engine](path, manifest, part)
    return manifest.counts["videos"], manifest.counts["dim"]


def rows(path: Path, manifest: Manifest) -> Iterator[list[tuple[About, Vectors]]]:
    """The videos of a gallery that are not deleted, in the order of their rows, some at a time."""
    table = Table(path, manifest)
    for (base, segment), (_, live) in zip(table.based(), table.live(), strict=True):
        for some in (live[start : start + TOGETHER] for start in range(0, len(live), TOGETHER)):
            vectors = zip(some.tolist(), table.sound_vectors(some + base), strict=True)
            if len(some):
                yield [
                    (_about(table, segment, row), {"vector": vector} | _tokens(segment, row)) for row, vector in vectors
                ]


def _about(table: Table, segment: Segment, row: int) -> About:
    about = segment.about[row]
    folder = table.folder(about)
    return {
        "id": about["id"],
        "source": about["source"],
        "file": None if folder is None else str(folder / about["source"]),
        "duration": about["duration"],
        "timestamps": about["timestamps"],
        "weights": segment.frame_weights[row, : len(about["timestamps"])].tolist(),
        "span": about.get("span"),
    }


def _tokens(segment: Segment, row: int) -> Vectors:
    """Vectors of a row by name. What stands for frames is cut to the real ones, and patches are put in one line."""
    if segment.tokens is None:
        return {}
    found = {name: value[row] for name, value in segment.tokens.items()}
    real = found.pop("real", None)
    if real is not None:
        by_frame = [n for n in ("frames", "contextual", "patches") if n in found]
        found |= {name: found[name][real] for name in by_frame}
    vectors = {name: value for name, value in found.items() if value.dtype == np.float16 and name != "reading"}
    flat = {name: v if v.ndim == 1 else v.reshape(-1, v.shape[-1]) for name, v in vectors.items()}
    return {f"token_{name}": value for name, value in flat.items()}


def _lancedb(path: Path, manifest: Manifest, out: Path) -> None:
    import lancedb

    schema, batches = _arrow(path, manifest)
    lancedb.connect(out).create_table(TABLE, batches, schema=schema)


def _parquet(path: Path, manifest: Manifest, out: Path) -> None:
    from pyarrow import parquet

    schema, batches = _arrow(path, manifest)
    with parquet.ParquetWriter(out / f"{TABLE}.parquet", schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _arrow(path: Path, manifest: Manifest) -> tuple[Any, Iterator[Any]]:
    """The schema of a table of all videos, and its record batches."""
    import pyarrow as pa

    fields = [
        *(pa.field(name, pa.string()) for name in ("id", "source", "file")),
        pa.field("duration", pa.float64()),
        *(pa.field(name, pa.list_(pa.float64())) for name in ("timestamps", "weights", "span")),
    ]
    for name, value in next(rows(path, manifest))[0][1].items():
        vector = pa.list_(pa.from_numpy_dtype(value.dtype), value.shape[-1])
        fields.append(pa.field(name, vector if value.ndim == 1 else pa.list_(vector)))
    schema = pa.schema(fields)

    def batches() -> Iterator[Any]:
        for some in rows(path, manifest):
            lines = [
                about | {name: value if value.ndim == 1 else list(value) for name, value in vectors.items()}
                for about, vectors in some
            ]
            yield pa.RecordBatch.from_pylist(lines, schema)

    return schema, batches()


def _qdrant(path: Path, manifest: Manifest, out: Path) -> None:
    from qdrant_client import QdrantClient, models

    several = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    config = {
        name: models.VectorParams(
            size=value.shape[-1],
            distance=models.Distance.DOT,
            datatype=models.Datatype.FLOAT16 if value.dtype == np.float16 else None,
            multivector_config=None if value.ndim == 1 else several,
        )
        for name, value in next(rows(path, manifest))[0][1].items()
    }
    client, numbers = QdrantClient(path=str(out)), itertools.count()
    client.create_collection(TABLE, vectors_config=config)
    for some in rows(path, manifest):
        named = [(about, {name: value.tolist() for name, value in vectors.items()}) for about, vectors in some]
        points = [models.PointStruct(id=next(numbers), vector=vectors, payload=about) for about, vectors in named]
        client.upsert(TABLE, points)
    client.close()


def _faiss(path: Path, manifest: Manifest, out: Path) -> None:
    vectors = (np.stack([vectors["vector"] for _, vectors in some]) for some in rows(path, manifest))
    write_exact(out / "index.faiss", vectors, manifest.counts["dim"])
    with (out / f"{TABLE}.jsonl").open("w", encoding="utf-8") as file:
        for some in rows(path, manifest):
            file.writelines(json.dumps(about, ensure_ascii=False) + "\n" for about, _ in some)


def _bigfile(path: Path, manifest: Manifest, out: Path) -> None:
    pairs = [(about["id"], vectors["vector"]) for some in rows(path, manifest) for about, vectors in some]
    ids, vectors = zip(*pairs, strict=True)
    write_bigfile(out, ids, np.stack(vectors))


def write_bigfile(folder: Path, ids: Sequence[str], vectors: Float32[np.ndarray, "row dim"]) -> None:
    """Writes a BigFile. The same content there again is kept; other content is refused."""
    assert len(ids) == len(vectors), "one id per vector"
    spaced = [name for name in ids if not name or name.split() != [name]]
    if spaced:
        raise ExpectedError(
            f"{folder}: id {spaced[0]!r} is empty or holds white space, which separates ids in {IDS}; rename the video"
        )
    if (folder / SHAPE).exists():
        found_ids, found = read_bigfile(folder)
        if found_ids != list(ids) or found.tobytes() != vectors.astype(FLOAT).tobytes():
            raise ArtefactError(f"{folder}: already holds another BigFile; choose another folder")
        return
    contents = {
        FEATURES: vectors.astype(FLOAT).tobytes(),
        IDS: " ".join(ids).encode(),
        SHAPE: f"{vectors.shape[0]} {vectors.shape[1]}".encode(),
    }
    for name, content in contents.items():
        publish(folder / name, content)


def read_bigfile(folder: Path) -> tuple[list[str], Float32[np.ndarray, "row dim"]]:
    """Ids and vectors of a BigFile, whoever wrote it."""
    shape = _read(folder / SHAPE).split()
    if len(shape) != 2 or not all(number.isdigit() for number in shape):
        raise ArtefactError(f'{folder / SHAPE}: {b" ".join(shape)[:40]!r}, expected "N D"; write the folder again')
    rows, dim = int(shape[0]), int(shape[1])
    ids, content = _read(folder / IDS).decode(errors="replace").split(), _read(folder / FEATURES)
    if len(ids) != rows:
        raise ArtefactError(f"{folder / IDS}: {len(ids)} ids, expected {rows} as in {SHAPE}; write the folder again")
    if len(content) != rows * dim * FLOAT.itemsize:
        raise ArtefactError(
            f"{folder / FEATURES}: {len(content)} bytes, expected {rows * dim * FLOAT.itemsize} for {rows} x {dim} "
            f"float32 as in {SHAPE}; write the folder again"
        )
    return ids, np.frombuffer(content, FLOAT).reshape(rows, dim)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtefactError(
            f"{path}: cannot be read: {error.strerror}; expected a BigFile ({FEATURES}, {IDS}, {SHAPE})"
        ) from None


EXPORTERS: dict[str, Callable[[Path, Manifest, Path], None]] = {
    "bigfile": _bigfile,
    "faiss": _faiss,
    "lancedb": _lancedb,
    "parquet": _parquet,
    "qdrant": _qdrant,
}
