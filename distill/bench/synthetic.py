"""Synthetic features of videos and captions, with the sizes of real models, for galleries of any size.

How much a two-stage search finds depends on how well its coarse score predicts the full one, so the features must not
be noise. Every video has a scene, which all its frames show, and three shots, which follow one another; scenes and
shots are topics: directions that are similar within a cluster. A caption describes the scene and one or two shots. A
mean over frames dilutes those shots, and scores that look at frames, patches or concepts find them again. Videos also
hold much that no caption describes (the same in all frames), and some captions say little. All texts share one
direction, and all videos another (CLIP's modality gap).

The parameters were chosen so that untrained scoring heads reach, on a gallery of 1,000 videos, about the figures that
are published for trained models on MSR-VTT 1k-A. R@1 and R@10 here, and published: the mean of the frames 46 and 83
(CLIP4Clip 44.5 and 81.6), EERCF 50 and 83 (R@1 47.8), GLSCL 58 and 84 (48.1 and 82.3), X-CLIP 52 and 85 (46.1 and
83.1). A caption's coarse scores correlate over videos with the full ones with 0.97 (EERCF), 0.94 (GLSCL) and 0.90
(X-CLIP). Everything follows from the seed.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from distill.log import progress
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.similarity import mean_pool, unit

STEP = 8  # videos whose patches are drawn at once, so that they fit into the processor's cache
BANK = 4096  # vectors of noise that patches share; drawing noise for each would take minutes


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of features; by default those of published ViT-B/32 models on short videos."""

    dim: int = 512
    frames: int = 12
    words: int = 32
    patches: int = 49  # of a frame
    concepts: int = 8


@dataclass(frozen=True, kw_only=True)
class World:
    """The lengths of the parts whose sum is a feature: they decide how similar features are."""

    seed: int = 0
    clusters: int = 50
    topics: int = 600
    cluster: float = 0.8  # of a topic's cluster beside its own direction
    shots: int = 3
    shot: float = 0.5  # of a frame's shot beside its scene
    gap: float = 1.0  # the direction of all videos, and that of all texts
    video_noise: float = 1.6  # the same in all frames of a video
    frame_noise: float = 1.8
    patch_noise: float = 2.0
    caption_noise: float = 2.2  # in the sentence, for a caption of median clarity
    word_noise: float = 5.0
    clarity: float = 0.9  # spread of the logarithm of the noise in captions
    concept_base: float = 3.0  # the part of a concept that is the same in every video and text
    concept_noise: float = 6.0
    context: float = 0.5  # part of the video's mean in a contextual frame
    length: float = 10.0  # of sentences and frames before they are normalised, as in CLIP


class Synthetic:
    """A world of topics, from which the features of videos and captions are drawn."""

    def __init__(self, sizes: Sizes, world: World):
        self.sizes, self.world = sizes, world
        self.shot_of_frame = torch.arange(sizes.frames) * world.shots // sizes.frames
        self.generator = torch.Generator().manual_seed(world.seed)
        clusters = unit(self._drawn(world.clusters, sizes.dim))
        of_topic = torch.randint(world.clusters, (world.topics,), generator=self.generator)
        directions = unit(self._drawn(world.topics, sizes.dim))
        self.topics = unit(world.cluster * clusters[of_topic] + directions)
        self.video_gap, self.text_gap = unit(self._drawn(2, sizes.dim)).unbind(0)
        bases = unit(self._drawn(1, sizes.dim)) * 1.7 + unit(self._drawn(sizes.concepts, sizes.dim))
        self.concept_bases = unit(bases)  # their cosines are 0.75, as between vectors drawn from [0, 1)
        self.attention = torch.rand(sizes.concepts, world.topics, generator=self.generator)  # of concepts to topics

    def _drawn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def _noise(self, *shape: int) -> Tensor:
        """Draw vectors of about unit length."""
        return self._drawn(*shape) * shape[-1] ** -0.5

    def plots(self, videos: int) -> Int[Tensor, "video part"]:
        """Draw the topics of every video: its scene, then its shots."""
        return torch.randint(self.world.topics, (videos, 1 + self.world.shots), generator=self.generator)

    def videos(self, plots: Int[Tensor, "video part"]) -> VideoFeatures:
        """Return the features of videos with these topics, without patches."""
        world, sizes = self.world, self.sizes
        content = self.topics[plots[:, :1]] + world.shot * self.topics[plots[:, 1:][:, self.shot_of_frame]]
        content = content + world.video_noise * self._noise(len(plots), 1, sizes.dim)
        content = content + world.frame_noise * self._noise(len(plots), sizes.frames, sizes.dim)
        frames = world.length * unit(world.gap * self.video_gap + content)
        mean = frames.mean(1, keepdim=True)
        contextual = (1 - world.context) * frames + world.context * mean
        real = torch.ones(len(plots), sizes.frames, dtype=torch.bool)
        described = torch.ones(plots.shape).index_fill_(1, torch.arange(1, plots.shape[1]), world.shot)
        return VideoFeatures(
            vector=mean_pool(contextual, real),
            frames=frames,
            contextual=contextual,
            concepts=self._concepts(plots, described, torch.ones(len(plots), 1)),
            real=real,
        )

    def texts(self, plots: Int[Tensor, "text part"]) -> TextFeatures:
        """Return the features of one caption for each video: of its scene and one or two of its shots."""
        world, sizes = self.world, self.sizes
        order = torch.rand(len(plots), world.shots, generator=self.generator).argsort(1)
        number = torch.randint(1, 3, (len(plots), 1), generator=self.generator)
        described = torch.cat([torch.ones(len(plots), 1), (order < number).float()], 1)
        content = torch.einsum("tp,tpd->td", described, self.topics[plots])
        unclear = (world.clarity * self._drawn(len(plots), 1)).exp()
        sentence = (
            world.gap * self.text_gap + content + world.caption_noise * unclear * self._noise(len(plots), sizes.dim)
        )
        of_word = torch.multinomial(described, sizes.words, replacement=True, generator=self.generator)
        words = self.topics[plots.gather(1, of_word)] + 0.5 * content.unsqueeze(1)
        words = world.gap * self.text_gap + words + world.word_noise * unclear.unsqueeze(1) * self._noise(*words.shape)
        return TextFeatures(
            sentence=world.length * unit(sentence),
            words=world.length * unit(words),
            concepts=self._concepts(plots, described, unclear),
        )

    def _concepts(
        self,
        plots: Int[Tensor, "sample part"],
        described: Float[Tensor, "sample part"],
        unclear: Float[Tensor, "sample 1"],
    ) -> Float[Tensor, "sample concept dim"]:
        """Return the concepts, each of which attends to some topics more than to others."""
        attended = F.normalize(self.attention[:, plots] * described, dim=-1)  # concept sample part
        content = torch.einsum("csp,spd->scd", attended, self.topics[plots])
        noise = self.world.concept_noise * unclear.unsqueeze(1) * self._noise(*content.shape)
        return unit(self.world.concept_base * self.concept_bases + content + noise)

    def patches(
        self, plots: Int[Tensor, "video part"], frames: Float[Tensor, "video frame dim"]
    ) -> Float[Tensor, "video frame patch dim"]:
        """Return the patches of every frame, float16: a third show its shot, a third its scene, the rest only noise."""
        world, sizes = self.world, self.sizes
        bank = world.patch_noise * self._noise(BANK, sizes.dim)
        shown = (3 * torch.arange(sizes.patches) // sizes.patches).clamp(max=2)
        gap = world.gap * self.video_gap
        patches = torch.empty(*frames.shape[:2], sizes.patches, sizes.dim, dtype=torch.float16)
        for start in progress(range(0, len(plots), STEP), "draw patches"):
            part = plots[start : start + STEP]
            scenes, shots = (
                self.topics[part[:, :1]].expand(-1, sizes.frames, -1),
                self.topics[part[:, 1:][:, self.shot_of_frame]],
            )
            content = torch.stack([scenes, shots, torch.zeros_like(shots)], 2)[:, :, shown]
            shared = gap + 0.5 * frames[start : start + STEP].unsqueeze(2) / world.length
            number = torch.randint(BANK, content.shape[:3], generator=self.generator)
            patches[start : start + STEP] = world.length * unit(content + shared + bank[number])
        return patches
