"""A teacher at work on one frame set: features of its videos and captions, and the label rows that follow from them.

Features are float32 on the CPU, whatever the towers compute in. A teacher sees a video's frames in the order of time,
however they are packed. Axes: text, video, frame (padded to the sampler's `num_frames`).

Each distinct caption is encoded once. Where one shard uses it, it goes into a batch of that shard; captions that
several shards use go into batches of their own, whose features are kept on disk for every process. So features do not
depend on which process asks first.
"""

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from safetensors.torch import load, save
from torch import Tensor

from distill.data.building import ShardContent, build, open_built_shards
from distill.data.datasets import VideoDataset
from distill.data.frames import FrameSet
from distill.data.loader import load_batches
from distill.data.tokens import Tokenizer
from distill.errors import ArtefactError
from distill.model.contract import Teacher
from distill.model.features import TextFeatures, VideoFeatures
from distill.release.release import Release
from distill.remote import Place

Precision = Literal["fp32", "bf16"]
SHARED = "shared"  # the batches of captions that several shards use are called so


@dataclass(frozen=True, kw_only=True)
class TeacherRelease:
    """The parts of a teacher's release that labelling needs; a label set records `kind` and `id`."""

    model: Teacher
    tokenizer: Tokenizer
    kind: str  # key of the teacher in the catalogue
    id: str  # of the release's manifest

    @classmethod
    def of(cls, release: Release) -> "TeacherRelease":
        """Return the parts of a loaded release; raises `ArtefactError` if it holds a student."""
        kind = release.config.model["kind"]
        if not isinstance(release.model, Teacher):
            raise ArtefactError(
                f"{release.path}: {kind} is a student, only teachers can label; give a teacher's release"
            )
        return cls(model=release.model, tokenizer=release.tokenizer, kind=kind, id=release.manifest.id)

    def head(self) -> bytes:
        """Return the scoring head's weights as a label set stores them (safetensors)."""
        return save({name: value.cpu().contiguous() for name, value in self.model.interaction.state_dict().items()})


class Encoder:
    """Runs a teacher's towers and scoring head over one frame set, and counts the videos and captions it encoded."""

    def __init__(self, release: TeacherRelease, frames: FrameSet, precision: Precision):
        self.frames, self.tokenizer = frames, release.tokenizer
        self.model, self.interaction = release.model.eval(), release.model.interaction
        self.device = next(self.model.parameters()).device
        self.bf16 = precision == "bf16"
        self.encoded = {"videos": 0, "captions": 0}

    def decoded(self, batches: Iterable[list[int]], workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels and `real` of every batch of video numbers, decoded ahead by `workers` processes."""
        return load_batches(VideoDataset(self.frames), batches, workers)

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
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            video = self.model.encode_video(pixels.to(self.device), real.to(self.device))
        read = {name: value for name, value in video.tensors().items() if name in self.interaction.video_fields}
        return VideoFeatures(**{k: v.float() if v.is_floating_point() else v for k, v in read.items()}).to("cpu")

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Return features of one batch of captions."""
        self.encoded["captions"] += len(texts)
        return encode_texts(self.model, self.tokenizer, texts, "bf16" if self.bf16 else "fp32")

    @torch.inference_mode()
    def relevance(self, number: int, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "text frame"]:
        """Return one video's raw frame scores for each of its captions; frames stand as they are packed."""
        same = video[torch.zeros(len(text), dtype=torch.int64)]  # the one video beside each of its captions
        relevance = self.interaction.relevance(text.to(self.device), same.to(self.device)).cpu()
        return relevance[:, self.order(number).argsort()]

    def order(self, number: int) -> Int64[Tensor, " frame"]:
        """Return the places of a video's frames in the order of time, padding last."""
        timestamps = self.frames.videos[number].timestamps
        places = sorted(range(len(timestamps)), key=timestamps.__getitem__)
        return torch.tensor([*places, *range(len(places), self.frames.num_frames)])


@torch.inference_mode()
def encode_texts(model: Teacher, tokenizer: Tokenizer, texts: Sequence[str], precision: Precision) -> TextFeatures:
    """Return a teacher's features of one batch of captions, float32 on the CPU."""
    device = next(model.parameters()).device
    ids = torch.from_numpy(tokenizer(texts)).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        text = model.encode_text(ids)
    return TextFeatures(**{name: value.float() for name, value in text.tensors().items()}).to("cpu")


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

    def features(self, texts: Sequence[str]) -> TextFeatures | None:
        """Return features of one shard's captions, one row each; encodes the batches they need. None of no captions."""
        if not texts:
            return None
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
