"""Label sets: what a teacher says of a frame set, written once, read by every student.

Shards have the names and keys of the frame shards they annotate. Per sample:

* `<key>.labels.json`: video id, caption ids with the sha256 of their texts, frame timestamps, frames sha256;
* `<key>.labels.safetensors`: `relevance` [caption, frame], the teacher's raw frame-text score (never softmaxed), fp32;
  in the tier `features` also what rebuilds the text x video matrix of any batch: `sentence` [caption, dim], `words`
  [caption, word, dim], `frames` [frame, dim], `vector` [dim], `real` [frame] (1 where a frame counts), each where the
  teacher has or needs it, in the set's dtype. The frame axis is the sampler's `num_frames`, padding included, because
  the published teachers do not mask it. Teachers see frames in the order of time: so stand `frames` and `real`, while
  `relevance` has the order in which the frames are packed.

`interaction.safetensors` is the teacher's light scoring head; `manifest.json` says which class it belongs to.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from distill.data.frames import FrameSet, Video
from distill.data.shards import Sample, Shards
from distill.errors import ArtefactError
from distill.manifest import canonical_json, open_sealed

VERSION = 1
INTERACTION = "interaction.safetensors"
Tier = Literal["relevance", "features"]
Storage = Literal["float32", "float16", "bfloat16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PER_VIDEO = ("vector", "frames", "real")  # every other stored tensor has one row per caption
_NAMES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def text_sha256(text: str) -> str:
    """What a label row records of its caption."""
    return hashlib.sha256(text.encode()).hexdigest()


def label_sample(video: Video, rows: dict[str, Tensor], storage: Storage) -> Sample:
    """The members of one video's labels. `relevance` stays fp32, features are stored as `storage`."""
    about = {
        "video": video.id,
        "captions": [{"id": caption.id, "text_sha256": text_sha256(caption.text)} for caption in video.captions],
        "timestamps": list(video.timestamps),
        "frames_sha256": video.frames_sha256,
    }
    stored = {
        name: value.to(torch.float32 if name == "relevance" else DTYPES[storage]).contiguous()
        for name, value in rows.items()
    }
    return {"labels.json": canonical_json(about), "labels.safetensors": save(stored)}


class LabelSet:
    """A sealed label set opened against the frame set it annotates; refuses any other."""

    def __init__(self, path: str | Path, frames: FrameSet, *, verify: bool = True):
        self.path = Path(path)
        self.manifest = open_sealed(self.path, "labels", VERSION, verify=verify)
        expected, found = frames.manifest.id, self.manifest.parents.get("frames", "nothing")
        if found != expected:
            raise ArtefactError(
                f"{self.path}: labels were made from frames {found[:12]}, but {frames.path} is {expected[:12]}; rerun "
                f"tools/dump_soft_labels.py on it or point data.train at the frames that were labelled"
            )
        self.tiers: list[str] = self.manifest.config["tiers"]
        self.interaction: dict = self.manifest.config["interaction"]
        self._frames = frames
        self._shards = Shards(self.path, [name for name in self.manifest.files if name.endswith(".tar")])
        self._headers: dict[str, tuple[int, dict]] = {}
        for video in frames.videos:
            if "labels.safetensors" not in self._shards.extensions(video.key):
                raise ArtefactError(f"{self.path}: no labels for video {video.id} ({video.key}); make the set again")

    def require(self, tier: Tier, why: str) -> None:
        """Refuses a set that lacks a tier."""
        if tier not in self.tiers:
            raise ArtefactError(
                f"{self.path}: holds tiers {', '.join(self.tiers)}, but {why} needs {tier!r}; "
                f"rerun tools/dump_soft_labels.py with --tiers {' '.join(dict.fromkeys([*self.tiers, tier]))}"
            )

    def interaction_weights(self) -> dict[str, Tensor]:
        """State of the teacher's scoring head."""
        return load((self.path / INTERACTION).read_bytes())

    def relevance(self, video: int, caption: int) -> Float[Tensor, " frame"]:
        """The teacher's raw score of every frame for one caption."""
        return self._row(self._frames.videos[video].key, "relevance", caption)

    def batch(self, pairs: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """Stored rows of (video, caption) pairs by name, as fp32; the first axis is the pair."""
        keys = [self._frames.videos[video].key for video, _ in pairs]
        names = [name for name in self._header(keys[0])[1] if name != "__metadata__"]
        rows = {
            name: torch.stack(
                [
                    self._row(key, name, None if name in PER_VIDEO else caption)
                    for key, (_, caption) in zip(keys, pairs, strict=True)
                ]
            )
            for name in names
        }
        return {name: value.float() for name, value in rows.items()}

    def _row(self, key: str, name: str, row: int | None) -> Tensor:
        """One row (or the whole) of a stored tensor, read without the rest of the file."""
        start, header = self._header(key)
        if name not in header:
            raise ArtefactError(f"{self.path}: sample {key} has no {name!r}; make the set again")
        entry = header[name]
        dtype, shape, (begin, end) = _NAMES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if row is not None:
            shape = shape[1:]
            size = math.prod(shape) * dtype.itemsize
            begin, end = begin + row * size, begin + (row + 1) * size
        data = self._shards.read_at(key, start + begin, end - begin)
        return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)

    def _header(self, key: str) -> tuple[int, dict]:
        if key not in self._headers:
            offset, size = self._shards.place(key, "labels.safetensors")
            length = int.from_bytes(self._shards.read_at(key, offset, 8), "little")
            if not 0 < length <= size - 8:
                raise ArtefactError(f"{self.path}: labels of sample {key} are not safetensors; make the set again")
            header = json.loads(self._shards.read_at(key, offset + 8, length))
            self._headers[key] = (offset + 8 + length, header)
        return self._headers[key]
