"""A CLIP of open_clip as a teacher, without training: the cosines of its captions with its frames.

Its towers take frames as they were trained, out of a whole frame set, and read texts by their own tokenizer up to their
own context.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from distill.config import validate
from distill.data.frames import FrameSet
from distill.data.tokens import warn_of_cuts
from distill.data.videos import PackedVideo
from distill.errors import ArtefactError
from distill.labelling.labeller import CosineLabeller, framed
from distill.labelling.placing import empty_weights, placed
from distill.licence import stated_licence
from distill.model.clip import ClipModel
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.preprocessing import image_size
from distill.model.towers import HUB, ClipConfig, Towers, open_tokenizer

PREFIX = "open_clip:"


class ZeroShot(CosineLabeller):
    """Loaded towers; `name` is what follows `open_clip:`, `memory` the gigabytes of the device that they may take."""

    def __init__(self, name: str, device: torch.device, memory: float | None = None):
        config = _config(name)
        clip = ClipModel(Towers.from_config(config, None if memory is None else empty_weights)).eval()
        clip.requires_grad_(False)
        sha256, architecture = _sha256(clip), clip.architecture
        self._name, self._device = name, device
        self.clip = clip.to(device) if memory is None else placed(clip, device, memory)
        self._fit = self.clip.preprocessing.fit(image_size(architecture))
        self._tokenizer = open_tokenizer(config, architecture, self.clip.text.context)
        self.weights_sha256, self.licence = sha256, stated_licence(config.folder)
        self.id = f"{PREFIX}{Path(name).name if Path(name).is_dir() else name} sha256:{sha256}"

    @property
    def device(self) -> torch.device:
        """Where the towers compute."""
        return self._device

    def accept(self, frames: FrameSet) -> FrameSet:
        """Return frames as the vision tower takes them."""
        return frames.fitted(self._fit, f"{PREFIX}{self._name}")

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Return the sentences of captions."""
        sentence, _ = self.clip.text(torch.from_numpy(self._tokenizer(texts)).to(self.device))
        return TextFeatures(sentence=self._sound(sentence))

    def encode_videos(
        self,
        videos: Sequence[PackedVideo],
        pixels: UInt8[Tensor, "video frame 3 height width"],
        real: Bool[Tensor, "video frame"],
    ) -> VideoFeatures:
        """Return the features of frames, and their mean."""
        real = real.to(self.device)
        return framed(self._sound(self.clip.encode_frames(pixels.to(self.device), real)), real)

    def warn_of_cuts(self, texts: Sequence[str], where: str) -> None:
        """Log one line if captions have more tokens than the text tower reads."""
        warn_of_cuts(texts, self._tokenizer, where, "labels are of what is left; the teacher reads no more")

    def _sound(self, found: Tensor) -> Tensor:
        if not found.isfinite().all():
            raise ArtefactError(f"{PREFIX}{self._name}: gives a vector that is not finite; use sound weights")
        return found


def _config(name: str) -> ClipConfig:
    """Return the towers that a name stands for: a folder, hf-hub:REPO, or NAME/TAG."""
    if name.startswith(HUB) or (name and Path(name).is_dir()):
        return validate({"model": name}, ClipConfig, where=f"{PREFIX}{name}")
    model, slash, tag = name.rpartition("/")
    if not slash or not model or not tag:
        raise ArtefactError(
            f"{PREFIX}{name}: no such folder; give one with open_clip_config.json, hf-hub:REPO, or NAME/TAG, such as "
            f"PE-Core-L-14-336/meta"
        )
    return validate({"model": model, "weights": tag}, ClipConfig, where=f"{PREFIX}{name}")


def _sha256(clip: ClipModel) -> str:
    """Return the hash of all weights by their names: what decides the labels, wherever they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(clip.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
