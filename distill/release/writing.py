"""Writing a release: the trained weights and all that `distill.release.load` needs, published by one rename."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from distill import __version__
from distill.catalogue import INTERACTIONS
from distill.data.jsontokens import FILE
from distill.errors import ArtefactError, ExpectedError, first_few
from distill.licence import CARD
from distill.manifest import Manifest, open_sealed, seal, sealed_file
from distill.model.contract import RetrievalConfig, RetrievalModel
from distill.model.preprocessing import image_size
from distill.model.second_look import SecondLook
from distill.publishing import publish, published_folder
from distill.records import json_sha256, write_json
from distill.release.card import eval_results, model_card
from distill.release.release import (
    CONFIG,
    EVAL_RESULTS,
    PROVENANCE,
    READ,
    VERSION,
    WEIGHTS,
    FramesConfig,
    ReleaseConfig,
    TextConfig,
    read_config,
)
from distill.retrieval.stored import bytes_per_video

# By which sentence-transformers opens a release (distill/release/sentencemodule.py). It writes the list of modules
# just so, byte for byte: what it saves again is the same release.
MODULE = "release_module.py"
SENTENCE_TRANSFORMERS = {
    MODULE: Path(__file__).with_name(MODULE).read_bytes(),
    "modules.json": json.dumps(
        [{"idx": 0, "name": "0", "path": "", "type": "release_module.ReleaseModule"}], indent=2
    ).encode(),
}


def write_release(
    folder: Path,
    *,
    model: RetrievalModel,
    model_config: RetrievalConfig,
    weights: dict[str, Tensor],
    text: dict[str, Any],
    frames_config: dict[str, Any],
    provenance: dict[str, Any],
    second_look: SecondLook | None = None,
    tokenizer_json: str | None = None,
) -> Manifest:
    """Publishes `folder`, its card included. Writing the same model there again keeps it; another model is refused.

    `weights` is the full state dict in any precision, of which what `model` lacks is left out; `text` holds `max_words`
    and `vocabulary`, `tokenizer_json` the tokenizer of towers that do not have CLIP's; `frames_config` is the config of
    the frame set's manifest. `provenance` is plain JSON; its `parents` (name -> manifest id) are recorded in the
    manifest, and `model_card` says what else it shows.
    """
    assert weights.keys() >= model.state_dict().keys(), "weights of the model are missing"
    kept = {name: weights[name] for name in model.state_dict()}
    config = ReleaseConfig(
        model=_without_paths(model_config),
        architecture=model.clip.architecture,
        text=TextConfig(**text),
        frames=FramesConfig.model_validate(
            {key: frames_config[key] for key in FramesConfig.model_fields if key in frames_config}
        ),
        second_look=second_look,
        toolkit=__version__,
        provenance_sha256=json_sha256(provenance),
    )
    teacher, frames = model_config.kind in INTERACTIONS, config.frames
    stored = None if teacher else bytes_per_video(model, frames.sampler.num_frames, image_size(model.clip.architecture))
    parameters, trained = (sum(tensor.numel() for tensor in table.values()) for table in (kept, weights))
    card = model_card(model_config.kind, provenance, stored, parameters=parameters, left_out=trained - parameters)
    extra = {} if tokenizer_json is None else {FILE: tokenizer_json.encode()}
    if stored is not None and not stored[1]:  # one vector a video, whose inner product with a query is the score
        extra |= SENTENCE_TRANSFORMERS
    if (results := eval_results(provenance)) is not None:
        extra |= {EVAL_RESULTS: results}
    with published_folder(folder) as part:
        manifest = _fill(part, config, kept, provenance, extra | {CARD: card.encode()})
        if folder.is_dir() and any(folder.iterdir()):
            manifest = _existing(folder, config, manifest)
            shutil.rmtree(part)
    return manifest


def _fill(
    part: Path,
    config: ReleaseConfig,
    weights: dict[str, Tensor],
    provenance: dict[str, Any],
    beside: dict[str, bytes],
) -> Manifest:
    # One metadata key only: safetensors writes several in an order that changes from run to run, and so the hash.
    publish(part / WEIGHTS, save(_fp32(weights), {"format": f"retrieval-distill {__version__}"}))
    write_json(part / CONFIG, config.model_dump(mode="json"))
    write_json(part / PROVENANCE, provenance)
    for name, content in beside.items():
        publish(part / name, content)
    manifest = Manifest(
        kind="release",
        version=VERSION,
        config={"model": config.model["kind"], "provenance_sha256": config.provenance_sha256},
        counts={"parameters": sum(tensor.numel() for tensor in weights.values())},
        parents=provenance.get("parents", {}),
        files={
            WEIGHTS: sealed_file(part / WEIGHTS, len(weights)),
            **{name: sealed_file(part / name) for name in (CONFIG, PROVENANCE, *beside)},
        },
    )
    return seal(part, manifest)


def _existing(folder: Path, config: ReleaseConfig, new: Manifest) -> Manifest:
    """The manifest of a release that stands in the way, if it is the same model."""
    found = open_sealed(folder, "release", *READ)
    same_weights = found.files[WEIGHTS].sha256 == new.files[WEIGHTS].sha256
    if not same_weights or read_config(folder).what_it_computes() != config.what_it_computes():
        raise ArtefactError(f"{folder}: already holds another release; delete it or choose another folder")
    return found


def _fp32(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    # Whole numbers stay: what a BatchNorm counts.
    plain = {
        name: tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in weights.items()
    }
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
