"""The outputs of a training fixture: the TeachCLIP student taught by given teachers, step by step.

In float64 the project's parts are put together here: the losses, the optimiser and its schedule, the clip, the clamp.
In float32 the project's own Engine takes the steps (`parity/steps.py`, in a process of its own).
"""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.conversion.authors import Checkpoint
from distill.model.logit_scale import LogitScale
from distill.model.towers import Towers
from distill.release.release import Release
from distill.training.lossconfig import LossConfig
from distill.training.optim import OptimConfig, build_optimizer, schedule
from distill.training.teachers import TeacherScores
from parity.fixture import Fixture
from parity.measures import loss_config, weigh_stored
from parity.modules import Outputs, Runs
from parity.whole import check_hyper, convert_options, converted
from students.teachclip import TeachClip, TeachClipConfig

ZERO_STAGES = (0, 2)
ROOT = Path(__file__).resolve().parent.parent.parent


class Trace:
    """Everything that a fixture records of every step, under the authors' names."""

    def __init__(self, fixture: Fixture, model: TeachClip):
        checkpoint = Checkpoint(fixture.path, "teachclip", fixture.part("weight"))
        self.ours = {checkpoint.theirs(name)[0]: name for name, _ in model.named_parameters()}
        self.watched = sorted(
            {name.split(".", 1)[1] for name in fixture.part("output") if name.startswith("checksum.")}
        )
        self.final = sorted({name.split(".", 1)[1] for name in fixture.part("output") if name.startswith("final.")})
        self.steps: list[dict[str, Tensor]] = []
        self.sums: list[list[Tensor]] = []
        self.last: dict[str, Tensor] = {}

    def weights(self, values: dict[str, Tensor]) -> None:
        """The weights as they are: before the first step, and after each."""
        self.last = {theirs: values[ours].detach().clone() for theirs, ours in self.ours.items()}
        self.sums.append([_checksum(self.last[name]) for name in self.watched])

    def step(self, values: dict[str, float | Tensor]) -> None:
        """The results of one step."""
        self.steps.append(
            {name: torch.as_tensor(value, dtype=torch.float64).detach().clone() for name, value in values.items()}
        )

    def outputs(self) -> Outputs:
        """Everything, steps along the first axis."""
        found = {name: torch.stack([step[name] for step in self.steps]) for name in self.steps[0]}
        for number, name in enumerate(self.watched):
            rows = torch.stack([sums[number] for sums in self.sums])
            found |= {f"checksum.{name}.sums": rows[:, :2], f"checksum.{name}.first8": rows[:, 2:]}
        scale = "clip.logit_scale"  # one element here, none there
        return found | {
            f"final.{n}": self.last[n].reshape(() if n == scale else self.last[n].shape) for n in self.final
        }


def training(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """The recorded steps, in double by the parts of training, in single by the Engine under several ZeRO stages."""
    fixture.switch("afa_mask", {"off.*": None}, "off")
    config = loss_config(fixture)
    model = student(fixture)
    check_groups(fixture)
    check_frozen(fixture, model)
    if dtype == torch.float64:
        with torch.enable_grad():
            yield "", by_parts(fixture, model.double(), config)
        return
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        by_engine(fixture, Path(folder))
        for zero in ZERO_STAGES:
            yield f"Engine, ZeRO {zero}", load_file(Path(folder) / f"{zero}.safetensors")


def by_parts(fixture: Fixture, model: TeachClip, losses: LossConfig) -> Outputs:
    """One process, double precision."""
    config, steps = optim_config(fixture), len(fixture.tensors["input.video"])
    optimizer = build_optimizer(model, config, fused=False)
    trace, real = Trace(fixture, model), fixture.real()
    trace.weights(dict(model.named_parameters()))
    before = trace.last
    for step in range(steps):
        text = model.encode_text(fixture.tensors["input.input_ids"][step])
        video = model.encode_video(fixture.input("video", torch.float64)[step], real)
        logits = model.logits(text, video)
        labels = list(fixture.input("teacher_relevance", torch.float64)[step])
        parts = weigh_stored(logits, video.relevance, targets(fixture, step), labels, losses)
        optimizer.zero_grad()
        parts["total"].backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * schedule(step, fixture.hyper["t_total"], config)
        optimizer.step()
        with torch.no_grad():
            model.clip.logit_scale.log.clamp_(max=LogitScale.MAX_LOG)
        scale = model.clip.logit_scale.log[0]
        trace.step({**parts, "grad_norm": norm, "student_logits": logits, "logit_scale": scale})
        trace.weights(dict(model.named_parameters()))
    check_unchanged(fixture, before, trace.last)
    return trace.outputs()


def by_engine(fixture: Fixture, out: Path) -> None:
    """The steps of the project's Engine, once per ZeRO stage, from a process of its own."""
    paths = [str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "parity.steps", str(fixture.path), str(out), *map(str, ZERO_STAGES)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"the Engine stopped:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


def student(fixture: Fixture) -> TeachClip:
    """The student with the stored weights, frozen as the fixture says."""
    freezes = {r"-1": None} | {str(number): number for number in range(100)}
    freeze = fixture.switch("freeze_layer_num", freezes, "0")
    release = unfrozen(fixture)
    towers = Towers.from_architecture(release.config.architecture, freeze, freeze)
    model = TeachClip(TeachClipConfig.model_validate(release.config.model), towers)
    model.load_state_dict(release.model.state_dict())
    return model


def unfrozen(fixture: Fixture) -> Release:
    """Return what the converter makes of the stored weights."""
    release = converted(fixture, "teachclip", convert_options(fixture, "teachclip", "on"))
    check_hyper(fixture, release)
    return release


def optim_config(fixture: Fixture) -> OptimConfig:
    """The authors' optimiser with the rates of the fixture: of CLIP lr x coef_lr, of the frame aggregation 10 lr."""
    about = fixture.hyper
    return OptimConfig(
        kind="bertadam",
        lr=float(about["lr"]),
        clip_lr=about["lr"] * about["coef_lr"],
        head_lr=10 * float(about["lr"]),
        weight_decay=float(about["weight_decay"]),
        warmup=float(about["warmup"]),
        betas=tuple(about.get("betas", (0.9, 0.98))),
        eps=float(about.get("eps", 1e-6)),
        grad_clip=float(about.get("max_grad_norm", 1.0)),
    )


def check_groups(fixture: Fixture) -> None:
    """The optimiser has the rates, decays and sizes of the authors' groups, which hold what is frozen as well."""
    found, stated = Counter(), Counter()
    for group in build_optimizer(unfrozen(fixture).model, optim_config(fixture), fused=False).param_groups:
        found[_rounded(group["peak_lr"], group["weight_decay"])] += len(group["params"])
    for group in fixture.hyper["groups"]:
        stated[_rounded(group["lr"], group["weight_decay"])] += group["tensors"]
    assert found == stated, f"optimiser groups {dict(found)}, the fixture has {dict(stated)}"


def check_frozen(fixture: Fixture, model: TeachClip) -> None:
    """Check that the parameters which the fixture calls frozen are not trained."""
    trained = dict(model.named_parameters())
    found = {theirs for theirs, ours in Trace(fixture, model).ours.items() if not trained[ours].requires_grad}
    assert found == set(fixture.hyper["frozen"]), f"frozen: {sorted(found)}, the fixture has {fixture.hyper['frozen']}"


def check_unchanged(fixture: Fixture, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    """Check that frozen parameters have kept their numbers."""
    for name in fixture.hyper["frozen"]:
        assert torch.equal(before[name], after[name]), f"{name} is frozen, but it has changed"


def targets(fixture: Fixture, step: int) -> list[TeacherScores]:
    """Return what the teachers say of one step's batch; stored labels are softmaxes already."""
    logits, labels = (fixture.input(f"teacher_{name}", torch.float64)[step] for name in ("logits", "relevance"))
    return [TeacherScores(logits=rows, relevance=label.log()) for rows, label in zip(logits, labels, strict=True)]


def _rounded(lr: float, decay: float) -> tuple[str, str]:
    return f"{lr:.6g}", f"{decay:.6g}"


def _checksum(value: Tensor) -> Tensor:
    flat = value.double().flatten()
    first = torch.zeros(8, dtype=torch.float64)
    first[: min(8, len(flat))] = flat[:8]
    return torch.cat([flat.sum()[None], flat.abs().sum()[None], first])
