"""The provenance of a release: all that it was made of and by, what it cost, and what a query costs.

An interrupted training that was continued records what an uninterrupted one does, but for `seconds`, `joules` and the
times of a query. What is not known is null. `tools/verify.py` derives again what can be.
"""

import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import distill
from distill import comm
from distill.data.frames import FrameSet
from distill.data.labels import StoredLabels
from distill.data.tokens import TextTokenizer
from distill.licence import stated_licence
from distill.manifest import file_sha256
from distill.model.contract import RetrievalModel, Teacher
from distill.model.features import VideoFeatures
from distill.model.preprocessing import image_size
from distill.model.towers import WEIGHTS_FILE
from distill.recipe import Recipe
from distill.records import json_sha256
from distill.retrieval.stored import bytes_per_video
from distill.training.cost import COUNTED
from distill.training.job import Job
from distill.training.loop import Trained

TIMED = 20  # times that a query is measured; the median counts
LAUNCHER = ("--local_rank", "--local-rank")  # what a launcher adds to the command


@dataclass(frozen=True)
class QueryCost:
    """The times of one query: encoded, and scored in full with all videos of the test set; None without one."""

    encode_ms: float
    score_ms: float | None
    videos: int | None


@torch.inference_mode()
def query_cost(model: RetrievalModel, tokenizer: TextTokenizer, text: str, video: VideoFeatures | None) -> QueryCost:
    """Measure one query on this process's device; `video` are the features of the test set there."""

    def milliseconds(work: Callable[[], Any]) -> float:
        work()
        found = []
        for _ in range(TIMED):
            began = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            found.append(time.perf_counter() - began)
        return round(1e3 * statistics.median(found), 4)

    def encoded() -> Any:
        return model.encode_text(torch.from_numpy(tokenizer([text])).to(comm.device()))

    encode, query = milliseconds(encoded), encoded()
    if video is None:
        return QueryCost(encode, None, None)
    return QueryCost(encode, milliseconds(lambda: model.similarity(query, video)), len(video))


def provenance(
    recipe: Recipe, job: Job, trained: Trained, query: QueryCost, test: FrameSet | None, metrics: dict[str, Any]
) -> dict[str, Any]:
    """Return what a release records of its making, as plain JSON; `metrics` were measured on the frames `test`."""
    parents, temperatures = _parents(job)
    tree = recipe.model_dump(mode="json")
    return {
        "name": recipe.name,
        "recipe": tree,
        "recipe_sha256": json_sha256(tree),
        "parents": parents,
        "frame_sets": _frame_sets(recipe, job, test),
        "teachers": [_teacher(name, labels) for name, labels in _labels(job).items()],
        "towers": _towers(recipe),
        "captions": caption_sources(job.train),
        "temperatures": temperatures,
        "validation": trained.validation or {},
        "evaluated_on": recipe.data.test or "",
        "test": metrics,
        "bytes_per_video": None if isinstance(job.model, Teacher) else bytes_per_video(job.model, *_seen(job)),
        "query": asdict(query),
        "cost": {**_rounded(asdict(trained.cost)), "flops_of": COUNTED},
        "seconds": round(trained.cost.seconds, 1),
        "command": _command(),
        "commit": _commit(),
        "hardware": _hardware(),
        "versions": {
            "distill": distill.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def caption_sources(frames: FrameSet) -> dict[str, int]:
    """Return how many captions each source wrote; `unknown` where annotations do not say."""
    found = Counter[str]()
    for source, captions in frames.videos.sources().items():
        found[source or "unknown"] += captions
    return dict(found)


def _parents(job: Job) -> tuple[dict[str, str], dict[str, dict[str, float]]]:
    """Return the ids of all that a training read, and the temperatures that `auto` stood for, by label set."""
    parents = {"frames": job.train.manifest.id} | ({"init": job.began_with} if job.began_with else {})
    if job.unpaired.videos is not None:
        parents["unlabelled"] = job.unpaired.videos.manifest.id
    if job.unpaired.texts is not None:
        parents["texts"] = job.unpaired.texts.id
    labels = _labels(job)
    parents |= {name: stored.manifest.id for name, stored in labels.items()}
    used = {
        name: source.temperatures.used() for source in job.sources for name in labels if labels[name] is source.labels
    }
    return parents, {name: found for name, found in used.items() if found}


def _labels(job: Job) -> dict[str, StoredLabels]:
    """Return every label set by a name of its own: folders may share their last name."""
    found: dict[str, StoredLabels] = {}
    for source in job.sources:
        name = f"labels {source.labels.path.name}"
        others = sum(other == name or other.startswith(f"{name} #") for other in found)
        name = f"{name} #{others + 1}" if others else name
        given = {name: source.labels, f"{name}, unlabelled": source.unlabelled, f"{name}, texts": source.texts}
        found |= {key: labels for key, labels in given.items() if labels is not None}
    return found


def _frame_sets(recipe: Recipe, job: Job, test: FrameSet | None) -> dict[str, Any]:
    """Return the path, id and stated licence of every frame set, by its key in `data`."""
    read = {"train": job.train, "val": job.val, "test": test, "unlabelled": job.unpaired.videos}
    return {
        key: {
            "path": getattr(recipe.data, key),
            "id": frames.manifest.id,
            "licence": stated_licence(frames.path),
        }
        for key, frames in read.items()
        if frames is not None
    }


def _teacher(name: str, labels: StoredLabels) -> dict[str, Any]:
    return {"labels": name, "labels_id": labels.manifest.id, **labels.about_teacher().model_dump()}


def _towers(recipe: Recipe) -> dict[str, Any]:
    """Return which towers a training began with; `sha256` is that of their file, where they are a folder."""
    clip = recipe.model.clip
    folder = clip.folder
    file = folder / WEIGHTS_FILE
    used = clip.weights == "folder" and file.is_file()
    return {
        "model": clip.model,
        "weights": clip.weights,
        "sha256": file_sha256(file) if used else None,
        "licence": stated_licence(folder) if folder.is_dir() else None,
    }


def _rounded(cost: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 1) if isinstance(value, float) else value for key, value in cost.items()}


def _seen(job: Job) -> tuple[int, int]:
    """Return how many frames the model sees of a video, and their side in pixels."""
    return job.train.num_frames, image_size(job.model.clip.architecture)


def _command() -> str:
    """Return the command as it was given, without what a launcher adds for each process."""
    given = [one for one in sys.argv[1:] if not one.startswith(LAUNCHER)]
    return f"{Path(sys.argv[0]).name} {shlex.join(given)}".strip()


def _commit() -> dict[str, Any] | None:
    """Return the commit of this code, and whether files were changed since; None where it is not a clone of git."""
    root = Path(distill.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    asked = {"cwd": root, "capture_output": True, "text": True, "timeout": 60}
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, **asked).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], check=True, **asked).stdout
    except (OSError, subprocess.SubprocessError):  # no git here, or a clone of another user, which it refuses
        return None
    return {"id": commit, "changed": bool(changed.strip())}


def _hardware() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name(comm.device()) if torch.cuda.is_available() else None
    return {"processes": comm.world_size(), "gpu": gpu, "cpu": _cpu(), "cores": os.cpu_count()}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
