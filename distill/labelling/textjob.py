"""A label job over captions without videos: a teacher's features of each, by which it ranks the videos of any batch.

The set has one tier, `features`, and a sample for every thousand captions of the file. As in job.py any number of
processes may share the folder, and a shard made twice has the same bytes.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import save

from distill.data.building import ShardContent
from distill.data.labels import DTYPES, READ, Storage, text_sha256
from distill.data.shards import open_sealed_shards
from distill.data.texts import PER_SAMPLE, Texts
from distill.errors import ArtefactError
from distill.labelling.job import Stage
from distill.labelling.labeller import Labeller
from distill.labelling.sealing import begin_labels, made_by, seal_labels
from distill.labelling.teacher import Precision, encode_texts
from distill.manifest import NAME, Manifest
from distill.model.features import TextFeatures
from distill.records import canonical_json
from distill.remote import Place


class TextJob:
    """One label job of a text file: `begin`, then `label` in any number of processes."""

    def __init__(
        self, labeller: Labeller, texts: Texts, out: Place, *, storage: Storage, batch: int, precision: Precision
    ):
        self.labeller, self.texts, self.out = labeller, texts, out
        self._storage, self._batch, self._precision = storage, batch, precision
        names = [f"{number:05d}" for number in range(-(-len(texts.captions) // PER_SAMPLE))]
        self.shards = Stage(out, names, self._label, f"label {texts.path} (shards)")

    def begin(self, *, verify: bool = True) -> Manifest | None:
        """Claim the folder and return None, or return the manifest of a finished set of exactly this job.

        Raises `ArtefactError` for a folder that holds another set.
        """
        config: dict[str, Any] = {
            "teacher": self.labeller.id,
            "interaction": {"kind": self.labeller.kind, "config": self.labeller.interaction.config()},
            "tiers": ["features"],
            "storage": self._storage,
            "batch": self._batch,
            "precision": self._precision,
        }
        if not (self.out / NAME).is_file():
            counts = {"captions": len(self.texts.captions), "distinct_captions": len(self.texts.captions)}
            job = {**config, "texts": self.texts.id, "shards": list(self.shards.names), "counts": counts}
            begin_labels(self.out, job, self.labeller.head(), self.labeller.about())
            return None
        manifest, _ = open_sealed_shards(self.out, "labels", *READ, verify=verify)
        if made_by(manifest) != config or manifest.parents != {"texts": self.texts.id}:
            raise ArtefactError(f"{self.out}: already holds another label set; choose another folder for --out")
        return manifest

    def forecast(self) -> tuple[int, float]:
        """Return the bytes of all features, and the seconds that are left to one process; writes nothing."""
        batch = self.texts.captions[: self._batch]
        self._encode(batch)
        start = time.perf_counter()
        features = self._encode(batch).tensors()
        each, size = (time.perf_counter() - start) / len(batch), DTYPES[self._storage].itemsize
        numbers = sum(value[0].numel() * size for value in features.values()) * len(self.texts.captions)
        left = min(len(self.shards.missing()) * PER_SAMPLE, len(self.texts.captions))
        return numbers, left * each

    def _encode(self, captions: Sequence[str]) -> TextFeatures:
        return encode_texts(self.labeller, captions, self._precision)

    def label(self, rank: int = 0, world: int = 1) -> Manifest | None:
        """Make all missing shards together with `world - 1` other processes, as `LabelJob.label` does."""
        if not self.shards.complete(rank, world):
            return None
        return seal_labels(self.out) or self.label(rank, world)  # again, if sealing found damage

    def _label(self, name: str) -> ShardContent:
        first = int(name) * PER_SAMPLE
        captions = self.texts.captions[first : first + PER_SAMPLE]
        parts = [self._encode(captions[start : start + self._batch]) for start in range(0, len(captions), self._batch)]
        rows = {key: torch.cat([part.tensors()[key] for part in parts]) for key in parts[0].tensors()}
        if not all(value.isfinite().all() for value in rows.values()):
            raise ArtefactError(f"{self.texts.path}: labels of captions are not finite; check the teacher")
        stored = {key: value.to(DTYPES[self._storage]).contiguous() for key, value in rows.items()}
        about = {"captions": [{"text_sha256": text_sha256(caption)} for caption in captions]}
        sample = {"labels.json": canonical_json(about), "labels.safetensors": save(stored)}
        return ShardContent({name: sample}, {"captions": len(captions)})
