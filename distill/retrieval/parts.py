"""Parts of an index: bounded numbers of rows, each a small segment under `.work/` named by the hash of its inputs.

A killed index that is started again finds the parts that it finished, and ends with the same bytes.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from distill.data.padding import pad
from distill.data.pictures import encode_poster
from distill.errors import ArtefactError, check_regular
from distill.manifest import SealedFile, check_hash
from distill.model.similarity import unit
from distill.records import View, canonical_json, parsed, read_record, write_record
from distill.retrieval import frames
from distill.retrieval.columns import joined
from distill.retrieval.encoder import Encoder, frame_weights
from distill.retrieval.generation import VERSION, WORK
from distill.retrieval.kept import Kept
from distill.retrieval.segment import Segment, sealed_segment, write_segment
from distill.retrieval.sources import Item, Loaded, Note, VideoSource
from distill.retrieval.stored import arrays, bytes_per_video, stored
from distill.retrieval.vectors import encode

PART = 1024  # rows that are lost at most when an index is killed
PART_BYTES = 2**28  # of tokens; fewer rows where they take more
CAPTIONS = 256  # encoded at once
DONE = "part.json"


@dataclass
class _Rows:
    about: list[dict[str, Any]] = field(default_factory=list)
    columns: list[dict[str, np.ndarray]] = field(default_factory=list)
    tokens: list[dict[str, np.ndarray]] = field(default_factory=list)
    frames: list[dict[str, np.ndarray]] = field(default_factory=list)
    posters: list[bytes] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    broken: list[Note] = field(default_factory=list)


class _Record(View):
    broken: list[Note]
    files: dict[str, SealedFile]


def finished(folder: Path, *, verify: bool) -> tuple[Segment | None, list[Note]] | None:
    """Return a part's rows, if any, and the videos that could not be used; None for a damaged part or a missing one."""
    try:
        record = parsed(_Record, read_record(folder / DONE), folder / DONE, "index again")
        for name, file in record.files.items() if verify else ():
            check_regular(folder / name)
            check_hash(folder / name, file, "tools/index.py")
        return Segment(folder) if record.files else None, record.broken
    except ArtefactError:
        return None


class PartMaker:
    """Makes the parts of one index: encodes videos of a source with a release, and writes them as small segments."""

    def __init__(self, release: Encoder, source: VideoSource, kept: Kept, batch: int, folder: dict[str, int]):
        self.release, self.model, self.source = release, release.model, source
        self.kept, self.batch, self.folder = kept, batch, folder

    def plan(self, out: Path, items: Sequence[Item]) -> Iterator[tuple[Path, Sequence[Item]]]:
        """Return the folder of each part, and its items."""
        config = self.release.frames_config
        rows = PART
        if self.model.rerank_fields:
            tokens = bytes_per_video(self.model, self.release.num_frames, self.release.size)[1]
            rows = max(1, min(PART, PART_BYTES // tokens))
        settings = [VERSION, self.release.manifest.id, asdict(self.kept), config, self.batch, self.folder]
        for start in range(0, len(items), rows):
            some = items[start : start + rows]
            content = canonical_json([settings, [[item.id, *item.mark, item.changed] for item in some]])
            yield out / WORK / hashlib.sha256(content).hexdigest()[:16], some

    def make(self, parts: Sequence[tuple[Path, Sequence[Item]]]) -> Iterator[Item]:
        """Make each part; yield every item as soon as it is loaded."""
        for folder, items in parts:
            shutil.rmtree(folder, ignore_errors=True)
            rows, waiting = _Rows(), []
            for loaded in self.source.load(items):
                if isinstance(loaded, Loaded):
                    waiting.append(loaded)
                    yield loaded.item
                else:
                    rows.broken.append(loaded)
                if len(waiting) == self.batch:
                    self._encode(rows, waiting)
                    waiting = []
            if waiting:
                self._encode(rows, waiting)
            self._write(folder, rows)

    @torch.inference_mode()
    def _encode(self, rows: _Rows, batch: Sequence[Loaded]) -> None:
        padded = [pad(loaded.pixels, self.release.num_frames) for loaded in batch]
        pixels, real = (torch.stack([torch.from_numpy(pair[i]) for pair in padded]) for i in (0, 1))
        video = self.release.encode_frames(pixels, real)
        names = [loaded.item.id for loaded in batch]
        vectors = self.model.index_vectors(video).cpu()
        _check_finite(self.release, "vector", names, vectors)
        weights = frame_weights(self.release, real, video.to("cpu")).numpy()
        if self.kept.posters:
            rows.posters += [_poster(loaded, own) for loaded, own in zip(batch, weights, strict=True)]
        rows.columns.append({"frame_weights": weights} | encode(vectors.numpy(), self.kept.vectors))
        if self.model.rerank_fields:
            kept = stored(video, self.model.rerank_fields)
            for name, value in kept.items():
                _check_finite(self.release, f"{name} in float16", names, value)
            rows.tokens.append(arrays(kept))
        elif self.kept.frames != frames.NONE:
            assert video.frames is not None, "every model that can be searched gives its frames"
            _check_finite(self.release, "frames", names, video.frames.cpu())
            rows.frames.append(frames.encode(unit(video.frames.cpu()).numpy(), real.numpy(), self.kept.frames))
        rows.about += [loaded.about | self.folder for loaded in batch]
        rows.items += [loaded.item for loaded in batch]

    def _write(self, folder: Path, rows: _Rows) -> None:
        if rows.about:
            tokens, kept = (joined(tables) if tables else None for tables in (rows.tokens, rows.frames))
            said = self._said(rows.items) if self.kept.captions else None
            write_segment(folder, rows.about, joined(rows.columns), tokens, said, rows.posters, kept)
        files = sealed_segment(folder) if rows.about else {}
        write_record(folder / DONE, _Record(broken=rows.broken, files=files).model_dump())

    @torch.inference_mode()
    def _said(self, items: Sequence[Item]) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]] | None:
        said = [(row, *caption) for row, item in enumerate(items) for caption in self.source.captions(item)]
        if not said:
            return None
        texts = [text for _, _, text in said]
        parts = [texts[start : start + CAPTIONS] for start in range(0, len(texts), CAPTIONS)]
        vectors = torch.cat([self.model.query_vectors(self.release.encode_text(part)).cpu() for part in parts])
        _check_finite(self.release, "vector of a caption", [items[row].id for row, _, _ in said], vectors)
        rows = np.array([row for row, _, _ in said], np.int64)
        columns = encode(vectors.numpy(), self.kept.vectors) | {"rows": rows}
        return [{"id": name, "text": text} for _, name, text in said], columns


def _poster(loaded: Loaded, weights: Float32[np.ndarray, " frame"]) -> bytes:
    """Return a small picture of the frame that weighs most."""
    best = int(weights[: len(loaded.pixels)].argmax())
    return encode_poster(loaded.pixels[best])


def _check_finite(release: Encoder, what: str, names: Sequence[str], rows: Tensor) -> None:
    broken = ~rows.isfinite().flatten(1).all(1)
    if broken.any():
        name = names[int(broken.nonzero()[0])]
        raise ArtefactError(f"{release.path}: its {what} of video {name!r} is not finite; release a sound model")
