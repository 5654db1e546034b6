"""A whole recipe: open and check everything it names, train, test the best weights once, and write the release."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from distill import catalogue, comm
from distill.data.datasets import UnpairedSource
from distill.data.frames import FrameSet
from distill.data.jsontokens import JsonTokenizer
from distill.data.pictures import Fit
from distill.data.texts import Texts
from distill.data.tokens import TextTokenizer, warn_of_cuts
from distill.errors import RecipeError
from distill.evaluation.choosing import choose, look_again
from distill.evaluation.counting import Counted
from distill.evaluation.evaluate import Encoded, check_captions, encode, rank, texts_of
from distill.evaluation.metrics import Ranks
from distill.labelling.sources import open_source
from distill.model.blocks import require_compiler
from distill.model.contract import RetrievalModel
from distill.model.preprocessing import image_size
from distill.model.second_look import SecondLook
from distill.model.towers import Towers, open_tokenizer
from distill.provenance import QueryCost, provenance, query_cost
from distill.publishing import check_writable, publish
from distill.recipe import Recipe
from distill.records import write_json
from distill.release.initial import build_from
from distill.release.writing import write_release
from distill.remote import locate
from distill.reporting.answers import FIRST, keep_answers
from distill.reporting.report import write_report
from distill.terminal import show
from distill.training import engine
from distill.training.folder import RELEASE, TEST, TEST_RANKS, alone_in, choose_folder
from distill.training.job import Job
from distill.training.loop import Trained, train
from distill.training.trackers import check_trackers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Tested:
    """The ranks of the best weights on the test frames, and with the second look."""

    frames: FrameSet
    seen: Encoded
    plain: Counted
    second: Ranks | None

    @property
    def metrics(self) -> dict[str, Any]:
        return self.plain.metrics | ({} if self.second is None else {"second_look": self.second.metrics})

    def tensors(self) -> dict[str, Tensor]:
        found = {"t2v": self.plain.t2v, "v2t": self.plain.v2t, "video_of_text": self.seen.video_of_text}
        return found | ({} if self.second is None else {"second_t2v": self.second.t2v, "second_v2t": self.second.v2t})


def run(recipe: Recipe) -> None:
    """Train from the first step or the last checkpoint of the same recipe; then test and release. A collective."""
    if comm.rank() == 0:
        check_writable(Path(recipe.out) / recipe.name)
    job, test = prepare(recipe)
    engine.start(recipe.train.timeout_minutes)
    job = replace(job, folder=choose_folder(job.folder, recipe))
    with alone_in(job.folder, recipe):
        log.info(f"{recipe.model.kind} into {job.folder} on {comm.world_size()} process(es), {comm.device().type}")
        trained = train(job)
        job = replace(job, model=_restored(recipe, job.model.clip.architecture, trained.weights))
        options: dict[str, Any] = {"bf16": job.bf16, "workers": job.data.workers}
        look = choose(job.model, job.val, job.tokenizer, **options)
        if look is not None:
            log.info(f"second look, chosen on {job.val.path}: {look}")
        tested, seen = None, None
        if test is not None:
            log.info(f"testing on {test.path}: {len(test)} videos")
            seen = encode(job.model, test, job.tokenizer, **options, all_features=look is not None)
            plain = rank(job.model.similarity, seen, FIRST)
            tested = _Tested(test, seen, plain, None if look is None else look_again(look, seen))
        if comm.rank() == 0:
            query = query_cost(job.model, job.tokenizer, texts_of(job.val)[0], None if seen is None else seen.video)
            _release(recipe, job, trained, look, tested, query)
            _report(job, tested)
    comm.close()


def prepare(recipe: Recipe) -> tuple[Job, FrameSet | None]:
    """Open and check everything a recipe names; return the job in the folder OUT/NAME, and the test frames.

    Raises an `ExpectedError` that names the recipe's key or the artefact that does not fit.
    """
    check_trackers(recipe.train.track)
    _check_processes(recipe)
    if recipe.train.compile:
        require_compiler(comm.device())
    torch.manual_seed(recipe.seed)
    model, began_with = _begin(recipe)
    _check_context(recipe, model)
    fit = model.clip.preprocessing.fit(image_size(model.clip.architecture))
    tokenizer = open_tokenizer(recipe.model.clip, model.clip.architecture, recipe.data.max_words)
    frames, val, test = _open_frames(recipe, fit, tokenizer)
    unpaired = _open_unpaired(recipe, fit, tokenizer)
    sources = [open_source(label, recipe.losses, frames, unpaired, model.clip.dim) for label in recipe.labels]
    unpaired = replace(
        unpaired,
        video_labels=[source.unlabelled for source in sources if source.unlabelled is not None],
        text_labels=[source.texts for source in sources if source.texts is not None],
    )
    return Job(
        folder=Path(recipe.out) / recipe.name,
        seed=recipe.seed,
        model=model,
        tokenizer=tokenizer,
        train=frames,
        val=val,
        sources=sources,
        unpaired=unpaired,
        data=recipe.data,
        losses=recipe.losses,
        optim=recipe.optim,
        config=recipe.train,
        began_with=began_with,
    ), test


def _begin(recipe: Recipe) -> tuple[RetrievalModel, str | None]:
    """The model before the first step, and the id of the release whose weights it has."""
    if recipe.init is not None:
        return build_from(locate(recipe.init), recipe.model)
    return catalogue.build(recipe.model, Towers.from_config(recipe.model.clip)), None


def _check_processes(recipe: Recipe) -> None:
    world = comm.world_size()
    parts = world * recipe.train.accumulate
    data = recipe.data
    sizes = {"batch_size": (data.batch_size, "pairs")}
    sizes |= {"unlabelled_size": (data.unlabelled_size, "videos")} if data.unlabelled else {}
    sizes |= {"texts_size": (data.texts_size, "captions")} if data.texts else {}
    for key, (size, what) in sizes.items():
        if size % parts:
            micro = f" in {recipe.train.accumulate} micro-batches each (train.accumulate)" if parts > world else ""
            raise RecipeError(
                f"data.{key}: {size} {what} cannot be shared equally by {world} processes{micro}; use a multiple of "
                f"{parts}"
            )


def _open_frames(recipe: Recipe, fit: Fit, tokenizer: TextTokenizer) -> tuple[FrameSet, FrameSet, FrameSet | None]:
    """The training, validation and test frames; rank 0 compares every file with its hash."""
    cache = recipe.data.open_cache()

    def opened(key: str, path: str) -> FrameSet:
        frames = FrameSet(path, verify=comm.rank() == 0, cache=cache).fitted(fit, f"data.{key}")
        recipe.data.check(frames, str(frames.path))
        mend = "raise data.max_words, as far as the text tower goes, or shorten them"
        warn_of_cuts(frames.videos.texts, tokenizer, str(frames.path), mend)
        return frames

    data = recipe.data
    train, val, test = (
        opened("train", data.train),
        opened("val", data.val),
        opened("test", data.test) if data.test else None,
    )
    for ranked in (val, *([] if test is None else [test])):
        check_captions(ranked)
    silent = int((train.videos.caption_counts() == 0).sum())
    if silent == len(train):
        raise RecipeError(
            f"data.train: no video of {train.path} has a caption; give it as data.unlabelled beside pairs"
        )
    if silent:
        log.warning(f"{train.path}: {silent} of {len(train)} videos have no captions and are in no pair")
    return train, val, test


def _open_unpaired(recipe: Recipe, fit: Fit, tokenizer: TextTokenizer) -> UnpairedSource:
    """The videos without captions and the captions without videos, still without labels."""
    data, verify = recipe.data, comm.rank() == 0
    videos = texts = None
    if data.unlabelled is not None:
        videos = FrameSet(data.unlabelled, verify=verify, cache=data.open_cache()).fitted(fit, "data.unlabelled")
        data.check(videos, str(videos.path))
    if data.texts is not None:
        texts = Texts.open(data.texts, verify=verify, cache=data.open_cache())
        mend = "raise data.max_words, as far as the text tower goes, or shorten them"
        warn_of_cuts(texts.captions, tokenizer, str(texts.path), mend)
    return UnpairedSource(videos, texts)


def _check_context(recipe: Recipe, model: RetrievalModel) -> None:
    """Refuse captions that are longer than the text tower takes."""
    context = model.clip.text.context
    if recipe.data.max_words > context:
        raise RecipeError(
            f"data.max_words: {recipe.data.max_words} tokens, but the text tower of {recipe.model.clip.model} takes at "
            f"most {context}"
        )


def _restored(recipe: Recipe, architecture: dict[str, Any], weights: dict[str, Tensor]) -> RetrievalModel:
    """The best weights in the model that is released; the trained one may still be partitioned (ZeRO 3)."""
    clip = recipe.model.clip
    towers = Towers.from_architecture(architecture, **clip.trained)
    model = catalogue.build(recipe.model.released(), towers)
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model.eval().to(comm.device())


def _release(
    recipe: Recipe,
    job: Job,
    trained: Trained,
    look: SecondLook | None,
    tested: _Tested | None,
    query: QueryCost,
) -> None:
    """Write the test's ranks and metrics and the release into the run folder, and print one line of JSON."""
    metrics = tested.metrics if tested else {}
    if tested:
        publish(job.folder / TEST_RANKS, save(tested.tensors()))
        write_json(job.folder / TEST, metrics)
    release = job.folder / RELEASE
    manifest = write_release(
        release,
        model=job.model,
        model_config=recipe.model.released(),
        weights=trained.weights,
        text={"max_words": recipe.data.max_words, "vocabulary": job.tokenizer.vocabulary},
        frames_config=job.train.manifest.config,
        provenance=provenance(recipe, job, trained, query, tested.frames if tested else None, metrics),
        second_look=look,
        tokenizer_json=job.tokenizer.content if isinstance(job.tokenizer, JsonTokenizer) else None,
    )
    parameters = manifest.counts["parameters"]
    log.info(f"released {release}: {parameters:,} parameters, {4e-6 * parameters:,.1f} MB")
    show(json.dumps({"release": str(release), "test": metrics}))


def _report(job: Job, tested: _Tested | None) -> None:
    """Leave `report.html`, and what it shows of the test, in the folder of a run whose release is published."""
    opened = {"train": job.train}
    try:
        if tested:
            opened["test"] = tested.frames
            keep_answers(job, tested.frames, tested.seen, tested.plain)
        log.info(f"report {write_report(job.folder, opened=opened)}")
    except Exception as error:  # whatever is wrong with a page, the training has ended well
        log.warning(f"{job.folder}: the run is complete, but its report was not written ({error!r:.500})")
