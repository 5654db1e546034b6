"""Releases: a trained model as a folder that loads anywhere, without its recipe, its training data or a network.

    model.safetensors   the weights, float32
    config.json         all that builds the model again: its config, the towers' architecture, text and frame settings
    provenance.json     where it comes from: recipe, teachers, parents' ids, metrics, cost, versions
    README.md           the model card
    .eval_results/      the metrics of a tested model once more, as the Hub reads them
    tokenizer.json      the tokenizer, unless it is CLIP's
    modules.json        for sentence-transformers, with release_module.py: of models that store one vector a video
    manifest.json       the seal; its id is what a gallery records
    onnx/               graphs of an export, with a seal of their own (distill/onnx/exported.py)

`writing.write_release` publishes the folder with one rename, so it is whole or absent. `load` verifies every hash but
the card's and gives a `Release`: texts or videos in, features out. Axes: text, video, frame (padded to `num_frames`),
dim; pixels are uint8 RGB, [frame, 3, size, size] or [frame, height, width, 3].
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from distill.catalogue import INTERACTIONS, build, parse_model_config
from distill.config import Config
from distill.data.frames import FrameSet, Size
from distill.data.jsontokens import FILE, JsonTokenizer, read_content
from distill.data.padding import pad
from distill.data.pictures import decode_jpeg, encode_jpeg
from distill.data.sampler import Sampler
from distill.data.sampling import sample_one
from distill.data.tokens import TextTokenizer, Tokenizer
from distill.errors import ArtefactError, ExpectedError, RecipeError, VideoError, first_few
from distill.fetching import local_folder
from distill.licence import CARD
from distill.manifest import Manifest, open_sealed
from distill.model.architecture import UNBUILDABLE, check_architecture, spelling_of, token_rows, too_large
from distill.model.contract import RetrievalModel
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.preprocessing import image_size, preprocessing_of
from distill.model.second_look import SecondLook
from distill.model.towers import Towers
from distill.onnx.exported import check_export
from distill.records import read_json
from distill.remote import Place

VERSION, READ = 2, (1, 2)  # written, and read: 1 had no second look
WEIGHTS, CONFIG, PROVENANCE = "model.safetensors", "config.json", "provenance.json"
EVAL_RESULTS = ".eval_results/retrieval.yaml"
BATCH = 64  # texts or videos encoded at once


class TextConfig(Config):
    """How captions become ids."""

    max_words: int  # start, end and padding included
    vocabulary: list[int] | None  # stock ids that a pruned token table kept; None: the stock table


class FramesConfig(Config):
    """How videos become frames."""

    sampler: Sampler
    size: Size  # pixels, height = width; of the shorter side, at most, where frames are whole
    whole: bool = False  # frames keep their shape until they are fitted to the tower

    def settings(self) -> dict[str, Any]:
        """Return what a frame set's manifest says of the same."""
        found = self.model_dump(mode="json")
        return found if self.whole else {key: found[key] for key in found if key != "whole"}


class ReleaseConfig(Config):
    """`config.json`: everything that building the model and feeding it takes."""

    model: dict[str, Any]  # the model's own config, with its `kind`
    architecture: dict[str, Any]  # of the towers: an open_clip model_cfg
    text: TextConfig
    frames: FramesConfig
    second_look: SecondLook | None = None  # chosen on validation
    toolkit: str
    provenance_sha256: str

    def what_it_computes(self) -> dict[str, Any]:
        """The part that decides what comes out for given weights."""
        return self.model_dump(exclude={"toolkit", "provenance_sha256"})


def load(path: str | Place, device: str | torch.device = "cpu") -> "Release":
    """Opens a release on `device`, ready to encode: a folder, or one of the Hub, `hf:OWNER/NAME@REVISION`.

    A damaged or foreign folder is an `ArtefactError`. Its card may have been edited: nothing is computed of it, and
    whoever publishes a release has to add a licence.
    """
    folder = local_folder(path, "release", *READ)
    manifest = open_sealed(folder, "release", *READ, but=(CARD,))
    unlisted = [name for name in (CONFIG, WEIGHTS) if name not in manifest.files]
    if unlisted:
        raise ArtefactError(f"{folder}: the manifest lists no {unlisted[0]}; release again")
    check_export(folder, manifest.id)
    config = read_config(folder)
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"{folder / WEIGHTS}: not readable as safetensors ({error}); release again") from None
    model_config = parse_model_config(config.model, str(folder / CONFIG))
    with torch.random.fork_rng(devices=[]):  # building draws random weights; the caller's random stream stays put
        try:
            # Checked before anything is built of it: a name of timm's may stand for something on the Hub.
            architecture = check_architecture(config.architecture, where="architecture")
            side, known = image_size(architecture), config.frames
            if known.size < side or (known.size > side and not known.whole):
                raise RecipeError(f"frames.size: {known.size}, but the tower takes pictures of {side} pixels")
            odd = too_large(architecture, weights)
            if odd is not None:
                raise RecipeError(f"architecture: {odd}, but no weight is so large")
            model = build(model_config, Towers.from_architecture(architecture, **model_config.clip.trained))
        except (*UNBUILDABLE, RecipeError) as error:
            raise ArtefactError(f"{folder / CONFIG}: not a model that can be built ({error}); release again") from None
    config = config.model_copy(update={"architecture": architecture})
    _load_weights(model, weights, folder / WEIGHTS)
    # `requires_grad` stays as in training: torch.matmul picks its kernel by it, and the last bits would differ.
    return Release(folder, manifest, config, model.eval().to(device))


def read_config(folder: Path) -> ReleaseConfig:
    """Read `config.json`, or raise `ArtefactError`."""
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


def _tokenizer(folder: Path, config: ReleaseConfig) -> TextTokenizer:
    spelling = spelling_of(config.architecture)
    if spelling is None:
        return Tokenizer(config.text.max_words, config.text.vocabulary)
    rows = token_rows(config.architecture)
    return JsonTokenizer(config.text.max_words, read_content(folder), spelling, str(folder / FILE), rows)


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
        self.tokenizer = _tokenizer(path, config)
        self.frames_config = config.frames.settings()
        self.num_frames, self.max_words = config.frames.sampler.num_frames, config.text.max_words
        preprocessing, self.size = preprocessing_of(config.architecture), image_size(config.architecture)
        self._whole_fit = preprocessing.fit(self.size)
        self.fit = self._whole_fit if config.frames.whole else None
        self.dim = model.clip.dim
        self.searchable = config.model["kind"] not in INTERACTIONS  # False: a teacher, which has no vectors to search
        self.pool_temperature = model.pool_temperature
        self.second_look = config.second_look  # None: it has none

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def accept(self, frames: FrameSet) -> FrameSet:
        """Return frames as the tower takes them: those that were packed as in training, or whole ones.

        Raises `ArtefactError` for frames that were sampled or cut otherwise, or are too small.
        """
        if frames.whole and frames.manifest.config["sampler"] == self.frames_config["sampler"]:
            return frames.fitted(self._whole_fit, str(self.path))
        frames.check_settings(self.frames_config, self.path)
        return frames

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        """Features of queries or captions. What `max_words` tokens, start and end included, do not hold is not read.

        Raises `ArtefactError` where the model was converted without a tokenizer.
        """
        if not texts:
            raise ExpectedError("no texts to encode; give at least one")
        ids, rows = torch.from_numpy(self.tokenizer(texts)).to(self.device), token_rows(self.config.architecture)
        if ids.max() >= rows:
            raise ArtefactError(
                f"{self.path}: its token table has {rows} rows, its tokenizer gives numbers up to "
                f"{int(ids.max())}: this model takes token ids (`model.encode_text`), not text"
            )
        found = TextFeatures.cat([self.model.encode_text(part) for part in ids.split(BATCH)])
        self.check_finite(found.sentence)
        return found

    @torch.inference_mode()
    def encode_frames(
        self, pixels: UInt8[Tensor, "video frame 3 row column"], real: Bool[Tensor, "video frame"]
    ) -> VideoFeatures:
        """Features of videos that are cut to size and padded already."""
        parts = zip(pixels.split(BATCH), real.split(BATCH), strict=True)
        return VideoFeatures.cat([self.model.encode_video(p.to(self.device), r.to(self.device)) for p, r in parts])

    def encode_video(self, video: str | Path | np.ndarray) -> VideoFeatures:
        """Return the features (one row) of a video file, or of frames that are sampled already.

        A file is sampled as in training, so its features are those of its row in a gallery. Frames of
        another size than the model's are cut and pass through the same JPEG; others are taken as they are.
        """
        pixels, real = self.padded(video)
        found = self.encode_frames(pixels[None], real[None])
        self.check_finite(found.vector)
        return found

    def padded(
        self, video: str | Path | np.ndarray
    ) -> tuple[UInt8[Tensor, "frame 3 size size"], Bool[Tensor, " frame"]]:
        """Return what `encode_frames` takes of one video, given as to `encode_video`: its frames, which are real."""
        frames = self._cut(video) if isinstance(video, np.ndarray) else self._sample(Path(video))
        pixels, real = pad(frames, self.num_frames)
        return torch.from_numpy(pixels), torch.from_numpy(real)

    def check_finite(self, rows: Tensor) -> None:
        """Raise `ArtefactError` for vectors that are not finite: weights may be finite, and too large."""
        if not rows.isfinite().all():
            raise ArtefactError(f"{self.path}: gives a vector that is not finite; release a sound model")

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str]) -> Float[Tensor, "text dim"]:
        """Query vectors, whose inner products with a gallery's vectors rank it or choose its candidates."""
        return self.model.query_vectors(self.encode_text(texts)).cpu()

    def _sample(self, path: Path) -> UInt8[np.ndarray, "frame 3 size size"]:
        known = self.config.frames
        try:
            return sample_one(path, None, known.sampler, known.size, known.whole).pixels(self.fit)
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
        known = self.config.frames
        return np.stack([decode_jpeg(encode_jpeg(picture, known.size, known.whole), self.fit) for picture in frames])
