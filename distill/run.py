"""Trains a teacher or a student from one recipe, and leaves a release that people can load and search with.

    deepspeed distill/run.py recipes/teachclip.yaml
    torchrun --standalone --nproc_per_node 2 distill/run.py recipes/teachclip.yaml train.epochs=3
    python distill/run.py recipes/xclip.yaml optim.lr=0.0005

Everything after the recipe is `section.key=value`, read by the same strict reader. The run goes to runs/NAME. The same
command continues an unfinished run from its last checkpoint; a finished one is left alone and NAME-2 begun.
"""

import pathlib
import sys

if not __package__:  # run by path: the repository root must be first, not distill/
    sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

import argparse
import errno
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save

import distill
from distill import catalogue, comm, log
from distill.config import dump_recipe, read_recipe, read_tree
from distill.data.frames import FrameSet
from distill.data.labels import LabelSet
from distill.data.tokens import Tokenizer, read_vocabulary
from distill.errors import ExpectedError, RecipeError, door
from distill.evaluation.evaluate import Scores, evaluate
from distill.manifest import published, sweep, write_json
from distill.model.blocks import require_compiler
from distill.model.clip import ClipModel
from distill.model.contract import RetrievalModel
from distill.recipe import Recipe, changed, kept_apart
from distill.release.card import model_card
from distill.release.release import write_release
from distill.retrieval.stored import bytes_per_video
from distill.training import engine
from distill.training.loop import Job, train

RECIPE = "recipe.yaml"
LOCK = ".lock"
logger = logging.getLogger("distill.run")


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the recipe, trains, tests once, releases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a YAML recipe, e.g. recipes/teachclip.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    args = parser.parse_args(argv)
    log.setup(comm.rank())
    recipe = read_recipe(args.recipe, args.overrides, Recipe)
    with comm.reporting_lost_ranks(recipe.train.timeout_minutes):
        run(recipe)


def run(recipe: Recipe) -> None:
    """What the recipe says, from nothing or from the last checkpoint of the same recipe. A collective."""
    started = time.time()
    job_for, test = prepare(recipe)
    engine.start(recipe.train.timeout_minutes)
    folder = _run_folder(recipe)
    with alone_in(folder):
        job = job_for(folder)
        logger.info(f"{recipe.model.kind} into {folder} on {comm.world_size()} process(es), {comm.device().type}")
        weights = train(job)
        job = replace(job, model=_restored(recipe, weights))
        scores = _test(job, test) if test is not None else None
        if comm.rank() == 0:
            _release(recipe, job, weights, scores, time.time() - started)
    comm.close()


def prepare(recipe: Recipe):
    """Opens and checks everything a recipe names; returns what makes the job in a run folder, and the test frames."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    parts = world * recipe.train.accumulate
    if recipe.data.batch_size % parts:
        micro = f" in {recipe.train.accumulate} micro-batches each (train.accumulate)" if parts > world else ""
        raise RecipeError(
            f"data.batch_size: {recipe.data.batch_size} pairs cannot be shared equally by {world} processes{micro}; "
            f"use a multiple of {parts}"
        )
    if recipe.train.compile:
        require_compiler(comm.device())
    verify = comm.rank() == 0
    cache = recipe.data.open_cache()
    train_set, val_set = (FrameSet(path, verify=verify, cache=cache) for path in (recipe.data.train, recipe.data.val))
    test_set = FrameSet(recipe.data.test, verify=verify, cache=cache) if recipe.data.test else None
    for frames in filter(None, (train_set, val_set, test_set)):
        recipe.data.check(frames, str(frames.path))
    coarse = bool(recipe.losses.coarse.weight)
    labels = [
        LabelSet(
            label.path,
            train_set,
            verify=verify,
            coarse=label.coarse if coarse else None,
            on_mismatch=label.on_mismatch,
        )
        for label in recipe.labels
    ]
    for label, label_set in zip(recipe.labels, labels, strict=True):
        if coarse:
            label_set.require(label.coarse, "losses.coarse")
        if recipe.losses.fine.weight:
            label_set.require("relevance", "losses.fine")
    interactions = [
        catalogue.build_interaction(
            **label_set.interaction, weights=label_set.interaction_weights(), where=str(label_set.path)
        )
        for label_set in labels
    ]
    torch.manual_seed(recipe.seed)
    model = catalogue.build(recipe.model, ClipModel.from_config(recipe.model.clip))
    tokenizer = Tokenizer(recipe.data.max_words, read_vocabulary(Path(recipe.model.clip.model)))
    _check_towers(recipe, model, train_set)

    def job_for(folder: Path) -> Job:
        return Job(
            folder=folder,
            seed=recipe.seed,
            model=model,
            interactions=interactions,
            tokenizer=tokenizer,
            train=train_set,
            val=val_set,
            labels=labels,
            label_weights=[label.weight for label in recipe.labels],
            data=recipe.data,
            losses=recipe.losses,
            optim=recipe.optim,
            config=recipe.train,
        )

    return job_for, test_set


def _check_towers(recipe: Recipe, model: RetrievalModel, frames: FrameSet) -> None:
    """Refuses frames and captions of a size that the towers cannot take."""
    size = model.clip.architecture["vision_cfg"]["image_size"]
    if frames.size != size:
        raise RecipeError(
            f"data.train: {frames.path} was packed with {frames.size} pixels, but {recipe.model.clip.model} takes "
            f"{size}; pack again with --size {size}"
        )
    context = model.clip.text.context
    if recipe.data.max_words > context:
        raise RecipeError(
            f"data.max_words: {recipe.data.max_words} tokens, but the text tower of {recipe.model.clip.model} takes at "
            f"most {context}"
        )


def _restored(recipe: Recipe, weights: dict[str, torch.Tensor]) -> RetrievalModel:
    """The best weights in the model that is released; what training leaves behind may be partitioned (ZeRO 3)."""
    model = catalogue.build(recipe.model.released(), ClipModel.from_config(recipe.model.clip))
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model.eval().to(comm.device())


def _test(job: Job, frames: FrameSet) -> Scores:
    logger.info(f"testing on {frames.path}: {len(frames)} videos")
    model, data = job.model, job.data
    return evaluate(model, frames, job.tokenizer, data.num_frames, bf16=job.bf16, workers=data.workers)


def _run_folder(recipe: Recipe) -> Path:
    """The first of OUT/NAME, OUT/NAME-2, ... that is free or holds an unfinished run of this recipe.

    What is changed in how a run is carried out does not make another recipe of it, as long as the numbers stay.
    """
    chosen: list[str | None] = [None]
    if comm.rank() == 0:
        text, number = dump_recipe(recipe).encode(), 1
        while True:
            folder = Path(recipe.out) / (recipe.name if number == 1 else f"{recipe.name}-{number}")
            old = (folder / RECIPE).read_bytes() if (folder / RECIPE).is_file() else None
            if old == text and not (folder / "release").is_dir():
                break
            if old is None or not ((folder / "release").is_dir() or _begun_otherwise(folder, recipe)):
                with published(folder / RECIPE) as file:
                    file.write(text)
                break
            number += 1
        chosen[0] = str(folder)
    if comm.world_size() > 1:
        dist.broadcast_object_list(chosen, src=0)
    assert chosen[0] is not None
    return Path(chosen[0])


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Refuses a folder into which another job trains; the lock ends with the process of rank 0, however that ends."""
    if comm.rank():
        yield
        return
    with (folder / LOCK).open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ExpectedError(
                    f"{folder}: the same command is running already and trains into it; wait for it, or stop it first"
                ) from None
            logger.warning(f"{folder}: not locked ({error.strerror}), so see to it that nothing else trains into it")
        sweep(folder)
        yield


def _begun_otherwise(folder: Path, recipe: Recipe) -> bool:
    """Whether the unfinished run in the folder must be left as it is; says why, or what has changed."""
    try:
        tree = read_tree(folder / RECIPE)
    except RecipeError as error:
        logger.info(f"{folder}: left as it is: {error}")
        return True
    apart = kept_apart(tree, recipe)
    if apart:
        logger.info(f"{folder}: left as it is, an unfinished run with another {', '.join(apart)}")
    else:
        logger.info(f"{folder}: continued with another {', '.join(changed(tree, recipe.model_dump(mode='json')))}")
    return bool(apart)


def _release(recipe: Recipe, job: Job, weights: dict[str, torch.Tensor], scores: Scores | None, seconds: float) -> None:
    metrics = scores.metrics if scores else {}
    if scores:
        ranks = {name: getattr(scores, name) for name in ("t2v", "v2t", "video_of_text")}
        with published(job.folder / "test_ranks.safetensors") as file:
            file.write(save(ranks))
        write_json(job.folder / "test.json", metrics)
    parents = {"frames": job.train.manifest.id}
    parents |= {f"labels {label_set.path.name}": label_set.manifest.id for label_set in job.labels}
    provenance = {
        "name": recipe.name,
        "recipe": recipe.model_dump(mode="json"),
        "parents": parents,
        "evaluated_on": recipe.data.test or "",
        "test": metrics,
        "seconds": round(seconds, 1),
        "versions": {"distill": distill.__version__, "torch": torch.__version__},
    }
    stored = None
    if recipe.model.kind not in catalogue.INTERACTIONS:
        stored = bytes_per_video(job.model, job.data.num_frames, job.train.size)
    kept = {name: weights[name] for name in job.model.state_dict()}
    parameters = sum(tensor.numel() for tensor in kept.values())
    left_out = sum(tensor.numel() for tensor in weights.values()) - parameters
    release = job.folder / "release"
    write_release(
        release,
        model=job.model,
        model_config=recipe.model.released(),
        weights=kept,
        text={"max_words": recipe.data.max_words, "vocabulary": job.tokenizer.vocabulary},
        frames_config=job.train.manifest.config,
        provenance=provenance,
        card=model_card(recipe.model, metrics, provenance, stored, parameters=parameters, left_out=left_out),
    )
    logger.info(f"released {release}: {parameters:,} parameters, {4e-6 * parameters:,.1f} MB")
    print(json.dumps({"release": str(release), "test": metrics}))


if __name__ == "__main__":
    door(main)
