"""Who labels: gives features of captions and of videos, and the scoring head that reads them.

`TeacherRelease` (teacher.py) runs a teacher that was trained here, `Embedder` (embedder.py) a model of
sentence-transformers, and `GivenVectors` (given.py) reads vectors that were computed elsewhere. All that a label job
asks of them stands here.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, UInt8
from safetensors.torch import save
from torch import Tensor

from distill.catalogue import INTERACTIONS
from distill.data.frames import FrameSet
from distill.data.labels import TeacherAbout
from distill.data.pictures import Fit
from distill.data.videos import PackedVideo
from distill.model.contract import Interaction
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.similarity import mean_pool, unit


class Labeller(ABC):
    """Gives features on `device`; `kind` is the scoring head's in the catalogue, `id` says whose labels they are."""

    kind: str
    id: str
    weights_sha256: str | None = None  # None: what labels is known by its id alone
    licence: str | None = None  # that its folder states
    looks: bool = True  # False: asks for no pixels
    frame_vectors: bool = True  # False: knows videos as a whole, so its labels have no relevance

    def accept(self, frames: FrameSet) -> FrameSet:
        """Return frames as it looks at them; here those of a whole set are cut to squares, as large as they are kept.

        Raises `ArtefactError` for frames that it cannot take.
        """
        return frames.fitted(Fit(frames.size), "labels") if frames.whole and self.looks else frames

    @property
    @abstractmethod
    def interaction(self) -> Interaction:
        """The scoring head, in evaluation mode."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where features are computed."""

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Return features of one batch of captions."""

    @abstractmethod
    def encode_videos(
        self,
        videos: Sequence[PackedVideo],
        pixels: UInt8[Tensor, "video frame 3 height width"],
        real: Bool[Tensor, "video frame"],
    ) -> VideoFeatures:
        """Return features of one batch of videos, whose frames stand in the order of time, padding last."""

    @abstractmethod
    def warn_of_cuts(self, texts: Sequence[str], where: str) -> None:
        """Log one line if captions are longer than is read of them."""

    def about(self) -> TeacherAbout:
        """Return what a label set records of its teacher."""
        return TeacherAbout(id=self.id, kind=self.kind, weights_sha256=self.weights_sha256, licence=self.licence)

    def head(self) -> bytes:
        """Return the scoring head's weights as a label set stores them (safetensors)."""
        return save({name: value.cpu().contiguous() for name, value in self.interaction.state_dict().items()})


class CosineLabeller(Labeller):
    """A labeller that was not trained here, whose scores are cosines."""

    kind = "cosine"

    @property
    def interaction(self) -> Interaction:
        """The cosine."""
        return INTERACTIONS[self.kind]().eval()


def framed(frames: Float[Tensor, "video frame dim"], real: Bool[Tensor, "video frame"]) -> VideoFeatures:
    """Return features of videos that are known by their frames: the vector is the mean of unit frame vectors, of
    length 1."""
    return VideoFeatures(vector=unit(mean_pool(frames, real)), frames=frames, real=real)


def in_time(timestamps: Sequence[float]) -> list[int]:
    """Return the places of a video's frames in the order of time; equal times keep the order in which they stand."""
    return sorted(range(len(timestamps)), key=timestamps.__getitem__)
