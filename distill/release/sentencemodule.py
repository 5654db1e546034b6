"""A release as the one module of a model of sentence-transformers: texts and videos in, unit vectors out.

A release of a model that stores one vector a video holds `modules.json` and `release_module.py`, by which
`SentenceTransformer(PATH, trust_remote_code=True)` finds this class. The manifest seals both; `save_pretrained` writes
the same bytes again, so that its folder is the same release.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from sentence_transformers.base.modality import infer_modality
from sentence_transformers.base.modality_types import Modality
from sentence_transformers.base.modules import InputModule
from sentence_transformers.util import load_dir_path
from torch import Tensor

from distill.errors import ExpectedError, first_few
from distill.manifest import NAME, open_sealed
from distill.release.release import READ, WEIGHTS, Release, load


class SentenceModule(InputModule):
    """A loaded release. A batch holds texts alone or videos alone; the library says so where it does not."""

    save_in_root = True

    def __init__(self, release: Release):
        super().__init__()
        self.release = release
        self.model = release.model  # a module, so that the library moves it between devices

    @property
    def modalities(self) -> list[Modality]:
        """The kinds of input."""
        return ["text", "video"]

    @property
    def max_seq_length(self) -> int:
        """Tokens of a text that are read, start and end included."""
        return self.release.max_words

    def get_embedding_dimension(self) -> int:
        """Numbers of a vector."""
        return self.release.dim

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **options: Any) -> dict[str, Any]:
        """Return the texts, or the frames of videos as `Release.padded` gives them.

        A video is the path of a file, or sampled frames: uint8 [frame, 3, height, width], as the library has them, or
        whatever `Release.encode_video` takes; each also as {"video": ...}. A prompt stands before texts alone.
        """
        kinds = {infer_modality(given, self.modalities) for given in inputs}
        if kinds == {"text"}:
            return {"texts": [(prompt or "") + _inner(given, "text") for given in inputs]}
        if kinds != {"video"}:
            raise ExpectedError(f"inputs: {', '.join(sorted(map(str, kinds)))}; expected texts alone or videos alone")
        padded = [self.release.padded(_video(_inner(given, "video"))) for given in inputs]
        return {
            "pixels": torch.stack([pixels for pixels, _ in padded]),
            "real": torch.stack([real for _, real in padded]),
        }

    def forward(self, features: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Add `sentence_embedding`: the vectors by whose inner products a gallery is searched, [input, dim]."""
        if "texts" in features:
            vectors = self.model.query_vectors(self.release.encode_text(features["texts"]))
        else:
            vectors = self.model.index_vectors(self.release.encode_frames(features["pixels"], features["real"]))
        self.release.check_finite(vectors)
        return features | {"sentence_embedding": vectors}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **options: Any) -> None:
        """Copy the release. Raises `ExpectedError` where another one stands, or if its weights were changed since."""
        source, target = self.release.path.resolve(), Path(output_path).resolve()
        if type(self) is SentenceModule:  # the library would write another list of modules and another card
            raise ExpectedError(f"{source}: opened by its class, and can only be saved by copying the folder")
        if target == source:
            return
        if (target / NAME).exists() and (target / NAME).read_bytes() != (source / NAME).read_bytes():
            raise ExpectedError(f"{target}: already holds another release; choose another folder")
        manifest = open_sealed(source, "release", *READ)
        stored = load_file(source / WEIGHTS)
        now = {name: value.cpu() for name, value in self.model.state_dict().items()}
        if odd := [name for name, value in now.items() if not torch.equal(value, stored[name].to(value.dtype))]:
            raise ExpectedError(
                f"{source}: {first_few(odd)} changed since it was loaded, and a release does not change; train on from "
                f"it with init={source} in a recipe"
            )
        for name in [*manifest.files, NAME]:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **options: Any,
    ) -> "SentenceModule":
        """Open the release of a folder, or of a repository of the Hub as the library fetches it."""
        folder = load_dir_path(model_name_or_path, subfolder, token, cache_folder, revision, local_files_only)
        return cls(load(Path(folder or model_name_or_path).resolve()))  # for `save` after a change of folder


def _inner(given: Any, kind: str) -> Any:
    return given[kind] if isinstance(given, dict) and kind in given else given


def _video(given: Any) -> str | Path | np.ndarray:
    """Return a video as `Release.padded` takes it."""
    if isinstance(given, dict) and "array" in given:
        given = given["array"]
    if isinstance(given, Tensor):
        given = given.numpy(force=True)
    if isinstance(given, np.ndarray) and given.ndim == 4 and given.shape[1] == 3:
        return np.ascontiguousarray(given.transpose(0, 2, 3, 1))
    if not isinstance(given, str | Path | np.ndarray):
        raise ExpectedError(
            f"a video is {type(given).__name__}; expected the path of a file, or frames as uint8 numbers"
        )
    return given
