"""Exports: a gallery's vectors, rerank tokens, ids and what is known of its videos, for engines that people run.

    lancedb   a database with the table `videos`
    qdrant    a collection `videos`, as qdrant-client keeps it in a folder
    parquet   videos.parquet
    faiss     index.faiss, an exact inner-product index whose numbers are the lines of videos.jsonl
    bigfile   TeachCLIP's BigFile: ids and vectors alone (distill/retrieval/bigfile.py)

`vector` is what the first stage searches by inner product with `Release.embed_text` of a query. The tokens of a model
that reranks follow as `token_<name>`, float16: a vector, or several per video without those of padding (multi-vectors).
Deleted videos are left out. Nothing stands under the name of the folder before all is written.
"""

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from distill.errors import ArtefactError, ExpectedError
from distill.manifest import Manifest
from distill.publishing import published_folder
from distill.retrieval import generation
from distill.retrieval.approximate import write_exact
from distill.retrieval.bigfile import write_bigfile
from distill.retrieval.segment import Segment
from distill.retrieval.table import Table

TABLE = "videos"
TOGETHER = 1024  # rows handed over at once
NEEDS = {"lancedb": ("lancedb", "pyarrow"), "qdrant": ("qdrant_client",), "parquet": ("pyarrow",), "faiss": ("faiss",)}


@dataclass(frozen=True)
class Rows:
    """Some rows of a gallery."""

    about: list[dict[str, Any]]  # id, source, file, duration, timestamps, weights, span
    vectors: Float32[np.ndarray, "row dim"]
    tokens: list[dict[str, np.ndarray]]  # of each row: float16 [dim] or [any, dim]


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
    if engine == "bigfile":  # keeps a folder of the same content
        EXPORTERS[engine](path, manifest, out)
        return manifest.counts["videos"], manifest.counts["dim"]
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArtefactError(f"{out}: holds something already; choose a new folder")
    with published_folder(out) as part:
        EXPORTERS[engine](path, manifest, part)
    return manifest.counts["videos"], manifest.counts["dim"]


def rows(path: Path, manifest: Manifest) -> Iterator[Rows]:
    """The videos of a gallery that are not deleted, in the order of their rows."""
    for segment, live in Table(path, manifest).live():
        for some in live.split(TOGETHER):
            if len(some):
                yield Rows(
                    about=[_about(segment, row, manifest.config["folders"]) for row in some.tolist()],
                    vectors=segment.vectors[some].numpy(),
                    tokens=[_tokens(segment, row) for row in some.tolist()],
                )


def _about(segment: Segment, row: int, folders: list[str]) -> dict[str, Any]:
    about = segment.about[row]
    count = len(about["timestamps"])
    return {
        "id": about["id"],
        "source": about["source"],
        "file": str(Path(folders[about["folder"]]) / about["source"]) if "folder" in about else None,
        "duration": about["duration"],
        "timestamps": about["timestamps"],
        "weights": segment.frame_weights[row, :count].tolist(),
        "span": about.get("span"),
    }


def _tokens(segment: Segment, row: int) -> dict[str, np.ndarray]:
    """Vectors of a row by name. What stands for frames is cut to the real ones, and patches are put in one line."""
    if segment.tokens is None:
        return {}
    found = {name: value[row] for name, value in segment.tokens.tensors().items()}
    real = found.pop("real", None)
    if real is not None:
        by_frame = [n for n in ("frames", "contextual", "patches") if n in found]
        found |= {name: found[name][real] for name in by_frame}
    vectors = {name: value for name, value in found.items() if value.dtype == torch.float16 and name != "reading"}
    return {name: (v if v.ndim == 1 else v.reshape(-1, v.shape[-1])).numpy() for name, v in vectors.items()}


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

    first = next(rows(path, manifest))
    fields = [
        *(pa.field(name, pa.string()) for name in ("id", "source", "file")),
        pa.field("duration", pa.float64()),
        *(pa.field(name, pa.list_(pa.float64())) for name in ("timestamps", "weights", "span")),
        pa.field("vector", pa.list_(pa.float32(), first.vectors.shape[1])),
    ]
    for name, value in first.tokens[0].items():
        vector = pa.list_(pa.float16(), value.shape[-1])
        fields.append(pa.field(f"token_{name}", vector if value.ndim == 1 else pa.list_(vector)))
    schema = pa.schema(fields)

    def batches() -> Iterator[Any]:
        for some in rows(path, manifest):
            columns = {name: [about[name] for about in some.about] for name in some.about[0]}
            columns["vector"] = list(some.vectors)
            for name in some.tokens[0]:
                columns[f"token_{name}"] = [_nested(tokens[name]) for tokens in some.tokens]
            yield pa.RecordBatch.from_pydict(columns, schema)

    return schema, batches()


def _nested(value: np.ndarray) -> Any:
    return value if value.ndim == 1 else list(value)


def _qdrant(path: Path, manifest: Manifest, out: Path) -> None:
    from qdrant_client import QdrantClient, models

    first = next(rows(path, manifest))
    config = {"vector": models.VectorParams(size=first.vectors.shape[1], distance=models.Distance.DOT)}
    for name, value in first.tokens[0].items():
        several = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
        config[f"token_{name}"] = models.VectorParams(
            size=value.shape[-1],
            distance=models.Distance.DOT,
            datatype=models.Datatype.FLOAT16,
            multivector_config=None if value.ndim == 1 else several,
        )
    client, number = QdrantClient(path=str(out)), 0
    client.create_collection(TABLE, vectors_config=config)
    for some in rows(path, manifest):
        points = []
        for about, vector, tokens in zip(some.about, some.vectors, some.tokens, strict=True):
            named = {"vector": vector.tolist()} | {f"token_{name}": value.tolist() for name, value in tokens.items()}
            points.append(models.PointStruct(id=number, vector=named, payload=about))
            number += 1
        client.upsert(TABLE, points)
    client.close()


def _faiss(path: Path, manifest: Manifest, out: Path) -> None:
    write_exact(out / "index.faiss", (some.vectors for some in rows(path, manifest)), manifest.counts["dim"])
    with (out / f"{TABLE}.jsonl").open("w", encoding="utf-8") as file:
        for some in rows(path, manifest):
            file.writelines(json.dumps(about, ensure_ascii=False) + "\n" for about in some.about)


def _bigfile(path: Path, manifest: Manifest, out: Path) -> None:
    parts = list(rows(path, manifest))
    ids = [about["id"] for part in parts for about in part.about]
    write_bigfile(out, ids, np.concatenate([part.vectors for part in parts]))


EXPORTERS: dict[str, Callable[[Path, Manifest, Path], None]] = {
    "bigfile": _bigfile,
    "faiss": _faiss,
    "lancedb": _lancedb,
    "parquet": _parquet,
    "qdrant": _qdrant,
}
