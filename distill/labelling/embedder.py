"""A model of sentence-transformers as a teacher, without training: captions, and frames or whole videos, to vectors.

The only file that imports the library. Captions are encoded as queries and videos as documents, with the prompts that
the model has for these. A model of images sees every packed frame; one of videos alone sees the packed frames of a
video as one clip, and its labels have no relevance of frames. Weights are read from safetensors, and code of a model's
own is never run. Nothing is fetched while HF_HUB_OFFLINE is set.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from distill import hub
from distill.data.videos import PackedVideo
from distill.errors import ArtefactError, ExpectedError, check_regular
from distill.labelling.labeller import CosineLabeller, framed
from distill.labelling.placing import limits, offload_folder
from distill.licence import stated_licence
from distill.manifest import file_sha256
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.similarity import unit
from distill.records import json_sha256

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PREFIX = "sentence-transformers:"
PICTURES = 64  # encoded at once
OWN = "sentence_transformers."  # where the modules of models without code of their own stand
# What the library raises for files that are damaged or contradict one another.
UNREADABLE = (SafetensorError, OSError, ValueError, ImportError, LookupError, RuntimeError, TypeError, AttributeError)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# Of a repository: nothing that could hold code, and no weights for other programs.
FETCHED = ["README.md", "*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
log = logging.getLogger(__name__)


class Embedder(CosineLabeller):
    """A loaded model; `origin` is its repository and revision, or the sha256 of its folder."""

    def __init__(self, model: "SentenceTransformer", origin: str):
        seen = next((kind for kind in ("image", "video") if model.supports(kind)), None)
        if seen is None or not model.supports("text"):
            known = ", ".join(map(str, model.modalities))
            raise ExpectedError(f"{origin}: encodes {known}; a teacher needs text, and image or video: choose another")
        self.model, self.frame_vectors = model.eval(), seen == "image"
        prompts = {name: model.prompts.get(name) or "" for name in ("query", "document")}
        self._prompt = prompts["query"]
        self.id = f"{origin} {json.dumps({'modality': seen, **prompts}, ensure_ascii=False)}"

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Return the model's vectors of captions."""
        found = self.model.encode_query(list(texts), batch_size=len(texts), **_QUIETLY)
        return TextFeatures(sentence=_directions(self.id, found))

    def encode_videos(
        self,
        videos: Sequence[PackedVideo],
        pixels: UInt8[Tensor, "video frame 3 height width"],
        real: Bool[Tensor, "video frame"],
    ) -> VideoFeatures:
        """Return the model's vectors of the frames, or of whole videos; padding is not shown to it."""
        if not self.frame_vectors:
            clips = [{"video": clip[shown]} for clip, shown in zip(pixels, real, strict=True)]
            # One at a time: clips of different lengths need not fit into one batch.
            return VideoFeatures(
                vector=_directions(self.id, self.model.encode_document(clips, batch_size=1, **_QUIETLY))
            )
        pictures = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pixels[real]]
        found = _directions(self.id, self.model.encode_document(pictures, batch_size=PICTURES, **_QUIETLY))
        frames = found.new_zeros(*real.shape, found.shape[-1])
        frames[real.to(found.device)] = found
        return framed(frames, real.to(found.device))

    def warn_of_cuts(self, texts: Sequence[str], where: str) -> None:
        """Log one line if captions have more tokens than the model reads."""
        most = self.model.max_seq_length
        if most is None or not texts:
            return
        asked = [self._prompt + text for text in texts]
        spelled = self.model.tokenizer(asked, truncation=False, verbose=False)["input_ids"]
        if cut := sum(len(ids) > most for ids in spelled):
            log.warning(f"{where}: {cut:,} of {len(texts):,} captions are cut at {most} tokens by the teacher")


_QUIETLY: dict[str, Any] = {"convert_to_tensor": True, "show_progress_bar": False}


def _directions(teacher: str, found: Tensor) -> Tensor:
    """Return vectors of length 1, float32; those that point nowhere have no cosine."""
    found = unit(found)
    if not found.isfinite().all() or not (found.norm(dim=-1) > 0.5).all():
        raise ArtefactError(f"{teacher}: gives a vector that is zero or not finite; use a sound model")
    return found


def open_embedder(name: str, device: torch.device, memory: float | None = None) -> Embedder:
    """Load a folder, or a repository of the Hugging Face Hub as `REPO` or `REPO@REVISION`.

    `memory` are the gigabytes of the device that it may take, if not all of it should lie there.
    Raises `ExpectedError` without the library, `ArtefactError` for what is not there, damaged, or has code of its own.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ExpectedError(
            f"{PREFIX}{name}: needs sentence-transformers; pip install 'retrieval-distill[st]'"
        ) from None
    folder = Path(name)
    origin = f"sha256:{_folder_sha256(folder)}" if name and folder.is_dir() else ""
    if not origin:
        folder, origin = _fetched(name)
    _refuse_code(folder)
    try:
        model = SentenceTransformer(
            str(folder),
            device=str(device) if memory is None else None,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, **_placing(device, memory)},
        )
    except UNREADABLE as error:
        if any("auto_map" in _json(path) for path in folder.rglob("config.json")):
            raise ArtefactError(
                f"{name}: has code of its own (auto_map), which is never run; use another model"
            ) from None
        raise ArtefactError(f"{name}: cannot be opened by sentence-transformers ({error}); use another model") from None
    embedder = Embedder(model, origin)
    embedder.licence = stated_licence(folder)
    return embedder


def _placing(device: torch.device, memory: float | None) -> dict[str, Any]:
    """Return how the library divides a model among device, memory and disk, by accelerate."""
    if memory is None:
        return {}
    places = {"max_memory": limits(device, memory), "offload_folder": offload_folder()}
    return {"device_map": "auto", "offload_buffers": True, **places}


def _fetched(name: str) -> tuple[Path, str]:
    """Return where a repository's files are, and its name with the revision that was found."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = name.partition("@")
    try:
        folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=FETCHED))
    except HFValidationError:
        raise ArtefactError(f"{name}: no such folder, and no name of a repository; give one of them") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ArtefactError(f"{name}: no such folder, and as a repository not to be had: {hub.reason(error)}") from None
    return folder, f"{repo}@{folder.name}"


def _folder_sha256(folder: Path) -> str:
    """Return the hash of all that decides what a model gives: weights, settings and vocabulary, by their paths."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".md"]
    return json_sha256({path.relative_to(folder).as_posix(): file_sha256(path) for path in paths})


def _refuse_code(folder: Path) -> None:
    """Refuse a model whose modules are not the library's or lie outside its folder, or whose weights are pickled."""
    modules = _json(folder / "modules.json")
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ArtefactError(f"{folder / 'modules.json'}: expected a list of modules; restore it")
    for module in modules:
        kind, place = str(module.get("type")), (folder / str(module.get("path", ""))).resolve()
        if not kind.startswith(OWN):
            raise ArtefactError(f"{folder}: its module {kind!r} is code of its own, which is never run; use another")
        if not place.is_relative_to(folder.resolve()):
            raise ArtefactError(f"{folder / 'modules.json'}: names a place outside its folder: {str(place)!r}")
    for path in sorted(folder.rglob("*")):
        if path.suffix in PICKLES and not any(path.parent.glob("*.safetensors")):
            raise ArtefactError(f"{path}: may hold code, and is never loaded; save the model with safetensors")


def _json(path: Path) -> Any:
    check_regular(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtefactError(
            f"{path}: missing; expected a folder that SentenceTransformer.save_pretrained wrote"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactError(f"{path}: cannot be read ({error}); restore it") from None
