"""The start of a training from a release: its weights in place of fresh ones, refused where they do not fit."""

import logging
from dataclasses import asdict
from typing import Any

import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor

from distill.catalogue import build, parse_model_config
from distill.data.tokens import read_vocabulary
from distill.errors import RecipeError
from distill.model.contract import RetrievalConfig, RetrievalModel
from distill.model.towers import Towers, read_architecture
from distill.records import changed
from distill.release.release import Release, load, unfit
from distill.remote import Place

log = logging.getLogger(__name__)


def build_from(path: Place, config: RetrievalConfig) -> tuple[RetrievalModel, str]:
    """Build the model of a config with the weights of a release; return it with the id of the release.

    The config's towers say what is expected; their own weights are not read. Parts that only training needs, which no
    release has, start fresh. Raises `RecipeError` where the release holds another kind of model, parameters of other
    names or shapes, or towers or token ids that mean something else.
    """
    release = load(path)
    kind = release.config.model["kind"]
    if kind != config.kind:
        raise RecipeError(f"init: {path} holds a {kind}, but model.kind is {config.kind}; name a release of that kind")
    architecture = read_architecture(config.clip)
    model = build(config, Towers.from_architecture(architecture, **config.clip.trained))
    fresh = _only_in_training(model, config)
    weights = release.model.state_dict()
    odd = unfit({name: tensor for name, tensor in model.state_dict().items() if name not in fresh}, weights)
    if odd:
        raise RecipeError(f"init: the weights of {path} do not fit model: {odd}; configure the model as it was trained")
    _check_meaning(path, release, config, architecture)
    model.load_state_dict(fresh | weights)
    also = f"; {len(fresh)} tensors that only training needs start fresh" if fresh else ""
    log.info(f"starts from the weights of {path} ({release.manifest.id[:12]}){also}")
    return model, release.manifest.id


def _only_in_training(model: RetrievalModel, config: RetrievalConfig) -> dict[str, Tensor]:
    if config.released() == config:
        return {}
    with torch.random.fork_rng(devices=[]):
        released = build(config.released(), Towers.from_architecture(model.clip.architecture)).state_dict()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in released}


def _check_meaning(path: Place, release: Release, config: RetrievalConfig, architecture: dict[str, Any]) -> None:
    """Refuse what no shape shows; name settings of the model that may be chosen anew."""
    odd = changed(_whole(release.config.architecture), _whole(architecture))
    if odd:
        raise RecipeError(
            f"init: the towers of {path} differ from model.clip.model {config.clip.model} in {', '.join(odd)}; name "
            f"the towers that it was trained on"
        )
    if release.config.text.vocabulary != read_vocabulary(config.clip.folder):
        raise RecipeError(
            f"init: {path} was trained with another vocabulary than model.clip.model {config.clip.model} has, so its "
            f"token table means other words; name the towers that it was trained on"
        )
    before = parse_model_config(release.config.model, str(path)).model_dump(mode="json")
    keys = changed(before, config.released().model_dump(mode="json"))
    # clip.* and temporal.init say where weights come from that are replaced here
    keys = [key for key in keys if not key.startswith("clip.") and key != "temporal.init"]
    if keys:
        log.warning(f"{path} was trained with another model.{', model.'.join(keys)}; trained on as the recipe says")


def _whole(architecture: dict[str, Any]) -> dict[str, Any]:
    """Return an open_clip `model_cfg` with open_clip's defaults."""
    defaults = {"vision_cfg": asdict(CLIPVisionCfg()), "text_cfg": asdict(CLIPTextCfg())}
    return architecture | {part: table | architecture[part] for part, table in defaults.items()}
