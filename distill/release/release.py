"""Releases: a trained model as a folder that loads anywhere, without its recipe, its training data or a network.

    model.safetensors   the weights, float32
    config.json         all that builds the model again: its config, the towers' architecture, text and frame settings
    provenance.json     where it comes from: recipe, parents' ids, metrics, seconds, versions
    README.md           the model card
    manifest.json       the seal; its id is what a gallery records

`write_release` publishes the folder with one rename, so it is whole or absent. `load` verifies every hash and gives a
`Release`: texts or videos in, features out. Axes: text, video, frame (padded to `num_frames`), dim; pixels are uint8
RGB, [frame, 3, size, size] or [frame, height, width, 3].
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from distill import __version__
from distill.catalogue import INTERACTIONS, build, parse_model_config
from distill.config import Config
from distill.data.loader import pad
from distill.data.pictures import decode_jpeg, encode_jpeg
from distill.data.sampler import Sampler
from distill.data.sampling import sample_one
from distill.data.tokens import Tokenizer
from distill.errors import ArtefactError, ExpectedError, RecipeError, VideoError, first_few
from distill.manifest import Manifest, open_sealed, seal, sealed_file
from distill.model.contract import RetrievalConfig, RetrievalModel
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.towers import UNBUILDABLE, Towers, too_large
from distill.publishing import publish, published_folder
from distill.records import json_sha256, read_json, write_json
from distill.release.card import model_card
from distill.retrieval.stored import bytes_per_video

VERSION = 1
WEIGHTS, CONFIG, PROVENANCE, CARD = "model.safetensors", "config.json", "provenance.json", "README.md"
BATCH = 64  # texts or videos encoded at once


class TextConfig(Config):
    """How captions become ids."""

    max_words: int  # start, end and padding included
    vocabulary: list[int] | None  # stock ids that a pruned token table kept; None: the stock table


class FramesConfig(Config):
    """How videos become frames."""

    sampler: Sampler
    size: int  # pixels, height = width


class ReleaseConfig(Config):
    """`config.json`: everything that building the model and feeding it takes."""

    model: dict[str, Any]  # the model's own config, with its `kind`
    architecture: dict[str, Any]  # of the towers: an open_clip model_cfg
    text: TextConfig
    frames: FramesConfig
    toolkit: str
    provenance_sha256: str

    def what_it_computes(self) -> dict[str, Any]:
        """The part that decides what comes out for given weights."""
        return self.model_dump(exclude={"toolkit", "provenance_sha256"})


def write_release(
    folder: Path,
    *,
    model: RetrievalModel,
    model_config: RetrievalConfig,
    weights: dict[str, Tensor],
    text: dict[str, Any],
    frames_config: dict[str, Any],
    provenance: dict[str, Any],
) -> Manifest:
    """Publishes `folder`, its card included. Writing the same model there again keeps it; another model is refused.

    `weights` is the full state dict in any precision, of which what `model` lacks is left out; `text` holds `max_words`
    and `vocabulary`, `frames_config` is the config of the frame set's manifest. `provenance` is plain JSON; its
    `parents` (name -> manifest id) are recorded in the manifest, and `model_card` says what else it shows.
    """
    assert weights.keys() >= model.state_dict().keys(), "weights of the model are missing"
    kept = {name: weights[name] for name in model.state_dict()}
    config = ReleaseConfig(
        model=_without_paths(model_config),
        architecture=model.clip.architecture,
        text=TextConfig(**text),
        frames=FramesConfig.model_validate({key: frames_config[key] for key in FramesConfig.model_fields}),
        toolkit=__version__,
        provenance_sha256=json_sha256(provenance),
    )
    teacher, frames = model_config.kind in INTERACTIONS, config.frames
    stored = None if teacher else bytes_per_video(model, frames.sampler.num_frames, frames.size)
    parameters, trained = (sum(tensor.numel() for tensor in table.values()) for table in (kept, weights))
    card = model_card(model_config.kind, provenance, stored, parameters=parameters, left_out=trained - parameters)
    with published_folder(folder) as part:
        manifest = _fill(part, config, kept, provenance, card)
        if folder.is_dir() and any(folder.iterdir()):
            manifest = _existing(folder, config, manifest)
            shutil.rmtree(part)
    return manifest


def _fill(
    part: Path, config: ReleaseConfig, weights: dict[str, Tensor], provenance: dict[str, Any], card: str
) -> Manifest:
    # One metadata key only: safetensors writes several in an order that changes from run to run, and so the hash.
    publish(part / WEIGHTS, save(_fp32(weights), {"format": f"retrieval-distill {__version__}"}))
    write_json(part / CONFIG, config.model_dump(mode="json"))
    write_json(part / PROVENANCE, provenance)
    publish(part / CARD, card.encode())
    manifest = Manifest(
        kind="release",
        version=VERSION,
        config={"model": config.model["kind"], "provenance_sha256": config.provenance_sha256},
        counts={"parameters": sum(tensor.numel() for tensor in weights.values())},
        parents=provenance.get("parents", {}),
        files={
            WEIGHTS: sealed_file(part / WEIGHTS, len(weights)),
            **{name: sealed_file(part / name) for name in (CONFIG, PROVENANCE, CARD)},
        },
    )
    return seal(part, manifest)


def _existing(folder: Path, config: ReleaseConfig, new: Manifest) -> Manifest:
    """The manifest of a release that stands in the way, if it is the same model."""
    found = open_sealed(folder, "release", VERSION)
    same_weights = found.files[WEIGHTS].sha256 == new.files[WEIGHTS].sha256
    if not same_weights or _read_config(folder).what_it_computes() != config.what_it_computes():
        raise ArtefactError(f"{folder}: already holds another release; delete it or choose another folder")
    return found


def _fp32(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    plain = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in weights.items()}
    broken = [name for name, tensor in plain.items() if not tensor.isfinite().all()]
    if broken:
        raise ExpectedError(
            f"not released: {first_few(broken)} not finite; the training diverged, lower its learning rate"
        )
    return plain


def _without_paths(model_config: RetrievalConfig) -> dict[str, Any]:
    """The config with the name of the towers' folder in place of its path, which means nothing elsewhere."""
    tree = model_config.model_dump(mode="json")
    tree["clip"]["model"] = Path(tree["clip"]["model"]).resolve().name
    return tree


def load(path: str | Path, device: str | torch.device = "cpu") -> "Release":
    """Opens a release on `device`, ready to encode; a damaged or foreign folder is an `ArtefactError`."""
    folder = Path(path)
    manifest = open_sealed(folder, "release", VERSION)
    unlisted = [name for name in (CONFIG, WEIGHTS) if name not in manifest.files]
    if unlisted:
        raise ArtefactError(f"{folder}: the manifest lists no {unlisted[0]}; release again")
    config = _read_config(folder)
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"{folder / WEIGHTS}: not readable as safetensors ({error}); release again") from None
    odd = too_large(config.architecture, weights)
    if odd is not None:
        raise ArtefactError(f"{folder / CONFIG}: architecture: {odd}, but no weight is so large; release again")
    model_config = parse_model_config(config.model, str(folder / CONFIG))
    freeze = model_config.clip.freeze_vision, model_config.clip.freeze_text
    with torch.random.fork_rng(devices=[]):  # building draws random weights; the caller's random stream stays put
        try:
            model = build(model_config, Towers.from_architecture(config.architecture, *freeze))
        except (*UNBUILDABLE, RecipeError) as error:
            raise ArtefactError(f"{folder / CONFIG}: not a model that can be built ({error}); release again") from None
    _load_weights(model, weights, folder / WEIGHTS)
    # `requires_grad` stays as in training: torch.matmul picks its kernel by it, and the last bits would differ.
    return Release(folder, manifest, config, model.eval().to(device))


def _read_config(folder: Path) -> ReleaseConfig:
    return read_json(folder / CONFIG, ReleaseConfig, "release again with this version")


def unfit(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """Return the names and shapes in which two state dicts differ, as words; "" if they have the same."""
    odd = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{name} {list(found[name].shape)} for {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in found and found[name].shape != tensor.shape
        ],
    }
    return "; ".join(f"{what}: {first_few(names)}" for what, names in odd.items() if names)


def _load_weights(model: RetrievalModel, found: dict[str, Tensor], path: Path) -> None:
    if problems := unfit(model.state_dict(), found):
        raise ArtefactError(f"{path}: does not fit {CONFIG} beside it: {problems}; release again")
    if broken := [name for name, tensor in found.items() if not tensor.isfinite().all()]:
        raise ArtefactError(f"{path}: {first_few(broken)} not finite; release again")
    model.load_state_dict(found)


class Release:
    """A loaded release. Features stay on the model's device; `embed_text` gives vectors on the CPU."""

    def __init__(self, path: Path, manifest: Manifest, config: ReleaseConfig, model: RetrievalModel):
        self.path, self.manifest, self.config, self.model = path, manifest, config, model
        self.tokenizer = Tokenizer(config.text.max_words, config.text.vocabulary)
        self.frames_config = config.frames.model_dump(mode="json")
        self.num_frames, self.max_words = config.frames.sampler.num_frames, config.text.max_words
        self.size = config.frames.size
        self.dim = model.clip.dim
        self.searchable = config.model["kind"] not in INTERACTIONS  # False: a teacher, which has no vectors to search
        self.pool_temperature = model.pool_temperature
        self._device = next(model.parameters()).device

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        """Features of queries or captions. What `max_words` tokens, start and end included, do not hold is not read.

        Raises `ArtefactError` where the model was converted without a tokenizer.
        """
        if not texts:
            raise ExpectedError("no texts to encode; give at least one")
        ids, known = torch.from_numpy(self.tokenizer(texts)).to(self._device), self.config.architecture["text_cfg"]
        if ids.max() >= known["vocab_size"]:
            raise ArtefactError(
                f"{self.path}: its token table has {known['vocab_size']} rows, CLIP's tokenizer gives numbers up to "
                f"{int(ids.max())}: this model takes token ids (`model.encode_text`), not text"
            )
        found = TextFeatures.cat([self.model.encode_text(part) for part in ids.split(BATCH)])
        self._check_finite(found.sentence)
        return found

    @torch.inference_mode()
    def encode_frames(
        self, pixels: UInt8[Tensor, "video frame 3 row column"], real: Bool[Tensor, "video frame"]
    ) -> VideoFeatures:
        """Features of videos that are cut to size and padded already."""
        parts = zip(pixels.split(BATCH), real.split(BATCH), strict=True)
        return VideoFeatures.cat([self.model.encode_video(p.to(self._device), r.to(self._device)) for p, r in parts])

    def encode_video(self, video: str | Path | np.ndarray) -> VideoFeatures:
        """Return the features (one row) of a video file, or of frames that are sampled already.

        A file is sampled as in training, so its features are those of its row in a gallery. Frames of
        another size than the model's are cut and pass through the same JPEG; others are taken as they are.
        """
        frames = self._cut(video) if isinstance(video, np.ndarray) else self._sample(Path(video))
        pixels, real = pad(frames, self.num_frames)
        found = self.encode_frames(torch.from_numpy(pixels)[None], torch.from_numpy(real)[None])
        self._check_finite(found.vector)
        return found

    def _check_finite(self, rows: Tensor) -> None:
        """Weights may be finite, and so large that what they give is not."""
        if not rows.isfinite().all():
            raise ArtefactError(f"{self.path}: gives a vector that is not finite; release a sound model")

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str]) -> Float[Tensor, "text dim"]:
        """Query vectors, whose inner products with a gallery's vectors rank it or choose its candidates."""
        return self.model.query_vectors(self.encode_text(texts)).cpu()

    def _sample(self, path: Path) -> UInt8[np.ndarray, "frame 3 size size"]:
        try:
            return sample_one(path, None, self.config.frames.sampler, self.size).pixels()
        except VideoError as reason:
            raise VideoError(f"{path}: {reason}") from None

    def _cut(self, frames: np.ndarray) -> UInt8[np.ndarray, "frame 3 size size"]:
        ready = frames.shape[1:] == (3, self.size, self.size)
        if frames.dtype != np.uint8 or frames.ndim != 4 or not (ready or frames.shape[-1] == 3) or not len(frames):
            raise ExpectedError(
                f"frames: {frames.dtype} {list(frames.shape)}, expected uint8 RGB [frame, height, width, 3] or "
                f"[frame, 3, {self.size}, {self.size}]"
            )
        if len(frames) > self.num_frames:
            raise ExpectedError(
                f"frames: {len(frames)}, expected at most {self.num_frames}; sample them first, or give the file's path"
            )
        if ready:
            return frames
        if frames.shape[1:3] == (self.size, self.size):
            return frames.transpose(0, 3, 1, 2)
        return np.stack([decode_jpeg(encode_jpeg(picture, self.size)) for picture in frames])
