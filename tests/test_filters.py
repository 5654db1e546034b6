"""Filters of a search, by folder and by length: as good as if the others were not there, compared with plain counts."""

import random
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch

from distill.data.tokens import Tokenizer
from distill.errors import ArtefactError, ExpectedError
from distill.manifest import Manifest
from distill.model.contract import RetrievalModel
from distill.model.features import TextFeatures
from distill.model.similarity import unit
from distill.retrieval import Gallery, generation, upkeep
from distill.retrieval.segment import id_hash, sealed_segment, write_segment
from distill.retrieval.where import Facts, Where

DIM, FRAMES = 16, 2
FOLDERS = ("", "holiday", "holiday/beach", "holiday2", "café/été", "a b")
FILTERS = [
    Where("holiday"),
    Where("holiday/beach/"),
    Where("café"),
    Where(min_seconds=20.0),
    Where(max_seconds=20.0),
    Where(min_seconds=10.0, max_seconds=30.0),
    Where("holiday", min_seconds=25.0),
    Where("./holiday//"),
    Where(""),
    Where("holi"),
    Where("..", min_seconds=0.0),
]


class Plain(RetrievalModel):
    """A model whose features are its vectors."""

    def encode_video(self, frames, real):
        raise NotImplementedError("the vectors of videos are drawn")

    def query_vectors(self, text):
        return text.sentence


class Vectors:
    """A release whose queries are vectors by number."""

    searchable, second_look, num_frames, tokenizer, frames_config = True, None, FRAMES, Tokenizer(77), {}
    fit, size = None, 0

    def __init__(self, path: Path):
        self.path, self.model, generator = path, Plain(), torch.Generator().manual_seed(1)
        self.queries = unit(torch.randn(8, DIM, generator=generator))
        self.manifest = Manifest(kind="release", version=1, config={}, counts={}, parents={}, files={})

    def encode_text(self, texts):
        return TextFeatures(sentence=self.queries[torch.tensor([int(text) for text in texts])])

    def encode_frames(self, *_):
        raise NotImplementedError("the vectors of videos are drawn")

    encode_video = accept = encode_frames


def drawn(rows: int, seed: int = 0) -> list[dict]:
    """Rows of whole files and of spans, in several folders and of several lengths."""
    draw, found = random.Random(seed), []
    while len(found) < rows:
        folder, number, duration = draw.choice(FOLDERS), len(found), draw.choice([5.0, 10.0, 20.0, 30.0, 61.5])
        name = str(PurePosixPath(folder, f"v{number}"))
        shown = {"source": f"{name}.mp4", "duration": duration, "timestamps": [0.0, 1.0]}
        if duration > 60:
            found += [{"id": f"{name}@{s}-{s + 30}", "file": name, "span": [s, s + 30.0], **shown} for s in (0.0, 30.0)]
        else:
            found.append({"id": name, **shown})
    return found


def written(path: Path, segments: list[list[dict]]) -> tuple[Gallery, list[dict], np.ndarray]:
    """A gallery of drawn vectors, its rows and the vectors."""
    release, vectors, files = Vectors(path.with_name("release")), [], {}
    generator = torch.Generator().manual_seed(2)
    for number, about in enumerate(segments, 1):
        vectors.append(unit(torch.randn(len(about), DIM, generator=generator)))
        columns = {"vectors": vectors[-1].numpy(), "frame_weights": np.full((len(about), FRAMES), 0.5, np.float32)}
        name = f"{generation.SEGMENTS}/{number:05}"
        write_segment(path / name, about, columns, None, None)
        files |= {f"{name}/{file}": sealed for file, sealed in sealed_segment(path / name).items()}
    rows = [row for about in segments for row in about]
    counts = {"videos": len(rows), "rows": len(rows), "dim": DIM, "generation": 1}
    config = {"release": "../release", "vectors": "float32", "folders": []}
    parents = {"release": release.manifest.id}
    manifest = Manifest(
        kind="gallery", version=generation.VERSION, config=config, counts=counts, parents=parents, files=files
    )
    generation.publish(path, manifest)
    return Gallery.open(path, release), rows, torch.cat(vectors).numpy()


def fits(row: dict, where: Where) -> bool:
    """Whether a row's file is meant, by its path alone."""
    folder = str(PurePosixPath(where.folder))
    inside = folder == "." or row["source"].startswith(f"{folder}/")
    return inside and (where.min_seconds or 0) <= row["duration"] <= (where.max_seconds or 1e9)


@pytest.fixture(scope="module", params=["exact", "approximate"])
def gallery(request, tmp_path_factory):
    """Two segments of rows, of which a tenth is deleted; searched exactly, or through an index of the older one."""
    path, rows = tmp_path_factory.mktemp(request.param) / "gallery", drawn(700)
    opened, rows, vectors = written(path, [rows[:500], rows[500:]])
    gone = {row["id"] for row in rows[::10]}
    upkeep.delete(path, sorted(gone))
    if request.param == "approximate":
        pytest.importorskip("faiss")
        upkeep.approximate(path)
    return opened.refreshed(), rows, vectors, gone


@pytest.mark.parametrize("where", FILTERS, ids=str)
def test_a_filtered_search_finds_what_counting_finds(where, gallery):
    opened, rows, vectors, gone = gallery
    live = [number for number, row in enumerate(rows) if row["id"] not in gone and fits(row, where)]
    assert opened.table.fitting(where).tolist() == live
    queries = [str(number) for number in range(8)]
    answers = opened.search(queries, 12, where=where)
    for query, hits in zip(opened.release.queries.numpy(), answers, strict=True):
        best = sorted(live, key=lambda row: -float(query @ vectors[row]))[:12]
        assert [hit.video for hit in hits] == [rows[row]["id"] for row in best], "all that there are, the best first"
        assert [hit.score for hit in hits] == pytest.approx([float(query @ vectors[row]) for row in best], abs=1e-6)

    files = {}
    for row in live:
        files.setdefault(rows[row].get("file", rows[row]["id"]), []).append(row)
    assert opened.table.files(where).tolist() == [some[0] for some in files.values()]
    (hits,) = opened.search(["3"], 12, by_file=True, where=where)
    value = {
        file: max(float(opened.release.queries[3].numpy() @ vectors[row]) for row in some)
        for file, some in files.items()
    }
    assert [rows_of(hit) for hit in hits] == sorted(value, key=lambda file: -value[file])[:12]

    asking = next(row for row in rows if row["id"] not in gone and "file" not in row)
    place = rows.index(asking)
    best = sorted((row for row in live if row != place), key=lambda row: -float(vectors[place] @ vectors[row]))[:12]
    assert [hit.video for hit in opened.like(asking["id"], 12, where=where)] == [rows[row]["id"] for row in best]


def rows_of(hit) -> str:
    """The id of the file of a hit."""
    return hit.video.partition("@")[0]


def test_folders_count_the_files_in_and_below_them(gallery):
    opened, rows, _, gone = gallery
    files = {row["source"] for row in rows if row["id"] not in gone}
    for folder in ("holiday", "holiday/beach", "holiday2", "café", "café/été", "a b"):
        below = [source for source in files if source.startswith(f"{folder}/")]
        assert opened.table.folder_sizes[folder] == len(below) > 0
    assert set(opened.table.folder_sizes) == {*FOLDERS, "café"} - {""}


def test_facts_are_read_once_per_segment_and_kept_when_the_gallery_changes(tmp_path, monkeypatch):
    opened, rows, _ = written(tmp_path / "gallery", [drawn(60)])
    built = []
    monkeypatch.setattr("distill.retrieval.segment.Facts", lambda rows: built.append(1) or Facts(rows))
    for _ in range(3):
        opened.search(["1"], 3, where=Where("holiday"))
    upkeep.delete(tmp_path / "gallery", [rows[0]["id"]])
    again = opened.refreshed()
    assert again is not opened
    again.search(["1"], 3, where=Where("holiday"))
    assert len(built) == 1


def test_filters_that_contradict_themselves_and_damaged_lines_are_errors(tmp_path):
    with pytest.raises(ExpectedError, match=r"min_seconds: 30 is above max_seconds, 10"):
        Where(min_seconds=30.0, max_seconds=10.0)
    with pytest.raises(ExpectedError, match="nan"):
        Where(max_seconds=float("nan"))
    opened, _, _ = written(tmp_path / "gallery", [drawn(5)])
    lines = tmp_path / "gallery" / "segments" / "00001" / "videos.jsonl"
    lines.write_bytes(lines.read_bytes().replace(b'"duration":', b'"durations":', 1))
    with pytest.raises(ArtefactError, match=r"videos\.jsonl: lines 1 to 5: damaged at rows\.0\.duration"):
        opened.search(["1"], 1, where=Where("x"))


def test_a_gallery_that_has_lost_all_its_videos_has_no_folders(tmp_path):
    opened, rows, _ = written(tmp_path / "gallery", [drawn(4)])
    upkeep.delete(tmp_path / "gallery", [row["id"] for row in rows])
    upkeep.compact(tmp_path / "gallery")
    empty = opened.refreshed()
    assert (len(empty), empty.table.folder_sizes, len(empty.table.files(Where()))) == (0, {}, 0)
    assert empty.search(["1"], 3, where=Where("holiday")) == [[]]


def test_facts_of_a_file_are_the_same_for_all_its_rows():
    rows = [(id_hash("film"), "films/film.mp4", 61.5)] * 3 + [(id_hash("x"), "x.mp4", 2.0)]
    facts = Facts(rows)
    assert facts.fit(Where("films")).tolist() == [True, True, True, False]
    assert facts.fit(Where(max_seconds=2.0)).tolist() == [False, False, False, True]
    assert facts.counts(np.array([0, 3])) == {"films": 1}
