"""The sizes of a checkpoint's towers and temporal transformer, from its tensors' shapes, and the towers' activation.

No tensor shows the number of attention heads or whether a tower uses QuickGELU or plain GELU. The authors' code always
takes width // 64 heads and QuickGELU, so a config beside the file that says otherwise is an error.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill.conversion.authors import OPENAI_ARCHIVES, Checkpoint
from distill.errors import ArtefactError, ExpectedError
from distill.model.towers import CONFIG_FILE

HEAD_WIDTH = 64
Known = tuple[str, int, int]  # from a config: the activation, the heads of vision and text


def architecture_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the open_clip `model_cfg` that follows from the tensors' shapes by the rules of CLIP's own code."""
    visual, text = checkpoint.visual, checkpoint.text
    width, _, patch, patch_width = checkpoint.shape(f"{visual}conv1.weight", 4)
    if patch != patch_width:
        raise ArtefactError(f"{checkpoint.path}: patches of {patch} x {patch_width} pixels, expected squares")
    positions, _ = checkpoint.shape(f"{visual}positional_embedding", 2)
    grid = math.isqrt(positions - 1)  # one position is the class token's
    if not grid or grid * grid != positions - 1:
        raise ArtefactError(
            f"{checkpoint.path}: {positions} positions of the vision tower, expected 1 + a square: the class token and "
            f"a square grid of patches"
        )
    context, text_width = checkpoint.shape(f"{text}positional_embedding", 2)
    layers = {name: checkpoint.blocks(f"{name}transformer.resblocks.") for name in (visual, text)}
    if not all(layers.values()):
        raise ArtefactError(f"{checkpoint.path}: a tower has no transformer blocks; find the whole checkpoint")
    heads_of(checkpoint, "vision tower", width)
    return {
        "embed_dim": checkpoint.shape(f"{text}text_projection", 2)[1],
        "quick_gelu": True,  # `activation_of` checks it
        "vision_cfg": {
            "image_size": grid * patch,
            "patch_size": patch,
            "width": width,
            "layers": layers[visual],
            "head_width": HEAD_WIDTH,
            **mlp_of(checkpoint, visual, width),
        },
        "text_cfg": {
            "context_length": context,
            "vocab_size": checkpoint.shape(f"{text}token_embedding.weight", 2)[0],
            "width": text_width,
            "heads": heads_of(checkpoint, "text tower", text_width),
            "layers": layers[text],
            **mlp_of(checkpoint, text, text_width),
        },
    }


def mlp_of(checkpoint: Checkpoint, tower: str, width: int) -> dict[str, float]:
    """Return a tower's `mlp_ratio`; nothing where it is open_clip's own, 4. The first block shows it."""
    name = f"{tower}transformer.resblocks.0.mlp.c_fc.weight"
    if not checkpoint.has(name):  # the list of missing tensors will name it
        return {}
    inner = checkpoint.shape(name, 2)[0]
    if inner == 4 * width:
        return {}
    ratio = inner / width
    while int(width * ratio) < inner:  # open_clip rounds down, and the quotient may be a hair too small
        ratio = math.nextafter(ratio, math.inf)
    return {"mlp_ratio": ratio}


def heads_of(checkpoint: Checkpoint, part: str, width: int) -> int:
    """Return the number of attention heads of a transformer, width // 64; raise `ArtefactError` if it does not fit."""
    heads = width // HEAD_WIDTH
    if not heads or width % heads:
        raise ArtefactError(
            f"{checkpoint.path}: the {part} is {width} wide; the authors' code gives it width // {HEAD_WIDTH} = "
            f"{heads} heads, which do not divide it"
        )
    return heads


def temporal_of(checkpoint: Checkpoint, architecture: dict[str, Any]) -> dict[str, Any] | None:
    """Return the config of the temporal transformer, or None where the file has none."""
    layers, table = checkpoint.blocks("temporal.blocks."), "temporal.pos_embed.weight"
    if not layers and not checkpoint.has(table):
        return None
    if not layers or not checkpoint.has(table):
        missing = "frame_position_embeddings.weight" if layers else "transformerClip.*"
        raise ArtefactError(
            f"{checkpoint.path}: half a temporal transformer, {missing} is missing; the authors' code would copy it "
            f"from CLIP without a word, but those are not the trained weights: find the whole checkpoint"
        )
    positions, width = checkpoint.shape(table, 2)
    if width != architecture["embed_dim"]:
        raise ArtefactError(
            f"{checkpoint.path}: frame_position_embeddings.weight is {width} wide, but features are of size "
            f"{architecture['embed_dim']}"
        )
    heads_of(checkpoint, "temporal transformer", width)
    return {"layers": layers, "heads": None, "positions": positions, "init": "normal"}


def activation_of(checkpoint: Checkpoint, architecture: dict[str, Any], sha256: str, quickgelu: bool) -> str:
    """Return how it is known that the towers use QuickGELU; raise an `ExpectedError` if it is not known.

    `sha256` is of the checkpoint file, `quickgelu` the user's word for it.
    """
    beside = [name for name, read in CONFIGS.items() if _agrees(checkpoint.path.parent / name, read, architecture)]
    if checkpoint.kind != "openai":
        return "the authors' code uses no other activation"
    if sha256 in OPENAI_ARCHIVES:
        return f"OpenAI's published {OPENAI_ARCHIVES[sha256]}"
    if beside:
        return f"{' and '.join(beside)} beside the file"
    if quickgelu:
        return "the word of whoever converted it (--quickgelu)"
    raise ExpectedError(
        f"{checkpoint.path}: these towers may use QuickGELU (OpenAI's) or plain GELU, and the weights cannot tell; put "
        f"the model's {' or '.join(CONFIGS)} beside the file, or give --quickgelu if you know that they use it"
    )


def _agrees(path: Path, read: Callable[[dict[str, Any]], Known | None], architecture: dict[str, Any]) -> bool:
    """Return whether a config confirms the activation and the heads; False without one, an error if it differs."""
    if not path.is_file():
        return False
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        config = read(tree) if isinstance(tree, dict) else None
    except (OSError, ValueError, TypeError, ArithmeticError) as error:
        raise ArtefactError(
            f"{path}: cannot be read ({error}), but it lies beside the checkpoint and may name another activation; "
            f"repair it or move it away"
        ) from None
    if config is None:  # the file configures something else
        return False
    activation, *heads = config
    if activation != "quick_gelu":
        raise ArtefactError(
            f"{path}: a plain-GELU tower ({activation}), but the checkpoint beside it would be read with "
            f"QuickGELU; such towers are not supported. If it belongs to another model, move it away"
        )
    expected_heads = architecture["vision_cfg"]["width"] // HEAD_WIDTH, architecture["text_cfg"]["heads"]
    for part, found, expected in zip(("vision", "text"), heads, expected_heads, strict=True):
        if found != expected:
            raise ArtefactError(
                f"{path}: {found} {part} heads, expected width // {HEAD_WIDTH} = {expected} as in the authors' "
                f"code; such towers are not supported. If it belongs to another model, move it away"
            )
    return True


def _hugging_face(tree: dict[str, Any]) -> Known | None:
    """Read a transformers config of CLIP, with that library's defaults."""
    if not isinstance(tree.get("text_config"), dict) or not isinstance(tree.get("vision_config"), dict):
        return None
    text, vision = (tree[f"{part}_config"] | (tree.get(f"{part}_config_dict") or {}) for part in ("text", "vision"))
    activations = {part.get("hidden_act", "quick_gelu") for part in (text, vision)}
    activation = activations.pop() if len(activations) == 1 else "two activations"
    return activation, vision.get("num_attention_heads", 12), text.get("num_attention_heads", 8)


def _open_clip(tree: dict[str, Any]) -> Known | None:
    """Read an open_clip config, with that library's defaults."""
    model = tree.get("model_cfg")
    if not isinstance(model, dict):
        return None
    text, vision = model.get("text_cfg"), model.get("vision_cfg")
    if not isinstance(text, dict) or not isinstance(vision, dict):
        return None
    activation = "quick_gelu" if model.get("quick_gelu") is True else "quick_gelu is not true"
    return activation, vision.get("width", 768) // vision.get("head_width", 64), text.get("heads", 8)


CONFIGS = {"config.json": _hugging_face, CONFIG_FILE: _open_clip}
