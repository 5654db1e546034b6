"""PIG's fixtures: its attention, tower, generator, reading, losses with gradients, optimiser, frame numbers, the whole.

Parts have weights under the authors' names, which the converter's table translates; where their names lack the place in
a whole model, it is put before them. The whole model comes out of the converter.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.conversion.authors import Checkpoint
from distill.conversion.names import GENERATOR, PIG, TRANSPOSED
from distill.conversion.options import Options
from distill.data.sampler import PigSampler
from distill.model.clip import ClipModel
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.generator import GeneratorConfig, QueryGenerator, informativeness
from distill.model.pooling import CrossAttention
from distill.model.proxies import ProxyAttention, ProxyTokens
from distill.model.towers import ClipConfig, Towers
from distill.model.wiring import Wiring
from distill.training.lossconfig import ContrastiveConfig, LossConfig
from distill.training.objective import total_loss
from distill.training.optim import OptimConfig, build_optimizer, schedule
from parity.fixture import Fixture
from parity.modules import Outputs, Runs
from parity.whole import check_hyper, converted
from students.pig import Pig, PigConfig

BOTH = LossConfig(contrastive=ContrastiveConfig(weight=2.0))  # the authors add the two directions
TINY = {"image_size": 8, "patch_size": 4, "width": 8, "layers": 1, "head_width": 8}
ENDS = {"constant row of the (generator )?token table": "constant", "parameter(, optional)?": "learned"}


def attention(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """The attention of one block, without norms and residual."""
    about, weights = fixture.hyper, fixture.part("weight")
    plain = nn.MultiheadAttention(about["width"], about["heads"], batch_first=True)
    for part in ("weight", "bias"):
        whole = torch.cat([weights.pop(f"{letter}_proj.{part}") for letter in "qkv"])
        plain.get_parameter(f"in_proj_{part}").copy_(whole)
        plain.out_proj.get_parameter(part).copy_(weights.pop(f"out_proj.{part}"))
    assert not weights, f"weights that no part of the model has: {sorted(weights)}"
    found = ProxyAttention(plain, about["global_tokens"], about["tokens_per_frame"]).to(dtype)
    tokens, read = found(fixture.input("tokens", dtype))
    yield "", {"tokens": tokens, "global_attention": read}


def tower(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """The vision tower on videos of two lengths, one of which interpolates the positions in time."""
    about = fixture.hyper
    vision = {
        "image_size": about["image"],
        "patch_size": about["patch"],
        "width": about["width"],
        "layers": about["layers"],
        "head_width": about["width"] // about["heads"],
        "mlp_ratio": len(fixture.tensors["weight.encoder.layers.0.mlp.fc1.bias"]) / about["width"],
    }
    clip = ClipModel(towers(about, vision), Wiring(proxies=about["added_proxies"])).eval()
    proxies = ProxyTokens(about["added_proxies"], about["temporal_size"], clip.visual.class_embedding)
    checkpoint = Checkpoint(fixture.path, "pig", prefixed(fixture, f"{PIG}vision_model."))
    load({"clip.visual.": clip.visual, "proxies.": proxies}, checkpoint, besides=("clip.visual.proj",))
    found, kept = {}, {}
    clip.visual.ln_pre.register_forward_hook(lambda module, given, out: kept.update(embedded=given[0]))
    clip.visual.ln_post.register_forward_hook(lambda module, given, out: kept.update(tokens=given[0], pooled=out[:, 0]))
    for module in (clip, proxies):
        module.to(dtype)
    for name, prefix in (("video", ""), ("video_other_length", "other_")):
        frames = fixture.input(name, dtype)
        _, read = clip.visual(frames.flatten(0, 1), proxies=proxies(frames.shape[1]))
        found |= {prefix + output: value for output, value in (kept | {"class_attention": read[:, :, 0]}).items()}
    yield "", found


def generator(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """The generator as PIG releases it, or the earlier one: learned ends, a projection, with and without start."""
    about, weights = fixture.hyper, fixture.part("weight")
    kinds = {fixture.switch(end, ENDS, "constant row of the token table") for end in ("bos", "eos")}
    (ends,) = kinds
    projection = fixture.switch("generator_projection", {"none": "none", "text": "text"}, "none")
    learned = [weights.pop(f"generator.{name}_tokens") for name in ("bos", "query") if ends == "learned"]
    projected = weights.pop(f"{GENERATOR}.text_projection.weight") if projection == "text" else None
    if ends == "constant":
        rows = len(weights[f"{GENERATOR}.embeddings.token_embedding.weight"])
        assert (about["bos_row"], about["eos_row"]) == (rows - 2, rows - 1), "ends are the last rows of the table"
    else:
        weights[f"{GENERATOR}.embeddings.token_embedding.weight"] = torch.stack(learned)
    found: Outputs = {}
    for start, name in ((True, "pseudo_query_with_bos" if learned else "pseudo_query"), (False, "pseudo_query")):
        if not start and not learned:
            break
        config = GeneratorConfig(projection=projection, ends=ends, start=start)
        places = len(weights[f"{GENERATOR}.embeddings.position_embedding.weight"])
        ratio = len(weights[f"{GENERATOR}.encoder.layers.0.mlp.fc1.bias"]) / about["width"]
        model = QueryGenerator(ClipModel(towers(about, TINY, places, ratio)).text, about["width"], config).eval()
        checkpoint = Checkpoint(fixture.path, "pig", weights)
        besides = ("generator.ends", "generator.projection")
        load({"generator.": model}, checkpoint, besides=besides)
        model.ends.copy_(checkpoint.tensor("generator.ends")[-len(model.ends) :])
        if projected is not None:
            assert model.projection is not None
            model.projection.copy_(projected.T)
        blocks = model.to(dtype).transformer.resblocks
        blocks[0].register_forward_hook(lambda module, given, out: found.update(hidden_0=given[0]))
        blocks[-1].register_forward_hook(lambda module, given, out: found.update(hidden_last=out))
        found[name] = model(fixture.input("tokens", dtype))
    yield "", found


def interaction(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """Videos read by their own pseudo-queries, and by all."""
    fixture.constant("attn_temp", 1.0)
    cross = CrossAttention(fixture.hyper["width"], fixture.hyper["heads"], float(fixture.hyper["dropout"])).eval()
    load({"cross.": cross}, Checkpoint(fixture.path, "pig", fixture.part("weight")))
    query, tokens = (fixture.input(name, dtype) for name in ("pseudo_query", "tokens"))
    vector, _ = cross.to(dtype).paired(query, tokens)
    yield "", {"video_embedding": vector, "all_pairs": cross(query, tokens)}


def losses(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """Both losses of given features, and their gradients."""
    text, video, query = (fixture.input(n, dtype).requires_grad_() for n in ("text", "video", "pseudo_query"))
    about = {"width": text.shape[-1], "heads": 1, "layers": 1}
    config = PigConfig(
        kind="pig", clip=ClipConfig(model="unused"), frames=1, generator=GeneratorConfig(selected=1), proxies=1
    )
    model = Pig(config, towers(about, TINY)).to(dtype)
    scale = model.clip.logit_scale.log
    scale.fill_(fixture.input("logit_scale", dtype))
    with torch.enable_grad():
        parts = loss(model, TextFeatures(sentence=text), VideoFeatures(vector=video, pseudo_query=query))
        inputs = {"text": text, "video": video, "pseudo_query": query, "logit_scale": scale}
        gradients = dict(zip(inputs, torch.autograd.grad(parts["total"], list(inputs.values())), strict=True))
    gradients["logit_scale"] = gradients["logit_scale"].reshape(())
    found = {f"grad.{name}": gradient for name, gradient in gradients.items()}
    yield "", found | {name: value.detach() for name, value in parts.items()}


def loss(model: Pig, text: TextFeatures, video: VideoFeatures) -> Outputs:
    """The losses by the authors' names."""
    parts = total_loss(model.training_scores(text, video, None), [], BOTH)
    return {"retrieval": 2 * parts["contrastive"], "generation": parts["generation"], "total": parts["total"]}


def whole(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """Everything between pixels and scores of a converted model; captions padded as they are, and with zeros."""
    model = built(fixture, fixture).to(dtype).eval()
    kept = {}
    model.clip.visual.register_forward_hook(lambda module, given, out: kept.update(tokens=out[0], attention=out[1]))
    model.generator.register_forward_hook(lambda module, given, out: kept.update(given=given[0]))
    video = model.encode_video(fixture.input("video", dtype), fixture.real())
    assert video.pseudo_query is not None
    context = kept["given"][:, : -model.selected]
    scores = informativeness(kept["attention"][:, :, 0], model.global_tokens, model.per_frame)
    ids = fixture.tensors["input.input_ids"]
    zeros = ids * (torch.arange(ids.shape[1]) <= ids.argmax(-1, keepdim=True))
    for label, given in (("", ids), ("zero padding", zeros)):
        text = model.encode_text(given)
        yield (
            label,
            {
                "text_embedding": text.sentence,
                "video_tokens": kept["tokens"],
                "plain_video_embedding": kept["tokens"][:, 0],
                "selection_scores": scores.masked_fill(scores.isinf(), -1),
                "selected_tokens": scores.topk(model.selected, dim=1).indices,
                "generator_input": kept["given"],
                "pseudo_query": video.pseudo_query,
                "interaction_input": context,
                "interaction_scores": model.cross.scores(video.pseudo_query, context)[:, 0],
                "video_embedding": video.vector,
                "similarity": model.similarity(text, video),
            },
        )


def gradients(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """The gradient of the loss for every parameter of the whole model, dropout off."""
    weights = Fixture(fixture.path.parent / fixture.hyper["weights_from"])
    for name in weights.sidecar["compat"]:
        weights.switch(name, {".*": None}, "")
    model = built(weights, weights).to(dtype).eval()
    with torch.enable_grad():
        text = model.encode_text(fixture.tensors["input.input_ids"])
        video = model.encode_video(fixture.input("video", dtype), fixture.real())
        parts = loss(model, text, video)
        parts["total"].backward()
    found = in_their_names(model, Checkpoint(fixture.path, "pig", weights.part("weight")))
    assert found.keys() == set(fixture.hyper["parameters"]), "other parameters are trained"
    norms = torch.stack([found[name].norm() for name in fixture.hyper["parameters"]])
    wanted = {name: found[name.removeprefix("grad.")] for name in fixture.outputs() if name.startswith("grad.")}
    yield "", {"gradient_norms": norms, **wanted, **{n: value.detach() for n, value in parts.items() if n != "total"}}


def in_their_names(model: Pig, checkpoint: Checkpoint) -> Outputs:
    """Every parameter's gradient in the shapes and by the names of the authors."""
    found: Outputs = {}
    for ours, parameter in model.named_parameters():
        if parameter.grad is None:
            assert ours == "generator.ends", f"{ours} has no gradient"
            continue
        names = checkpoint.theirs(ours)
        for name, part in zip(names, parameter.grad.chunk(len(names)), strict=True):
            gradient = part.T if name.removeprefix(PIG) in TRANSPOSED else part
            found[name] = gradient.reshape(checkpoint.tensors[name].shape)
    return found


def optimiser(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """Parameters along given gradients: global clip, AdamW of transformers, its schedule."""
    about, grads = fixture.hyper, fixture.part("input")
    rates = dict.fromkeys(("lr", "clip_lr", "head_lr"), float(about["lr"]))
    config = OptimConfig(
        kind="hf_adamw",
        **rates,
        betas=tuple(about["betas"]),
        eps=float(about["eps"]),
        weight_decay=float(about["weight_decay"]),
        warmup=float(about["warmup_ratio"]),
        grad_clip=float(about["clip"]),
    )
    holder = nn.Module()
    for name in about["decays"]:
        *places, last = name.split(".")
        module = holder
        for place in places:
            module = module._modules.setdefault(place, nn.Module())
        module.register_parameter(last, nn.Parameter(fixture.input(f"param.{name}", dtype)))
    parameters, optimizer = dict(holder.named_parameters()), build_optimizer(holder, config, fused=False)
    decaying = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert {name: id(p) in decaying for name, p in parameters.items()} == about["decays"]
    norms, used, path = [], [], {name: [] for name in parameters}
    for step in range(len(grads[f"grads.{next(iter(parameters))}"])):
        for name, parameter in parameters.items():
            parameter.grad = fixture.input(f"grads.{name}", dtype)[step].clone()
        norms.append(nn.utils.clip_grad_norm_(list(parameters.values()), config.grad_clip))
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * schedule(step, about["total_steps"], config)
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for name, parameter in parameters.items():
            path[name].append(parameter.detach().clone())
    found = {"lr": torch.tensor(used, dtype=torch.float64), "grad_norm": torch.stack(norms)}
    yield "", found | {f"param.{name}": torch.stack(steps) for name, steps in path.items()}


def frames(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """Frame numbers of a test; and of the extremes of many draws of training, the nearest that may be drawn.

    This project packs a video once, with the frames of a test: they stand among those that training may draw.
    """
    num_frames, outputs = fixture.hyper["frames"], fixture.outputs()
    counts = fixture.tensors["input.frames_in_video"].tolist()
    sampler = PigSampler(kind="pig", num_frames=num_frames)
    found = {"test_indices": torch.tensor([sampler.indices(count, 25.0) for count in counts])}
    shifts = [count // (num_frames - 1) for count in counts]
    least, most = (
        torch.from_numpy(np.stack([np.linspace(a, b, num_frames).astype(int) for a, b in ends]))
        for ends in (
            [(0, count - 1 - shift) for count, shift in zip(counts, shifts, strict=True)],
            [(shift, count - 1) for count, shift in zip(counts, shifts, strict=True)],
        )
    )
    assert ((least <= found["test_indices"]) & (found["test_indices"] <= most)).all()
    yield "", found | {name: outputs[name].clamp(least, most) for name in ("train_min", "train_max")}


def built(fixture: Fixture, about: Fixture) -> Pig:
    """The model that the converter makes of the stored weights."""
    about.switch("generator_projection", {"none": None}, "none")
    for end in ("bos", "eos"):
        about.switch(end, {"constant row of the generator token table": None}, "")
    about.constant("head_reduction", "max")
    about.constant("interaction_heads", 1)
    words = fixture.tensors["input.input_ids"].shape[-1]
    release = converted(fixture, "pig", Options(words=words, selected=about.hyper["selected"]))
    check_hyper(fixture, release)
    model = release.model
    assert isinstance(model, Pig)
    found = {"frames": release.num_frames, "added_proxies": model.global_tokens - 1, "words": words}
    assert found == {name: about.hyper[name] for name in found}
    return model


def towers(about: dict[str, Any], vision: dict[str, Any], places: int = 8, mlp_ratio: float = 4.0) -> Towers:
    """Towers of which one side has the sizes of a sidecar; the other does not matter."""
    text = {
        "context_length": places,
        "vocab_size": 4,
        "width": about["width"],
        "heads": about["heads"],
        "layers": about["layers"],
        "mlp_ratio": mlp_ratio,
    }
    assert about.get("activation", "QuickGELU") == "QuickGELU"
    fixed = nn.LayerNorm(1).eps
    assert about.get("layer_norm_eps", fixed) == fixed
    return Towers.from_architecture(
        {"embed_dim": about["width"], "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    )


def prefixed(fixture: Fixture, place: str) -> dict[str, Tensor]:
    """The weights of a part, with its place in a whole model before their names."""
    return {place + name: value for name, value in fixture.part("weight").items()}


def load(modules: dict[str, nn.Module], checkpoint: Checkpoint, besides: tuple[str, ...] = ()) -> None:
    """All weights of a fixture into modules, by their places; `besides` are tensors of ours that it does not fill."""
    used = set(checkpoint.unused()) | set(checkpoint.theirs("generator.ends"))
    for place, module in modules.items():
        names = [name for name in module.state_dict() if place + name not in besides]
        module.load_state_dict({name: checkpoint.tensor(place + name) for name in names}, strict=False)
        used |= {theirs for name in names for theirs in checkpoint.theirs(place + name)}
    unused = checkpoint.tensors.keys() - used
    assert not unused, f"weights that no part of the model has: {', '.join(sorted(unused))}"
