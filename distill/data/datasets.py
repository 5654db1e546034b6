"""Batches by the rows that a loader asks for: pairs with their labels, what stands beside them, whole videos."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from distill.data.batch import Batch, Unpaired
from distill.data.dataconfig import DataConfig
from distill.data.draw import Draw
from distill.data.frames import FrameSet
from distill.data.labelset import LabelSet
from distill.data.padding import pictures, real
from distill.data.prefetch import ShardSource, check_cache_size, fetched_ahead
from distill.data.textlabels import TextLabels
from distill.data.texts import Texts
from distill.data.tokens import TextTokenizer


class PairDataset(Dataset):
    """Whole batches of (video, caption) pairs at once, so that captions are tokenised and labels stacked together."""

    def __init__(self, frames: FrameSet, labels: Sequence[LabelSet], tokenizer: TextTokenizer, *, pixels: bool):
        self.frames, self.labels, self.tokenizer, self.pixels = frames, labels, tokenizer, pixels

    def __getitems__(self, pairs: list[tuple[int, int]]) -> Batch:
        """The batch of these pairs."""
        videos = [video for video, _ in pairs]
        texts = [self.frames.videos.text(*pair) for pair in pairs]
        return Batch(
            videos=torch.tensor(videos),
            ids=torch.from_numpy(self.tokenizer(texts)),
            frames=pictures(self.frames, videos) if self.pixels else None,
            real=real(self.frames, videos),
            labels=[labels.batch(pairs) for labels in self.labels],
        )

    def nbytes(self, pairs: list[tuple[int, int]]) -> int:
        """Return the memory of the batch of these pairs, which have equal sizes."""
        return self.__getitems__(pairs[:1]).nbytes * len(pairs)


class VideoDataset(Dataset):
    """Batches of whole videos without captions: (frames, real)."""

    def __init__(self, frames: FrameSet):
        self.frames = frames

    def __getitems__(self, videos: list[int]) -> tuple[Tensor, Tensor]:
        """uint8 [video, frame, 3, height, width] and bool [video, frame]."""
        return pictures(self.frames, videos), real(self.frames, videos)


@dataclass(frozen=True)
class UnpairedSource:
    """Where the videos without captions and the captions without videos come from, each with its label sets."""

    videos: FrameSet | None
    texts: Texts | None
    video_labels: Sequence[LabelSet] = ()
    text_labels: Sequence[TextLabels] = ()


class TrainingDataset(Dataset):
    """Whole batches of training: pairs, and what stands beside them."""

    def __init__(self, pairs: PairDataset, unpaired: UnpairedSource):
        self.pairs, self.unpaired = pairs, unpaired

    def __getitems__(self, draw: Draw) -> Batch:
        """The batch of these rows."""
        batch = self.pairs.__getitems__(draw.pairs)
        if self.unpaired.videos is None and self.unpaired.texts is None:
            return batch
        return replace(batch, unpaired=self._unpaired(draw.videos, draw.texts))

    def _unpaired(self, videos: list[int], texts: list[int]) -> Unpaired:
        source, pixels = self.unpaired, self.pairs.pixels
        frames = source.videos or self.pairs.frames  # of whose shape no video is drawn, where there are none
        captions = [] if source.texts is None else [source.texts.captions[number] for number in texts]
        return Unpaired(
            videos=torch.tensor(videos, dtype=torch.int64),
            ids=torch.from_numpy(self.pairs.tokenizer(captions)),
            frames=pictures(frames, videos, "unpaired") if pixels else None,
            real=real(frames, videos),
            video_labels=[labels.videos(videos) for labels in source.video_labels],
            text_labels=[labels.batch(texts) for labels in source.text_labels],
        )

    def nbytes(self, draw: Draw) -> int:
        """Return the memory of the batch of these rows, which have equal sizes."""
        videos = self._unpaired(draw.videos[:1], []).nbytes * len(draw.videos)
        texts = self._unpaired([], draw.texts[:1]).nbytes * len(draw.texts)
        return self.pairs.nbytes(draw.pairs) + videos + texts

    def ahead(self, draws: Iterable[Draw], config: DataConfig) -> Iterable[Draw]:
        """The same draws, with what lies behind URLs fetched before they need it."""
        sources = [source for source in self._sources() if source.shards.remote]
        if not sources:
            return draws
        check_cache_size(sources, config.shuffle_shards, config.cache_gb)
        return fetched_ahead(draws, sources, config.shuffle_shards)

    def _sources(self) -> list[ShardSource]:
        pairs, unpaired = self.pairs, self.unpaired
        found = [pairs.frames.source()] if pairs.pixels else []
        if unpaired.videos is not None and pairs.pixels:
            found.append(replace(unpaired.videos.source(), part="videos"))
        found += [labels.source() for labels in pairs.labels]
        found += [replace(labels.source(), part="videos") for labels in unpaired.video_labels]
        return found + [labels.source() for labels in unpaired.text_labels]
