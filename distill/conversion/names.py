"""The tables of names: a tensor's name in this project beside its name in an authors' checkpoint, for every kind.

A `*` stands for any text, the same on both sides, and the first line that fits a name counts. The tables are read from
our names to theirs: a model asks for every tensor that it needs, and a tensor that nothing asks for must be in
`UNUSED`. Hugging Face has its own names for CLIP's towers; X-Pool's checkpoints and bare towers may use them.
"""

import re
from collections.abc import Mapping

TOWERS = {"clip.visual.*": "clip.visual.*", "clip.text.*": "clip.*"}
STUDENT = TOWERS | {"clip.logit_scale.log": "clip.logit_scale"}
TEACHER = TOWERS | {"interaction.logit_scale.log": "clip.logit_scale"}
TEMPORAL = {
    "temporal.pos_embed.weight": "frame_position_embeddings.weight",
    "temporal.blocks.*": "transformerClip.resblocks.*",
}


def _blocks(ours: str, theirs: str) -> dict[str, tuple[str, ...]]:
    ours, theirs = f"{ours}.transformer.resblocks.*".lstrip("."), f"{theirs}.encoder.layers.*"
    return {
        f"{ours}.attn.in_proj_*": tuple(f"{theirs}.self_attn.{part}_proj.*" for part in "qkv"),
        f"{ours}.attn.out_proj.*": (f"{theirs}.self_attn.out_proj.*",),
        f"{ours}.ln_1.*": (f"{theirs}.layer_norm1.*",),
        f"{ours}.ln_2.*": (f"{theirs}.layer_norm2.*",),
        f"{ours}.mlp.c_fc.*": (f"{theirs}.mlp.fc1.*",),
        f"{ours}.mlp.c_proj.*": (f"{theirs}.mlp.fc2.*",),
    }


SELECTOR = "visual_token_selector.score_predictor"

PIG, GENERATOR = "encoder.clipmodel.", "generator.clip_reconstructor"  # of a PIG checkpoint: towers, generator

# Our name -> the authors' name, by kind, or names where a head of theirs keeps q, k and v apart. The towers of `openai`
# keep OpenAI's names, which are also open_clip's.
MODELS: dict[str, dict[str, str | tuple[str, ...]]] = {
    "clip4clip": {**STUDENT, **TEMPORAL},
    "teachclip": {**STUDENT, **TEMPORAL, "afa.score.0.*": "frameLinear.*", "afa.score.2.*": "frameLinear2.*"},
    "eercf": {
        **STUDENT,
        **TEMPORAL,
        "global_proj.weight": "global_mat_weight",
        "frame_cross.weight": "frame_logit_weight",
    },
    "glscl": {
        **STUDENT,
        **TEMPORAL,
        "queries.queries": "spatial_queries",
        "queries.text_queries": "noun_queries",
        "queries.decoder.*": "transformer_decoder_noun.layers.*",
        "queries.video_decoder.*": "transformer_decoder_spatial.layers.*",
    },
    "prompt_switch": {
        **STUDENT,
        "prompts.cube": "clip.visual.prompts",
        "cross.norm*": "pool_frames.layer_norm*",
        "cross.linear_proj.*": "pool_frames.linear_proj.*",
        "cross.*": "pool_frames.cross_attn.*",
    },
    "pig": {
        **{ours: theirs.replace("clip.", PIG, 1) for ours, theirs in STUDENT.items()},
        "proxies.*": f"{PIG}visual.proxies.*",
        **_blocks("generator", GENERATOR),
        "generator.ends": f"{GENERATOR}.embeddings.token_embedding.weight",
        "generator.positions": f"{GENERATOR}.embeddings.position_embedding.weight",
        "generator.mapper.*": f"{GENERATOR}.video_mapper.*",
        "generator.ln_final.*": f"{GENERATOR}.final_layer_norm.*",
        "cross.norm*": "fusioner.layer_norm*",
        "cross.linear_proj.*": "fusioner.linear_proj.*",
        "cross.*": "fusioner.cross_attn.*",
    },
    "xclip": {
        **TEACHER,
        **TEMPORAL,
        "interaction.*_proj": "*_mat_weight",
        "interaction.*_cross": "*_logit_weight",
        "interaction.*_fine": "*_mat_weight",
        "interaction.*_fine2": "*_mat_weight2",
    },
    "ts2net": {
        **TEACHER,
        **TEMPORAL,
        "selector.norm.*": f"{SELECTOR}.in_conv.0.*",
        "selector.hidden.weight": f"{SELECTOR}.in_conv.1.weight",
        "selector.joint.weight": f"{SELECTOR}.out_conv.0.weight",
        "selector.score.weight": f"{SELECTOR}.out_conv.2.weight",
    },
    "xpool": {
        **TEACHER,
        "interaction.pooling.norm*": "pool_frames.layer_norm*",
        "interaction.pooling.linear_proj.*": "pool_frames.linear_proj.*",
        "interaction.pooling.*": "pool_frames.cross_attn.*",
    },
    "openai": {"*": "*"},
}


# OpenAI's name -> Hugging Face's names; several tensors are stacked in this order.
HUGGING_FACE: dict[str, tuple[str, ...]] = {
    **_blocks("visual", "vision_model"),
    "visual.class_embedding": ("vision_model.embeddings.class_embedding",),
    "visual.positional_embedding": ("vision_model.embeddings.position_embedding.weight",),
    "visual.conv1.weight": ("vision_model.embeddings.patch_embedding.weight",),
    "visual.ln_pre.*": ("vision_model.pre_layrnorm.*",),  # transformers spells it so
    "visual.ln_post.*": ("vision_model.post_layernorm.*",),
    "visual.proj": ("visual_projection.weight",),
    **_blocks("", "text_model"),
    "token_embedding.weight": ("text_model.embeddings.token_embedding.weight",),
    "positional_embedding": ("text_model.embeddings.position_embedding.weight",),
    "ln_final.*": ("text_model.final_layer_norm.*",),
    "text_projection": ("text_projection.weight",),
    "logit_scale": ("logit_scale",),
    "visual.aggregation.attention.*": ("vision_model.attn.*",),  # Prompt Switch adds this line and the next
    "visual.prompts": ("vision_model.encoder.prompt_embedding",),
    "visual.proxies.added": ("vision_model.embeddings.added_cls",),  # PIG, which has CLIP-ViP's tower, these three
    "visual.proxies.in_frames": ("vision_model.embeddings.cls_in_frames",),
    "visual.proxies.temporal": ("vision_model.embeddings.temporal_embedding",),
}
TRANSPOSED = {"visual_projection.weight", "text_projection.weight"}  # Hugging Face: linear layers; OpenAI: matrices

# These reasons stand in the provenance of releases, so their words do not change.
CAPTIONER = "of the captioner, which only training needs"
SIZES = "a size that the other tensors show anyway"
POSITIONS = "the numbers 0, 1, 2 ..., which older versions of transformers stored"
UNUSED: dict[str, dict[str, str]] = {  # their name -> why, by kind; those of towers count for every kind
    "towers": {
        "text_model.embeddings.position_ids": POSITIONS,
        "vision_model.embeddings.position_ids": POSITIONS,
        "input_resolution": SIZES,
        "context_length": SIZES,
        "vocab_size": SIZES,
    },
    "glscl": {
        "weight_fc.*": "the authors' model computes it for every pair and drops the result",
        "decoder_layer_noun.*": "the layer of which the decoder's layers were copied",
        "decoder_layer_spatial.*": "the layer of which the decoder's layers were copied",
    },
    "prompt_switch": {
        "caption_prenorm.*": CAPTIONER,
        "caption_transformer.*": CAPTIONER,
        "caption_head.*": CAPTIONER,
    },
    "pig": {f"{GENERATOR}.embeddings.position_ids": POSITIONS},
    "ts2net": {
        "text_token_selector.*": "the authors' model builds it and never calls it",
        "visual_prompt_encoder.*": "the authors' model builds it and never calls it",
    },
}
REFUSED = {  # their name, without a leading `clip.` -> why
    "visual.conv2.*": "linear_patch 3d, patches that span frames; only linear_patch 2d is supported",
    "visual.layer1.*": "a ResNet tower; only ViT towers are supported",
    "visual.attnpool.*": "a ResNet tower; only ViT towers are supported",
    "lstm_visual.*": "the seqLSTM head; only meanP and seqTransf are supported",
    "cross.*": "the tightTransf head; only meanP and seqTransf are supported",
    "similarity_dense.*": "the tightTransf head; only meanP and seqTransf are supported",
    "generator.query_tokens": "F-PIG, the earlier release, whose generator has learned ends; only PIG is supported",
}
MARKS: dict[str, tuple[str, ...]] = {  # their name -> the only kinds that have such a tensor
    "global_mat_weight": ("xclip", "eercf"),
    "local_mat_weight": ("xclip",),
    "frameLinear.*": ("teachclip",),
    "spatial_queries": ("glscl",),
    "visual_token_selector.*": ("ts2net",),
    "pool_frames.*": ("xpool", "prompt_switch"),
    "clip.vision_model.encoder.prompt_embedding": ("prompt_switch",),
    "caption_transformer.*": ("prompt_switch",),
    "fusioner.*": ("pig",),
    f"{GENERATOR}.*": ("pig",),
}


def translate(name: str, table: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the names that the first fitting line of `table` gives for `name`."""
    for line, theirs in table.items():
        fit = re.fullmatch(re.escape(line).replace(r"\*", "(.+)"), name)
        if fit:
            return tuple(pattern.replace("*", "{}").format(*fit.groups()) for pattern in theirs)
    raise AssertionError(f"no line for {name}")


def fits(line: str, name: str) -> bool:
    """Return whether `name` is the name in `line`, or begins like it where `line` ends with `*`."""
    return name.startswith(line[:-1]) if line.endswith("*") else name == line
