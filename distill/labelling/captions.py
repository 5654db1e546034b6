"""The distinct captions of a label job, and the batch in which each is encoded.

A caption is encoded once. Where one shard uses it, it goes into a batch of that shard; captions that several shards use
go into batches of their own, whose features are kept on disk for every process. So features do not depend on which
process asks first.
"""

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence

from safetensors.torch import load, save

from distill.data.building import ShardContent, build, open_built_shards
from distill.data.frames import FrameSet
from distill.labelling.teacher import Encoder
from distill.model.features import TextFeatures
from distill.remote import Place

SHARED = "shared"  # the batches of captions that several shards use are called so


def texts_of(frames: FrameSet, videos: Sequence[int]) -> list[str]:
    """Return the captions of videos (by number), video by video."""
    return [caption.text for video in videos for caption in frames.videos[video].captions]


class CaptionBatches:
    """Encodes the captions of shards in batches of `size`; `folder` holds those that shards share."""

    def __init__(self, encoder: Encoder, shards: Mapping[str, Sequence[str]], folder: Place, size: int):
        self._encoder, self.folder, self.size = encoder, folder, size
        used_in: dict[str, str] = {}  # caption -> the shard that uses it, or SHARED
        for shard, texts in shards.items():
            for text in texts:
                used_in[text] = shard if used_in.get(text, shard) == shard else SHARED
        groups: dict[str, list[str]] = defaultdict(list)
        for text, group in used_in.items():
            groups[group].append(text)
        self._batches = {
            f"{group}-{start // size:05d}": texts[start : start + size]
            for group, texts in groups.items()
            for start in range(0, len(texts), size)
        }
        self._batch_of = {text: batch for batch, texts in self._batches.items() for text in texts}

    def __len__(self) -> int:
        return len(self._batch_of)

    def count(self, shards: Container[str]) -> int:
        """Return how many captions the batches of these shards hold, the shared batches included."""
        groups = {batch: batch.rsplit("-", 1)[0] for batch in self._batches}
        return sum(len(self._batches[batch]) for batch, group in groups.items() if group == SHARED or group in shards)

    def features(self, texts: Sequence[str]) -> TextFeatures:
        """Return features of one shard's captions, one row each; encodes the batches they need."""
        found: dict[str, TextFeatures] = {}
        for batch in dict.fromkeys(self._batch_of[text] for text in texts):
            found |= self._shared(batch, set(texts)) if batch.startswith(SHARED) else self._encode(batch)
        return TextFeatures.cat([found[text] for text in texts])

    def _encode(self, batch: str) -> dict[str, TextFeatures]:
        texts = self._batches[batch]
        features = self._encoder.encode_texts(texts)
        return {text: features[slice(row, row + 1)] for row, text in enumerate(texts)}

    def _shared(self, batch: str, wanted: set[str]) -> dict[str, TextFeatures]:
        """Read the wanted captions of a batch that shards share; the first process to need it makes it."""
        build(self.folder, batch, lambda: self._content(batch))
        kept = open_built_shards(self.folder, [batch])
        return {
            text: TextFeatures(**load(kept.read(f"{batch}-{row:05d}", "safetensors")))
            for row, text in enumerate(self._batches[batch])
            if text in wanted
        }

    def _content(self, batch: str) -> ShardContent:
        rows = [{k: v.contiguous() for k, v in one.tensors().items()} for one in self._encode(batch).values()]
        samples = {f"{batch}-{number:05d}": {"safetensors": save(row)} for number, row in enumerate(rows)}
        return ShardContent(samples, {"captions": len(rows)})
