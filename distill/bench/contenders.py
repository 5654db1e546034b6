"""The contenders of the bench of searches: releases on the videos and captions of a frame set, or untrained models on
synthetic features."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from distill import catalogue
from distill.bench.operations import KINDS, Operations, second_look_operations
from distill.bench.synthetic import Sizes, Synthetic, World
from distill.catalogue import INTERACTIONS, parse_model_config
from distill.data.frames import FrameSet
from distill.evaluation.evaluate import encode_texts, encode_videos, texts_of, video_numbers
from distill.model.contract import RetrievalModel
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.reading import ScorePart
from distill.model.second_look import SecondLook, second_look
from distill.model.similarity import unit
from distill.model.towers import Towers
from distill.ranking.executor import of_part, of_parts
from distill.ranking.two_stage import Parts
from distill.release.release import Release
from distill.retrieval.approximate import Approximate, build
from distill.retrieval.columns import row_bytes
from distill.retrieval.frames import FLOAT16, INT8, Frames, encode
from distill.retrieval.products import Products
from distill.retrieval.stored import FLOAT_BYTES, Tokens, arrays, beside, read_beside, stored, tensors
from distill.retrieval.upkeep import LEAST
from distill.retrieval.vectors import Vectors

TEMPORAL = {"layers": 1, "init": "normal"}  # the features are drawn, so the towers may be tiny


LOOK = SecondLook(temperature=0.1, t2v=1.0, v2t=0.0)  # as the demo's releases choose it, or nearly


@dataclass(frozen=True)
class StoredFrames:
    """The frames of all videos as a gallery stores them, and the vectors beside them."""

    frames: Frames
    vectors: Float[Tensor, "video dim"]

    def tensors(self) -> Mapping[str, Tensor]:
        """Return them as they are stored."""
        return tensors(self.frames.columns)

    def scored(self, rows: Int64[Tensor, " row"], score: Callable[[Mapping[str, Tensor], Tensor], Tensor]) -> Tensor:
        """Score rows where they are stored, as a gallery does."""
        return score(self._fields, rows)

    def __getitem__(self, rows: Int64[Tensor, " row"]) -> VideoFeatures:
        return read_beside(self._fields, rows)

    @property
    def _fields(self) -> Mapping[str, Tensor]:
        return beside(arrays({"vectors": self.vectors}), self.frames.columns)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model, the features of a gallery, and those of queries."""

    name: str
    model: RetrievalModel
    operations: Operations  # by the formula of its kind
    text: TextFeatures
    vectors: Float[Tensor, "video dim"] | None  # of the first stage, or the only ones; None: a teacher has none
    exact: VideoFeatures | Tokens | None  # read by an exhaustive search; None: the model has one vector a video
    tokens: Tokens | StoredFrames | None  # read by a second stage
    index: Approximate | None  # may choose the candidates of a second stage
    stored: tuple[int, int]  # bytes a video: vectors (of a teacher all its features), tokens
    videos: int
    look: ScorePart | None = None  # the second stage is a second look with this score

    def similarity(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "text video"]:
        """Return the full score."""
        return self.model.similarity(text, video) if self.look is None else self.look.score(text, video)

    @property
    def score_parts(self) -> tuple[ScorePart, ...]:
        """The parts of the full score; none if it is no sum of such."""
        return self.model.score_parts() if self.look is None else (self.look,)

    def parts(self, text: TextFeatures) -> Parts:
        """Return the score of the second stage where texts ask."""
        if isinstance(self.tokens, StoredFrames):
            return [(of_part(part, text, self.tokens), part.of_best) for part in self.score_parts]
        assert self.tokens is not None, "a second stage reads what is stored"
        return of_parts(self.model, text, self.tokens.only)


@torch.inference_mode()
def synthetic(videos: int, queries: int, sizes: Sizes, world: World) -> tuple[list[Contender], Int[Tensor, " text"]]:
    """Return all models on a gallery of drawn features, and the video that each query describes."""
    drawn = Synthetic(sizes, world)
    plots = drawn.plots(videos)
    video, text = drawn.videos(plots), drawn.texts(plots[:queries])
    models: list[tuple[str, dict[str, Any]]] = [
        ("CLIP4Clip, TeachCLIP", {"kind": "clip4clip"}),
        ("X-CLIP", {"kind": "xclip", "words": sizes.words, "frames": sizes.frames, "temporal": TEMPORAL}),
        ("TS2-Net", {"kind": "ts2net", "frames": sizes.frames, "shift_layers": 0, "temporal": TEMPORAL}),
        ("X-Pool", {"kind": "xpool"}),
        ("GLSCL by coarse vector", {"kind": "glscl", "index_by": "coarse", "temporal": TEMPORAL}),
        ("GLSCL by concepts", {"kind": "glscl", "index_by": "concepts", "temporal": TEMPORAL}),
        ("EERCF", {"kind": "eercf", "frames": sizes.frames, "patches": False, "temporal": TEMPORAL}),
    ]
    contenders = [contender(name, *built(raw, sizes, world.seed), text, video, sizes) for name, raw in models]
    with_patches = {"kind": "eercf", "frames": sizes.frames, "temporal": TEMPORAL}
    config, model = built(with_patches, sizes, world.seed)
    assert video.frames is not None
    others = tuple(name for name in model.rerank_fields if name != "patches")
    tokens = Tokens(stored(video, others) | {"patches": drawn.patches(plots, video.frames)})
    contenders.append(contender("EERCF with patches", config, model, text, video, sizes, tokens))
    contenders += [looking_again(contenders[0], kind, video, sizes) for kind in (INT8, FLOAT16)]
    return contenders, torch.arange(queries)


def looking_again(one: Contender, kind: str, video: VideoFeatures, sizes: Sizes) -> Contender:
    """Return a model of one vector with a second look at its frames, stored in a kind of `retrieval.frames.KINDS`."""
    assert one.vectors is not None and video.frames is not None and video.real is not None
    frames = Frames(encode(unit(video.frames).numpy(), video.real.numpy(), kind))
    return replace(
        one,
        name=f"TeachCLIP, second look at {kind} frames",
        operations=second_look_operations(sizes),
        exact=_only(replace(video, vector=one.vectors), ("frames", "real")),
        tokens=StoredFrames(frames, one.vectors),
        index=_index(one.vectors) if len(one.vectors) >= LEAST else None,
        stored=(one.stored[0], row_bytes(frames.columns)),
        look=second_look(LOOK.temperature, LOOK.t2v),
    )


def built(raw: dict[str, Any], sizes: Sizes, seed: int) -> tuple[Any, RetrievalModel]:
    """Return the checked config of a model and the model, on tiny towers with features of `sizes`."""
    architecture = {
        "embed_dim": sizes.dim,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 1, "head_width": 32},
        "text_cfg": {"context_length": sizes.words, "vocab_size": 64, "width": 64, "heads": 1, "layers": 1},
    }
    config = parse_model_config({"clip": {"model": "none"}} | raw, "bench")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config, catalogue.build(config, Towers.from_architecture(architecture)).eval()


@torch.inference_mode()
def of_releases(releases: Sequence[Release], frames: FrameSet) -> tuple[list[Contender], Int[Tensor, " text"]]:
    """Return releases with the features of a frame set's videos and captions, and the video of each caption.

    Raises `ArtefactError` where the frames were not packed as the release was trained.
    """
    contenders = []
    for release in releases:
        fitted = release.accept(frames)
        model, config = release.model, parse_model_config(release.config.model, str(release.path))
        text = encode_texts(model, texts_of(fitted), release.tokenizer)
        video = encode_videos(model, fitted)
        sizes = Sizes(
            dim=text.sentence.shape[1],
            frames=release.num_frames,
            words=text.words.shape[1] if text.words is not None else 0,
            patches=video.patches.shape[2] if video.patches is not None else 0,
            concepts=video.concepts.shape[1] if video.concepts is not None else 0,
        )
        contenders.append(contender(f"{KINDS[config.kind][0]} ({release.path})", config, model, text, video, sizes))
    return contenders, video_numbers(frames)


def contender(
    name: str,
    config: Any,
    model: RetrievalModel,
    text: TextFeatures,
    video: VideoFeatures,
    sizes: Sizes,
    tokens: Tokens | None = None,
) -> Contender:
    """Return a model with its features; `tokens` replace those of `video`, if given."""
    teacher = INTERACTIONS.get(config.kind)
    vectors, exact, index, token_bytes = None, None, None, 0
    if teacher is not None:
        exact = _only(video, teacher.video_fields)
        vector_bytes = row_bytes(arrays(exact.tensors()))
    else:
        vectors = model.index_vectors(video)
        vector_bytes = vectors.shape[1] * FLOAT_BYTES
    if model.rerank_fields:
        exact = tokens or _only(video, model.rerank_fields)
        tokens = tokens or Tokens(stored(video, model.rerank_fields))
        token_bytes = row_bytes(arrays(tokens.stored))
        index = _index(vectors) if vectors is not None and len(vectors) >= LEAST else None
    return Contender(
        name=name,
        model=model,
        operations=KINDS[config.kind][1](sizes, config),
        text=text,
        vectors=vectors,
        exact=exact,
        tokens=tokens,
        index=index,
        stored=(vector_bytes, token_bytes),
        videos=len(video),
    )


def _index(vectors: Tensor) -> Approximate:
    """Return an approximate index; its file is deleted, but stays mapped."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "index.safetensors"
        stored = Vectors({"vectors": vectors.numpy()})
        facts = build(path, stored.__getitem__, Products(stored).top, np.arange(len(vectors)))
        return Approximate(path, facts | {"covers": len(vectors)}, vectors.shape[1])


def _only(video: VideoFeatures, names: tuple[str, ...]) -> VideoFeatures:
    return VideoFeatures(**{name: value for name, value in video.tensors().items() if name in ("vector", *names)})
