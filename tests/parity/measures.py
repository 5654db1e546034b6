"""The outputs of fixtures without a network: losses and their gradients, the optimiser, metrics, frame numbers."""

import re

import numpy as np
import torch
from torch import Tensor, nn

from distill.data.sampler import Clip4ClipSampler
from distill.evaluation.metrics import ranks_t2v, ranks_v2t, summarise
from distill.model.contract import TrainingScores
from distill.training.lossconfig import CoarseConfig, ContrastiveConfig, FineConfig, LossConfig
from distill.training.objective import total_loss
from distill.training.optim import OptimConfig, build_optimizer, schedule
from distill.training.teachers import TeacherScores
from parity.fixture import Fixture
from parity.modules import Outputs, Runs

PARTS = {"infonce": "contrastive", "coarse": "coarse", "fine": "fine", "total": "total"}  # theirs -> ours


def losses(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """TeachCLIP's loss on given logits and frame scores, its parts and their gradients."""
    inputs = {name: fixture.input(name, dtype).requires_grad_() for name in ("student_logits", "afa_scores")}
    numbers = sorted(int(name[7:-7]) for name in fixture.part("input") if re.fullmatch(r"teacher\d+_logits", name))
    labels = [fixture.input(f"teacher{k}_relevance", dtype) for k in numbers]
    targets = [
        TeacherScores(logits=fixture.input(f"teacher{k}_logits", dtype), relevance=label.log())
        for k, label in zip(numbers, labels, strict=True)
    ]
    fixture.constant("teachers", len(targets))
    config = loss_config(fixture)
    with torch.enable_grad():
        found = weigh_stored(inputs["student_logits"], inputs["afa_scores"], targets, labels, config)
        gradients = {}
        for key in fixture.part("output.grad"):
            part, to = key.split(".")
            (gradients[f"grad.{key}"],) = torch.autograd.grad(found[part], inputs[to], retain_graph=True)
    yield "", {name: value.detach() for name, value in found.items()} | gradients


def weigh_stored(
    logits: Tensor, scores: Tensor, targets: list[TeacherScores], labels: list[Tensor], config: LossConfig
) -> Outputs:
    """The losses under the authors' names, of labels whose rows, rounded to float32, do not sum to one exactly.

    Labels are raw scores in this project, so their softmax does. The cross-entropy is linear in the label; what the
    difference of the two gives is added here.
    """
    found = total_loss(TrainingScores.of(logits, scores), targets, config)
    found = {theirs: found[ours] for theirs, ours in PARTS.items()}
    if config.fine.distance == "cross_entropy":
        surplus = torch.stack([label - label.log().softmax(-1) for label in labels])
        rest = -(surplus * scores.log_softmax(-1)).mean()
        found |= {"fine": found["fine"] + rest, "total": found["total"] + config.fine.weight * rest}
    return found


def loss_config(fixture: Fixture) -> LossConfig:
    """The weights of the loss, and its distances."""
    weights = [float(weight) for weight in fixture.hyper["weights"]] if "weights" in fixture.hyper else [0.2, 1.0, 2.0]
    said = fixture.switch("loss_weights", {r"\(.*\)": fixture.sidecar["compat"].get("loss_weights")}, "()")
    assert said is None or [float(x) for x in said.strip("()").split(",")] == weights, "two weights of the losses"
    coarse = {"pear.*": "pearson", "ce|cross.entropy": "cross_entropy", "l1": "l1"}
    fine = {"ce|cross.entropy": "cross_entropy", "pear.*": "pearson"}
    reductions = {"mean over batch and frames|mean_bf": "frame", "batchmean": "pair"}
    return LossConfig(
        contrastive=ContrastiveConfig(weight=weights[0]),
        coarse=CoarseConfig(
            weight=weights[1],
            temperature=float(fixture.hyper.get("beta", 1.0)),
            distance=fixture.switch("distill", coarse, "pearson"),
        ),
        fine=FineConfig(
            weight=weights[2],
            distance=fixture.switch("fine", fine, "ce"),
            reduction=fixture.switch("fine_reduction", reductions, "mean_bf"),
        ),
    )


def optimizer(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """Parameters along given gradients: global clip, BertAdam, the authors' schedule."""
    about = fixture.hyper
    peaks = {group["param"]: float(group["lr"]) for group in about["groups"]}
    parameters = {name: nn.Parameter(fixture.input(f"param0.{name}", dtype)) for name in peaks}
    stepper = None
    for group in about["groups"]:  # built as training builds it, one parameter at a time for its own rate and decay
        config = optim_config(fixture, lr=peaks[group["param"]], weight_decay=float(group["weight_decay"]))
        holder = nn.ParameterDict({group["param"]: parameters[group["param"]]})
        one = build_optimizer(holder, config, fused=False)
        if stepper is None:
            stepper = one
        else:
            stepper.add_param_group(one.param_groups[0])
    assert stepper is not None
    gradients = {name: fixture.input(f"grad.{name}", dtype) for name in peaks}
    norms, rates, path = [], [], {name: [] for name in peaks}
    for step in range(len(next(iter(gradients.values())))):
        for name, parameter in parameters.items():
            parameter.grad = gradients[name][step].clone()
        norms.append(nn.utils.clip_grad_norm_(list(parameters.values()), config.grad_clip))
        for group in stepper.param_groups:
            group["lr"] = group["peak_lr"] * schedule(step, about["t_total"], config)
        stepper.step()
        rates.append([peak * schedule(step + 1, about["t_total"], config) for peak in peaks.values()])
        for name, parameter in parameters.items():
            path[name].append(parameter.detach().clone())
    found = {"lr_reported_after_step": torch.tensor(rates, dtype=dtype), "grad_norm_before_clip": torch.stack(norms)}
    for name, parameter in parameters.items():
        found[f"param.{name}"] = torch.stack(path[name])
        found[f"m_final.{name}"] = stepper.state[parameter]["exp_avg"]
        found[f"v_final.{name}"] = stepper.state[parameter]["exp_avg_sq"]
    yield "", found


def optim_config(fixture: Fixture, *, lr: float, weight_decay: float) -> OptimConfig:
    """BertAdam at one rate, with what the fixture says of the rest."""
    about = fixture.hyper
    return OptimConfig(
        kind="bertadam",
        lr=lr,
        clip_lr=lr,
        head_lr=lr,
        weight_decay=weight_decay,
        betas=tuple(about["betas"]),
        eps=float(about["eps"]),
        warmup=float(about["warmup"]),
        grad_clip=float(about["max_grad_norm"]),
    )


def metrics(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """Ranks both ways and what is said of them; where a video has several captions, T2V takes the lower median."""
    similarity = fixture.input("similarity", dtype)
    several = "input.caption_owner" in fixture
    own = fixture.tensors["input.caption_owner"] if several else torch.arange(len(similarity))
    if "input.cut_off_points" in fixture:
        assert torch.equal(own.bincount().cumsum(0), fixture.tensors["input.cut_off_points"]), (
            "cut-offs of other groups"
        )
    found: Outputs = {}
    for way, ranks in (("t2v", ranks_t2v(similarity, own)), ("v2t", ranks_v2t(similarity, own))):
        summary = summarise(ranks)
        lower = several and way == "t2v"
        values = {f"R{k}": summary[f"R@{k}"] for k in (1, 5, 10)} | {"MeanR": summary["MnR"]}
        values |= {"R50": 100 * float((ranks < 50).double().mean()), "Std_Rank": float(np.std(ranks.numpy()))}
        values["MedianR"] = float(ranks.median() + 1) if lower else summary["MdR"]
        found |= {f"{way}.{name}": torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
        found[f"{way}.ranks0"] = ranks
    yield "", found


def frames(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """Frame numbers of whole videos and of clips, -1 where there is none; and the table that the sidecar prints."""
    rate = fixture.hyper["sample_fps"]
    videos = list(zip(fixture.tensors["input.num_frames"].tolist(), fixture.tensors["input.fps"].tolist(), strict=True))
    found: Outputs = {}
    for name, expected in fixture.outputs().items():
        cut = re.fullmatch(r"clip4clip\.(head|tail|uniform)\.F(\d+)", name)
        if cut:
            sampler = Clip4ClipSampler(kind="clip4clip", fps=rate, num_frames=int(cut[2]), slice=cut[1])
            rows = [sampler.indices(*video) for video in videos]
        elif name == "clip4clip.clip_raw":
            sampler = Clip4ClipSampler(kind="clip4clip", fps=rate, num_frames=10**6)
            clips = (fixture.tensors[f"input.clip.{part}"].tolist() for part in ("num_frames", "fps", "start_end"))
            rows = [sampler.indices(count, fps, *map(float, ends)) for count, fps, ends in zip(*clips, strict=True)]
        else:
            continue
        assert max(map(len, rows)) <= expected.shape[1], f"{name}: more frames than the fixture has"
        found[name] = torch.tensor([row + [-1] * (expected.shape[1] - len(row)) for row in rows])
    for row in fixture.sidecar.get("table", []):
        for name in row.keys() - {"num_frames", "fps"}:
            kind, number = re.fullmatch(r"(head|tail|uniform)(\d+)", name).groups()
            sampler = Clip4ClipSampler(kind="clip4clip", fps=rate, num_frames=int(number), slice=kind)
            assert sampler.indices(row["num_frames"], row["fps"]) == row[name], f"table: {row}"
    yield "", found
