"""Features of videos and captions that nobody filmed, with sizes of real models: a gallery of any size in a minute.

How much a search in two stages finds depends on how well its coarse score foretells the full one, so features must not
be noise. Here every video has a scene, which all its frames show, and three shots, which follow one another; scenes and
shots are topics, directions that are alike within a cluster. A caption tells of the scene and of one or two shots:
a mean over frames dilutes what it tells of, and scores that look at frames, patches or concepts find it again. Videos
hold much that nobody tells (the same in all frames), and some captions say little. Texts and videos also have a
direction each that all share (CLIP's modality gap).

The parameters were set so that scoring heads as they are before training do, on a gallery of 1,000 videos, about what
trained models are published with on MSR-VTT 1k-A. R@1 and R@10 here, and published: the mean of the frames 46 and 83
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

STEP = 8  # videos whose patches are drawn at once: they fit into the processor's cache
BANK = 4096  # vectors of noise that patches share: to draw gigabytes of it would take minutes


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Those of ViT-B/32 models on short videos, as published."""

    dim: int = 512
    frames: int = 12
    words: int = 32
    patches: int = 49  # of a frame
    concepts: int = 8


@dataclass(frozen=True, kw_only=True)
class World:
    """How alike things are: lengths of parts beside others, before their sum is brought to its own length."""

    seed: int = 0
    clusters: int = 50
    topics: int = 600
    cluster: float = 0.8  # of a topic's cluster beside its own direction
    shots: int = 3
    shot: float = 0.5  # of a frame's shot beside its scene
    gap: float = 1.0  # what all videos share, and all texts
    video_noise: float = 1.6  # the same in all frames of a video
    frame_noise: float = 1.8
    patch_noise: float = 2.0
    caption_noise: float = 2.2  # in the sentence, at a caption of common clarity
    word_noise: float = 5.0
    clarity: float = 0.9  # spread of the logarithm of the noise in captions
    concept_base: float = 3.0  # what a concept has in every video and every text
    concept_noise: float = 6.0
    context: float = 0.5  # of the video's mean in a frame that has seen the others
    length: float = 10.0  # of sentences and frames before they are normalised, as CLIP's


class Synthetic:
    """A world of topics, from which videos and the captions of some of them are drawn."""

    def __init__(self, sizes: Sizes, world: World):
        self.sizes, self.world = sizes, world
        self.generator = torch.Generator().manual_seed(world.seed)
        clusters = unit(self._drawn(world.clusters, sizes.dim))
        of_topic = torch.randint(world.clusters, (world.topics,), generator=self.generator)
        own = unit(self._drawn(world.topics, sizes.dim))
        self.topics = unit(world.cluster * clusters[of_topic] + own)
        self.video_gap, self.text_gap = unit(self._drawn(2, sizes.dim)).unbind(0)
        bases = unit(self._drawn(1, sizes.dim)) * 1.7 + unit(self._drawn(sizes.concepts, sizes.dim))
        self.concept_bases = unit(bases)  # cosines of 0.75, as of queries drawn from 0 to 1
        self.attention = torch.rand(sizes.concepts, world.topics, generator=self.generator)  # of concepts to topics

    def _drawn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def _noise(self, *shape: int) -> Tensor:
        """Of about unit length."""
        return self._drawn(*shape) * shape[-1] ** -0.5

    def plots(self, videos: int) -> Int[Tensor, "video part"]:
        """The topics of every video: its scene, then its shots."""
        return torch.randint(self.world.topics, (videos, 1 + self.world.shots), generator=self.generator)

    def videos(self, plots: Int[Tensor, "video part"]) -> VideoFeatures:
        """Without patches."""
        world, sizes = self.world, self.sizes
        shot = torch.arange(sizes.frames) * world.shots // sizes.frames
        content = self.topics[plots[:, :1]] + world.shot * self.topics[plots[:, 1:][:, shot]]
        content = content + world.video_noise * self._noise(len(plots), 1, sizes.dim)
        content = content + world.frame_noise * self._noise(len(plots), sizes.frames, sizes.dim)
        frames = world.length * unit(world.gap * self.video_gap + content)
        mean = frames.mean(1, keepdim=True)
        contextual = (1 - world.context) * frames + world.context * mean
        real = torch.ones(len(plots), sizes.frames, dtype=torch.bool)
        told = torch.ones(plots.shape).index_fill_(1, torch.arange(1, plots.shape[1]), world.shot)
        return VideoFeatures(
            vector=mean_pool(contextual, real),
            frames=frames,
            contextual=contextual,
            concepts=self._concepts(plots, told, torch.ones(len(plots), 1)),
            real=real,
        )

    def texts(self, plots: Int[Tensor, "text part"]) -> TextFeatures:
        """One caption for each plot: of its scene and one or two of its shots."""
        world, sizes = self.world, self.sizes
        order = torch.rand(len(plots), world.shots, generator=self.generator).argsort(1)
        number = torch.randint(1, 3, (len(plots), 1), generator=self.generator)
        told = torch.cat([torch.ones(len(plots), 1), (order < number).float()], 1)
        content = torch.einsum("tp,tpd->td", told, self.topics[plots])
        unclear = (world.clarity * self._drawn(len(plots), 1)).exp()
        sentence = (
            world.gap * self.text_gap + content + world.caption_noise * unclear * self._noise(len(plots), sizes.dim)
        )
        of_word = torch.multinomial(told, sizes.words, replacement=True, generator=self.generator)
        words = self.topics[plots.gather(1, of_word)] + 0.5 * content.unsqueeze(1)
        words = world.gap * self.text_gap + words + world.word_noise * unclear.unsqueeze(1) * self._noise(*words.shape)
        return TextFeatures(
            sentence=world.length * unit(sentence),
            words=world.length * unit(words),
            concepts=self._concepts(plots, told, unclear),
        )

    def _concepts(
        self,
        plots: Int[Tensor, "sample part"],
        told: Float[Tensor, "sample part"],
        unclear: Float[Tensor, "sample 1"],
    ) -> Float[Tensor, "sample concept dim"]:
        """Every concept attends to some topics more than to others."""
        attended = F.normalize(self.attention[:, plots] * told, dim=-1)  # concept sample part
        content = torch.einsum("csp,spd->scd", attended, self.topics[plots])
        noise = self.world.concept_noise * unclear.unsqueeze(1) * self._noise(*content.shape)
        return unit(self.world.concept_base * self.concept_bases + content + noise)

    def patches(
        self, plots: Int[Tensor, "video part"], frames: Float[Tensor, "video frame dim"]
    ) -> Float[Tensor, "video frame patch dim"]:
        """Of every frame, float16: a third show its shot, a third its scene, the rest nothing that is told."""
        world, sizes = self.world, self.sizes
        bank = world.patch_noise * self._noise(BANK, sizes.dim)
        shot = torch.arange(sizes.frames) * world.shots // sizes.frames
        shown = (3 * torch.arange(sizes.patches) // sizes.patches).clamp(max=2)
        gap = world.gap * self.video_gap
        patches = torch.empty(*frames.shape[:2], sizes.patches, sizes.dim, dtype=torch.float16)
        for start in progress(range(0, len(plots), STEP), "draw patches"):
            part = plots[start : start + STEP]
            scenes, shots = self.topics[part[:, :1]].expand(-1, sizes.frames, -1), self.topics[part[:, 1:][:, shot]]
            content = torch.stack([scenes, shots, torch.zeros_like(shots)], 2)[:, :, shown]
            seen = gap + 0.5 * frames[start : start + STEP].unsqueeze(2) / world.length
            number = torch.randint(BANK, content.shape[:3], generator=self.generator)
            patches[start : start + STEP] = world.length * unit(content + seen + bank[number])
        return patches
