"""Teachers with random weights on a small corpus, and their label sets, made in this process."""

from pathlib import Path

import torch
from conftest import World

from distill import catalogue
from distill.data.frames import FrameSet
from distill.data.labels import Storage
from distill.data.tokens import Tokenizer
from distill.model.clip import Clip, ClipConfig
from distill.model.contract import Teacher
from distill.training.teach import Teaching

TEMPORAL = {"layers": 1, "init": "normal"}
TEACHERS = {
    "xclip": {"temporal": TEMPORAL, "words": 24, "frames": 12},
    "ts2net": {"temporal": TEMPORAL, "frames": 12, "shift_layers": 1},
    "xpool": {},
}


def random_teacher(world: World, kind: str) -> Teacher:
    """A teacher whose scoring head is not the one it starts from."""
    torch.manual_seed(3)
    clip = ClipConfig(model=str(world.towers))
    config = catalogue.parse_model_config({"kind": kind, "clip": clip.model_dump(), **TEACHERS[kind]}, kind)
    teacher = catalogue.build(config, Clip.from_config(clip))
    assert isinstance(teacher, Teacher)
    with torch.no_grad():
        for parameter in teacher.interaction.parameters():
            if parameter.numel() > 1:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return teacher.eval()


def write_labels(world: World, kind: str, folder: Path, storage: Storage = "float32") -> Path:
    """The label set of a random teacher on the training frames."""
    job = Teaching(
        random_teacher(world, kind),
        teacher_id=kind,
        kind=kind,
        tokenizer=Tokenizer(24),
        frames=FrameSet(world.frames["train"]),
        out=folder,
        tiers=["relevance", "features"],
        storage=storage,
        batch=8,
        workers=0,
        bf16=False,
        device=torch.device("cpu"),
    )
    assert job.already_sealed() is None
    job.label_shards(list(job.shards), quiet=True)
    job.finish()
    return folder
