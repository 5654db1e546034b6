"""Indexing: encodes the videos of a source into a gallery, or adds those that it lacks.

When all parts (distill/retrieval/parts.py) are made, they become one segment of the gallery's next generation.

A video has the same pixels in a frame set and from its file, whose frames pass through the JPEG that packing writes.
Encoded in the same batches, both give the same row bit for bit; in batches of other videos, to float32's rounding.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill.data.tokens import warn_of_cuts
from distill.errors import ArtefactError, ExpectedError, first_few
from distill.log import progress
from distill.manifest import Manifest, SealedFile
from distill.records import canonical_json, json_sha256
from distill.remote import Place
from distill.retrieval import generation
from distill.retrieval.encoder import Encoder, weighing
from distill.retrieval.gallery import check_release
from distill.retrieval.parts import PartMaker, finished
from distill.retrieval.segment import Segment, id_hash
from distill.retrieval.sources import Cut, Item, Note, VideoSource, open_source
from distill.retrieval.stored import row_bytes
from distill.retrieval.table import Table
from distill.retrieval.vectors import KINDS, among

BATCH = 64  # videos encoded at once


def build_gallery(
    release: Encoder,
    path: Place,
    out: Path,
    *,
    videos: Path | None = None,
    vectors: str | None = None,
    cut: Cut | None = None,
    captions: bool = False,
    append: bool = False,
    batch: int = BATCH,
    workers: int | None = None,
) -> Manifest:
    """Indexes `path` (a frame set, a folder of video files, or a text file that lists some) into the gallery `out`.

    A gallery that was made of the same source by the same release is kept; any other is refused, unless `append`: then
    videos whose ids it has are skipped and the others added. Videos that cannot be read are left out and listed in the
    manifest's `notes`, with the reason. `videos` is the folder of the video files, stored as given so that answers name
    files; `vectors` one of `vectors.KINDS` (float32, or what the gallery has); `captions` stores those of a frame set;
    `workers` processes decode (one per core).
    """
    if not release.searchable:
        raise ArtefactError(
            f"{release.path}: a teacher, which scores text and video together and has no vectors to search; "
            "train a student from its labels and index that"
        )
    with open_source(path, videos, release.frames_config, release.path, cut, workers) as source:
        if captions and not any(source.captions(item) for item in source.items):
            raise ExpectedError(f"{path}: has no captions to store; only a frame set has them")
        if captions:
            texts = [text for item in source.items for _, text in source.captions(item)]
            warn_of_cuts(texts, release.max_words, str(path), "they are found by their beginnings")
        with generation.changing(out) as before:
            return _Index(release, source, out, before, vectors, captions, cut, batch).run(append)


@dataclass
class _Index:
    """One run, while it holds the gallery's lock."""

    release: Encoder
    source: VideoSource
    out: Path
    before: Manifest | None
    vectors: str | None
    captions: bool
    cut: Cut | None
    batch: int

    def __post_init__(self):
        had = None if self.before is None else self.before.config["vectors"]
        self.kind = kind = self.vectors or had or KINDS[0]
        if kind != (had or kind):
            raise ArtefactError(f"{self.out}: holds {had} vectors, not {kind}; leave --vectors out, or index anew")
        folder = None if self.source.folder is None else str(self.source.folder)
        self.folders: list[str] = [] if self.before is None else list(self.before.config["folders"])
        if folder is not None and folder not in self.folders:
            self.folders.append(folder)
        if self.before is not None:
            check_release(self.out, self.before, self.release)
        folder_of = {} if folder is None else {"folder": self.folders.index(folder)}
        self.maker = PartMaker(self.release, self.source, kind, self.captions, self.batch, folder_of)

    def run(self, append: bool) -> Manifest:
        """Makes the parts that are missing, joins them, and publishes the manifest."""
        made = self._made_of()
        items = self.source.items
        if self.before is not None:
            if not append:
                config = generation.known(self.before)
                same = config.made_of == [made] and config.folders == self.folders
                if same and self.before.counts["generation"] == 1:
                    return self._finished(self.before)
                raise ArtefactError(
                    f"{self.out}: already holds another gallery; choose another folder, or add to it by --append"
                )
            items = self._missing(items)
            if not items:
                return self._finished(self.before)
        elif append:
            raise ArtefactError(f"{self.out}: no gallery to append to; make one without --append")
        generation.sweep(self.out, self.before)
        parts = list(self.maker.plan(self.out, items))
        missing = [part for part in parts if finished(part[0], verify=True) is None]
        total = sum(len(items) for _, items in missing)
        for _ in progress(self.maker.make(missing), f"index {total} videos", total):
            pass
        return self._join([folder for folder, _ in parts], made)

    def _made_of(self) -> dict[str, Any]:
        marks = [[item.id, *item.mark] for item in self.source.items]
        made = {"source": self.source.name, "items_sha256": json_sha256(marks)}
        if self.cut is not None:
            made |= {"seconds": self.cut.seconds, "overlap": self.cut.overlap}
        return made | ({"captions": True} if self.captions else {})

    def _missing(self, items: Sequence[Item]) -> list[Item]:
        """Those whose file the gallery does not have."""
        assert self.before is not None
        table, files = Table(self.out, self.before), list({item.file: None for item in items})
        keys, here = torch.tensor([id_hash(file) for file in files], dtype=torch.int64), set()
        for segment in table.parts:
            likely = [files[place] for place in among(keys, segment.hashes).nonzero()[:, 0].tolist()]
            here |= {file for file in likely if table.find(file)}
        return [item for item in items if item.file not in here]

    def _join(self, parts: Sequence[Path], made: dict[str, Any]) -> Manifest:
        """One segment of all parts, and the generation that has it."""
        found = [part for folder in parts if (part := finished(folder, verify=False)) is not None]
        assert len(found) == len(parts), "all parts were just made"
        notes = self.source.broken + [note for _, broken in found for note in broken]
        segments = [segment for segment, _ in found if segment is not None]
        number = 1 if self.before is None else self.before.counts["generation"] + 1
        if not segments:
            reasons = sorted({note["reason"] for note in notes})
            raise ArtefactError(
                f"{self.source.name}: none of {len(notes)} videos could be used ({first_few(reasons, 3, '; ')})"
            )
        rows = [(segment, torch.arange(len(segment))) for segment in segments]
        segment, files = generation.write_merged(self.out, number, rows)
        return self._finished(generation.publish(self.out, self._manifest(number, files, notes, made, segment)))

    def _finished(self, manifest: Manifest) -> Manifest:
        """Without what was kept for a killed run to continue with."""
        shutil.rmtree(self.out / generation.WORK, ignore_errors=True)
        return manifest

    def _manifest(
        self, number: int, files: dict[str, SealedFile], notes: list[Note], made: dict[str, Any], segment: Segment
    ) -> Manifest:
        before, fields = self.before, self.release.model.rerank_fields
        old: dict[str, int] = {} if before is None else before.counts
        counts = {name: old.get(name, 0) + len(segment) for name in ("videos", "rows")}
        counts |= {"generation": number, "dim": segment.vectors.stored.shape[1]}
        counts["vector_bytes"] = row_bytes(segment.vectors.columns)
        if segment.tokens is not None:
            counts["token_bytes"] = row_bytes(segment.tokens.tensors())
        said = old.get("captions", 0) + (0 if segment.captions is None else len(segment.captions))
        config = {
            "release": str(self.release.path),
            "frames": self.release.frames_config,
            "vectors": self.kind,
            "folders": self.folders,
            "made_of": [*(generation.known(before).made_of if before else []), made],
            **weighing(self.release),
        } | ({"tokens": ["vector", *fields]} if fields else {})
        if before is not None:
            config |= {kind: before.config[kind] for kind in generation.DERIVED if kind in before.config}
        return Manifest(
            kind="gallery",
            version=generation.VERSION,
            config=config,
            counts=counts | ({"captions": said} if said else {}),
            parents=_parents(before, self.release, self.source),
            files=(before.files if before else {}) | files,
            notes=_notes(before, notes, {name for item in self.source.items for name in (item.id, item.file)}),
        )


def _parents(before: Manifest | None, release: Encoder, source: VideoSource) -> dict[str, str]:
    """The release, `frames`, and, where other frame sets were added, `frames 2` and so on."""
    parents = {"release": release.manifest.id} if before is None else dict(before.parents)
    for found in source.parents.values():
        if found not in parents.values():
            parents["frames" if len(parents) == 1 else f"frames {len(parents)}"] = found
    return parents


def _notes(before: Manifest | None, notes: Sequence[Note], tried: set[str]) -> list[Note]:
    """Broken videos: those of before that were not tried again, and those of now, each once."""
    old = [note for note in before.notes if note["video"] not in tried] if before else []
    return list({canonical_json(note): note for note in [*old, *notes]}.values())
