"""A teacher at work on one frame set: features of its videos and captions, and the label rows that follow from them.

Features are float32 on the CPU, whatever the towers compute in. A teacher sees a video's frames in the order of time,
however they are packed. Axes: text, video, frame (padded to the sampler's `num_frames`).

Each distinct caption is encoded once. Where one shard uses it, it goes into a batch of that shard; captions that
several shards use go into batches of their own, whose features are kept on disk for every process. So features do not
depend on which process asks first.
"""

import itertools
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from safetensors.torch import load, save
from torch import Tensor

from distill.data.building import ShardContent, build, open_built_shards
from distill.data.datasets import VideoDataset
from distill.data.distinct import distinct
from distill.data.frames import FrameSet
from distill.data.loader import load_batches
from distill.data.padding import real
from distill.data.tokens import TextTokenizer, warn_of_cuts
from distill.data.videos import PackedVideo
from distill.errors import ArtefactError
from distill.labelling.labeller import Labeller, in_time
from distill.licence import stated_licence
from distill.model.contract import Interaction, Teacher
from distill.model.features import TextFeatures, VideoFeatures
from distill.release.release import WEIGHTS, Release
from distill.remote import Place

Precision = Literal["fp32", "bf16"]
SHARED = "shared"  # the batches of captions that several shards use are called so


@dataclass(kw_only=True)
class TeacherRelease(Labeller):
    """The parts of a teacher's release that labelling needs; a label set records `kind` and `id`."""

    model: Teacher
    tokenizer: TextTokenizer
    kind: str  # key of the teacher in the catalogue
    id: str  # of the release's manifest
    release: Release | None = None  # which says what frames it takes
    weights_sha256: str | None = None
    licence: str | None = None

    @classmethod
    def of(cls, release: Release) -> "TeacherRelease":
        """Return the parts of a loaded release; raises `ArtefactError` if it holds a student."""
        kind = release.config.model["kind"]
        if not isinstance(release.model, Teacher):
            raise ArtefactError(
                f"{release.path}: {kind} is a student, only teachers can label; give a teacher's release"
            )
        return cls(
            model=release.model,
            tokenizer=release.tokenizer,
            kind=kind,
            id=release.manifest.id,
            release=release,
            weights_sha256=release.manifest.files[WEIGHTS].sha256,
            licence=stated_licence(release.path),
        )

    def accept(self, frames: FrameSet) -> FrameSet:
        """Return frames as the release takes them."""
        return frames if self.release is None else self.release.accept(frames)

    @property
    def interaction(self) -> Interaction:
        """The teacher's own head."""
        return self.model.eval().interaction

    @property
    def device(self) -> torch.device:
        """Where the teacher is."""
        return next(self.model.parameters()).device

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Return what the text tower gives."""
        return self.model.eval().encode_text(torch.from_numpy(self.tokenizer(texts)).to(self.device))

    def encode_videos(
        self,
        videos: Sequence[PackedVideo],
        pixels: UInt8[Tensor, "video frame 3 height width"],
        real: Bool[Tensor, "video frame"],
    ) -> VideoFeatures:
        """Return what the video tower gives."""
        return self.model.eval().encode_video(pixels.to(self.device), real.to(self.device))

    def warn_of_cuts(self, texts: Sequence[str], where: str) -> None:
        """Log one line if captions have more tokens than the teacher reads."""
        mend = "labels are of what is left; a teacher with more words has a larger data.max_words"
        warn_of_cuts(texts, self.tokenizer, where, mend)


class Encoder:
    """Runs a labeller and its scoring head over one frame set, and counts the videos and captions it encoded."""

    def __init__(self, labeller: Labeller, frames: FrameSet, precision: Precision):
        self.labeller, self.frames, self.precision = labeller, labeller.accept(frames), precision
        self.interaction, self.device = labeller.interaction, labeller.device
        self.encoded = {"videos": 0, "captions": 0}

    def decoded(self, batches: Iterable[list[int]], workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels and `real` of every batch of video numbers, decoded ahead by `workers` processes.

        For a labeller that does not look, pictures have no pixels.
        """
        if self.labeller.looks:
            return load_batches(VideoDataset(self.frames), batches, workers)
        seen = (real(self.frames, numbers) for numbers in batches)
        return ((torch.empty(*each.shape, 3, 0, 0, dtype=torch.uint8), each) for each in seen)

    def videos(self, batches: Sequence[list[int]], workers: int = 0) -> VideoFeatures:
        """Return features of videos by number. Batches matter: other batches round otherwise."""
        loaded = zip(batches, self.decoded(batches, workers), strict=True)
        return VideoFeatures.cat([self.encode_videos(numbers, *pixels) for numbers, pixels in loaded])

    @torch.inference_mode()
    def encode_videos(
        self,
        numbers: Sequence[int],
        pixels: UInt8[Tensor, "video frame 3 height width"],
        real: Bool[Tensor, "video frame"],
    ) -> VideoFeatures:
        """Return features of one batch of decoded videos: those that the scoring head reads."""
        self.encoded["videos"] += len(pixels)
        order = torch.stack([self.order(number) for number in numbers])
        pixels = pixels[torch.arange(len(numbers)).unsqueeze(1), order]
        videos = [self.frames.videos[number] for number in numbers]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            video = self.labeller.encode_videos(videos, pixels, real)
        read = {name: value for name, value in video.tensors().items() if name in self.interaction.video_fields}
        return VideoFeatures(**{k: v.float() if v.is_floating_point() else v for k, v in read.items()}).to("cpu")

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Return features of one batch of captions."""
        self.encoded["captions"] += len(texts)
        return encode_texts(self.labeller, texts, self.precision)

    @torch.inference_mode()
    def relevance(self, number: int, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "text frame"]:
        """Return one video's raw frame scores for each of its captions; frames stand as they are packed."""
        same = video[torch.zeros(len(text), dtype=torch.int64)]  # the one video beside each of its captions
        relevance = self.interaction.relevance(text.to(self.device), same.to(self.device)).cpu()
        return relevance[:, self.order(number).argsort()]

    def order(self, number: int) -> Int64[Tensor, " frame"]:
        """Return the places of a video's frames in the order of time, padding last."""
        places = in_time(self.frames.videos[number].timestamps)
        return torch.tensor([*places, *range(len(places), self.frames.num_frames)])


@torch.inference_mode()
def encode_texts(labeller: Labeller, texts: Sequence[str], precision: Precision) -> TextFeatures:
    """Return a labeller's features of one batch of captions, float32 on the CPU."""
    with torch.autocast(labeller.device.type, torch.bfloat16, enabled=precision == "bf16"):
        text = labeller.encode_texts(texts)
    return TextFeatures(**{name: value.float() for name, value in text.tensors().items()}).to("cpu")


class CaptionBatches:
    """Encodes the captions of a frame set's shards in batches of `size`; `folder` holds those that shards share.

    Of every caption its number among the distinct ones is held, and of these where each comes first. The distinct
    captions of one shard follow one another, but those that several shards use stand in batches of their own.
    """

    def __init__(self, encoder: Encoder, shards: Mapping[str, range], folder: Place, size: int):
        self._encoder, self.folder, self.size = encoder, folder, size
        videos = encoder.frames.videos
        self._texts = videos.texts
        ends = [videos.first_text[rows.stop] for rows in shards.values()]
        self._rows = dict(zip(shards, itertools.pairwise([0, *map(int, ends)]), strict=True))  # captions of each shard
        self._first, self._number = distinct(self._texts)
        shard = np.searchsorted(ends, np.arange(len(self._number)), side="right").astype(np.int32)
        self._several = np.zeros(len(self._first), bool)
        self._several[self._number[shard != shard[self._first][self._number]]] = True
        self._shared = np.flatnonzero(self._several)
        begins = [*np.searchsorted(self._first, [begin for begin, _ in self._rows.values()]).tolist(), len(self._first)]
        self._fresh = dict(zip(shards, itertools.pairwise(begins), strict=True))  # distinct ones that come first there

    def __len__(self) -> int:
        return len(self._first)

    def count(self, shards: Container[str]) -> int:
        """Return how many captions the batches of these shards hold, the shared batches included."""
        return len(self._shared) + sum(len(self._own(name)) for name in self._fresh if name in shards)

    def features(self, shard: str) -> TextFeatures | None:
        """Return features of one shard's captions, one row each; encodes the batches they need. None of no captions."""
        numbers = self._number[slice(*self._rows[shard])]
        if not len(numbers):
            return None
        found: dict[int, TextFeatures] = {}
        for several, group in ((False, self._own(shard)), (True, self._shared)):
            wanted = numbers[self._several[numbers] == several]
            for place in dict.fromkeys((np.searchsorted(group, wanted) // self.size).tolist()):
                batch = group[place * self.size : (place + 1) * self.size].tolist()
                name = f"{SHARED if several else shard}-{place:05d}"
                found |= self._kept(name, batch, set(wanted.tolist())) if several else self._encode(batch)
        return TextFeatures.cat([found[number] for number in numbers.tolist()])

    def _own(self, shard: str) -> Int64[np.ndarray, " distinct"]:
        """Return the numbers of the distinct captions that this shard alone uses."""
        begin, end = self._fresh[shard]
        return begin + np.flatnonzero(~self._several[begin:end])

    def _encode(self, batch: Sequence[int]) -> dict[int, TextFeatures]:
        features = self._encoder.encode_texts([self._texts[int(self._first[number])] for number in batch])
        return {number: features[slice(row, row + 1)] for row, number in enumerate(batch)}

    def _kept(self, name: str, batch: Sequence[int], wanted: Container[int]) -> dict[int, TextFeatures]:
        """Read the wanted captions of a batch that shards share; the first process to need it makes it."""
        build(self.folder, name, lambda: self._content(name, batch))
        kept = open_built_shards(self.folder, [name])
        return {
            number: TextFeatures(**load(kept.read(f"{name}-{row:05d}", "safetensors")))
            for row, number in enumerate(batch)
            if number in wanted
        }

    def _content(self, name: str, batch: Sequence[int]) -> ShardContent:
        rows = [{k: v.contiguous() for k, v in one.tensors().items()} for one in self._encode(batch).values()]
        samples = {f"{name}-{number:05d}": {"safetensors": save(row)} for number, row in enumerate(rows)}
        return ShardContent(samples, {"captions": len(rows)})
