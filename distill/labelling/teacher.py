"""A teacher at work on one frame set: features of its videos and captions, and the label rows that follow from them.

Features are float32 on the CPU, whatever the towers compute in. A teacher sees a video's frames in the order of time,
however they are packed. Axes: text, video, frame (padded to the sampler's `num_frames`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from safetensors.torch import save
from torch import Tensor

from distill.data.frames import FrameSet
from distill.data.loader import VideoDataset, load_batches
from distill.data.tokens import Tokenizer
from distill.errors import ArtefactError
from distill.model.contract import Teacher
from distill.model.features import TextFeatures, VideoFeatures
from distill.release.release import Release

Precision = Literal["fp32", "bf16"]


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

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Return features of one batch of captions."""
        self.encoded["captions"] += len(texts)
        ids = torch.from_numpy(self.tokenizer(texts)).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            text = self.model.encode_text(ids)
        return TextFeatures(**{name: value.float() for name, value in text.tensors().items()}).to("cpu")

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
