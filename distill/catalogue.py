"""The catalogue of models: the only file inside `distill` that imports every concrete teacher and student.

A model is named by the `kind` of its config. To add one, write its file in `students/` or `teachers/` and a line in
each table here.
"""

from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from distill.data.labels import StoredLabels
from distill.errors import ArtefactError
from distill.model.contract import Interaction, RetrievalModel
from distill.model.towers import Towers
from students.clip4clip import Clip4Clip, Clip4ClipConfig
from students.eercf import Eercf, EercfConfig
from students.glscl import Glscl, GlsclConfig
from students.pig import Pig, PigConfig
from students.prompt_switch import PromptSwitch, PromptSwitchConfig
from students.teachclip import TeachClip, TeachClipConfig
from teachers.cosine import CosineInteraction
from teachers.ts2net import Ts2Net, Ts2NetConfig, Ts2NetInteraction
from teachers.xclip import XClip, XClipConfig, XClipInteraction
from teachers.xpool import XPool, XPoolConfig, XPoolInteraction

ModelConfig = Annotated[
    Clip4ClipConfig
    | TeachClipConfig
    | EercfConfig
    | GlsclConfig
    | PromptSwitchConfig
    | PigConfig
    | XClipConfig
    | Ts2NetConfig
    | XPoolConfig,
    Field(discriminator="kind"),
]
MODELS: dict[type, type[RetrievalModel]] = {
    Clip4ClipConfig: Clip4Clip,
    TeachClipConfig: TeachClip,
    EercfConfig: Eercf,
    GlsclConfig: Glscl,
    PromptSwitchConfig: PromptSwitch,
    PigConfig: Pig,
    XClipConfig: XClip,
    Ts2NetConfig: Ts2Net,
    XPoolConfig: XPool,
}
INTERACTIONS: dict[str, type[Interaction]] = {  # teachers, by kind; those not trained here score by `cosine`
    "xclip": XClipInteraction,
    "ts2net": Ts2NetInteraction,
    "xpool": XPoolInteraction,
    "cosine": CosineInteraction,
}


def build(config: Any, towers: Towers) -> RetrievalModel:
    """Build the model of a config on given towers; everything that is not in the towers is freshly initialised."""
    return MODELS[type(config)](config, towers)


def parse_model_config(raw: dict[str, Any], where: str) -> Any:
    """Return the typed config of a stored model; raise `ArtefactError` for one that this version does not know."""
    try:
        return TypeAdapter(ModelConfig).validate_python(raw)
    except ValidationError as error:
        raise ArtefactError(f"{where}: not a model this version knows: {error.errors()[0]['msg']}") from None


def scoring_head(labels: StoredLabels) -> Interaction:
    """Build the frozen scoring head of the teacher that wrote a label set, from what the set stores of it."""
    kind = labels.config.interaction["kind"]
    if kind not in INTERACTIONS:
        raise ArtefactError(f"{labels.path}: labels of an unknown teacher {kind!r}; known: {', '.join(INTERACTIONS)}")
    interaction = INTERACTIONS[kind](**labels.config.interaction["config"])
    try:
        interaction.load_state_dict(labels.interaction_weights())
    except RuntimeError as error:
        raise ArtefactError(f"{labels.path}: its interaction head does not fit teacher {kind!r}: {error}") from None
    return interaction.eval().requires_grad_(False)
