"""The verification of a release: every number and hash that can be derived again, beside what the release states.

A manifest finds changed bytes. Who changes numbers and seals the folder again is found where metrics are measured again
on the frames that the release names by their id.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from distill import __version__
from distill.catalogue import INTERACTIONS
from distill.config import validate
from distill.data.frames import FrameSet
from distill.errors import ExpectedError
from distill.fetching import local_folder
from distill.licence import CARD, LARGEST, without_licence
from distill.manifest import NAME, Manifest, file_sha256, read_manifest
from distill.model.preprocessing import image_size
from distill.provenance import caption_sources
from distill.recipe import Recipe
from distill.records import json_sha256, parsed, read_json, read_small
from distill.release.card import eval_results
from distill.release.release import CONFIG, EVAL_RESULTS, PROVENANCE, READ, Release, load, read_config
from distill.release.stated import Metrics, Stated
from distill.remote import Place
from distill.retrieval.stored import bytes_per_video
from distill.training.batches import plan_batches
from distill.training.folder import RELEASE, TEST, TEST_RANKS
from distill.verification.card import check_card, check_results
from distill.verification.claims import Claim, compared, unchecked
from distill.verification.inputs import check_labels, find_frames
from distill.verification.measured import Measured

MEND = "restore it, or release again"
MOST_PIXELS = 1 << 27  # of a blank video that is encoded to count its bytes
OF_ANOTHER_TIME = "measured when it was trained"
UNCHECKABLE = {
    "cost.flops": "counted in a step of the training",
    "cost.joules": OF_ANOTHER_TIME,
    "cost.seconds": OF_ANOTHER_TIME,
    "query.encode_ms": "a time of another moment; `distill bench-retrieval` measures one",
    "query.score_ms": "a time of another moment; `distill bench-retrieval` measures one",
    "commit": "nothing in the weights shows which code made them",
    "command": "nothing in the weights shows it",
    "hardware": "nothing in the weights shows it",
    "towers.sha256": "the towers are not part of the release",
}


def verify(
    place: Place, frames: Sequence[Place] = (), labels: Sequence[Place] = (), device: str | torch.device = "cpu"
) -> list[Claim]:
    """Return all claims of a release with what was found; raise `ArtefactError` for what is no release at all."""
    folder = local_folder(place, "release", *READ)
    manifest = read_manifest(folder, "release", *READ)
    content = read_small(folder / PROVENANCE, MEND)
    about = parsed(Stated, content, folder / PROVENANCE, MEND)
    provenance = json.loads(content)
    claims = [*_files(folder, manifest), *_seals(folder, manifest, provenance, about)]
    sets, said = find_frames(frames, about.frames())
    claims += [*said, *check_labels(labels, about, sets.get("train"))]
    if "train" in sets:
        claims += _of_training(sets["train"], about)
    try:
        release = load(folder, device)
    except ExpectedError as error:
        claims.append(unchecked("metrics, sizes and card", None, f"the release does not open: {error}"))
    else:
        claims += _of_model(folder, release, manifest, provenance, about, sets)
    known = ((name, _at(provenance, name)) for name in UNCHECKABLE)
    return claims + [unchecked(name, value, UNCHECKABLE[name]) for name, value in known if value is not None]


def _files(folder: Path, manifest: Manifest) -> list[Claim]:
    claims = []
    for name, file in manifest.files.items():
        path = folder / name
        found = file_sha256(path) if path.is_file() else "missing"
        claim = compared(f"sha256 of {name}", file.sha256, found)
        if name == CARD and claim.verdict == "differs" and _has_only_a_licence_more(path, file.sha256):
            claim = replace(claim, verdict="holds", why="but for the licence that it states")
        claims.append(claim)
    return claims


def _has_only_a_licence_more(path: Path, sha256: str) -> bool:
    """Return whether a card is the sealed one once the lines of its metadata that state a licence are left out."""
    if not path.is_file() or path.stat().st_size > LARGEST:
        return False
    return hashlib.sha256(without_licence(path.read_bytes())).hexdigest() == sha256


def _seals(folder: Path, manifest: Manifest, provenance: Mapping[str, Any], about: Stated) -> list[Claim]:
    """Compare the hashes and ids that a release states in several places."""
    digest = json_sha256(provenance)
    claims = [compared(f"sha256 of the provenance, {NAME}", manifest.config.get("provenance_sha256"), digest)]
    try:
        claims.append(compared(f"sha256 of the provenance, {CONFIG}", read_config(folder).provenance_sha256, digest))
    except ExpectedError as error:
        claims.append(Claim(CONFIG, "a config", str(error), "differs"))
    claims.append(compared(f"parents, {NAME}", dict(manifest.parents), about.parents))
    if about.recipe_sha256 is not None:
        claims.append(compared("sha256 of the recipe", about.recipe_sha256, json_sha256(about.recipe)))
    return claims


def _of_training(train: FrameSet, about: Stated) -> list[Claim]:
    """Compare what follows from the training frames and the recipe."""
    claims = []
    if about.captions is not None:
        claims.append(compared("captions by source", about.captions, caption_sources(train)))
    if about.cost is None:
        return claims
    try:
        recipe = validate(about.recipe, Recipe, where=PROVENANCE)
    except ExpectedError as error:
        return [*claims, unchecked("cost.steps", about.cost.steps, f"this version reads recipes otherwise ({error})")]
    steps = plan_batches(train, recipe.data, recipe.train.epochs, recipe.seed).total_steps
    claims.append(compared("cost.steps", about.cost.steps, steps))
    return [*claims, compared("cost.samples", about.cost.samples, steps * recipe.data.batch_size)]


def _of_model(
    folder: Path,
    release: Release,
    manifest: Manifest,
    provenance: Mapping[str, Any],
    about: Stated,
    sets: Mapping[str, FrameSet],
) -> list[Claim]:
    """Compare sizes and metrics with those of the loaded model, and then the card with all of them."""
    kind, config, stored = release.config.model["kind"], release.config, None
    parameters = sum(tensor.numel() for tensor in release.model.state_dict().values())
    claims = [compared("parameters", manifest.counts.get("parameters"), parameters)]
    frames = config.frames.sampler.num_frames
    if kind not in INTERACTIONS and frames * image_size(config.architecture) ** 2 <= MOST_PIXELS:
        stored = bytes_per_video(release.model, frames, image_size(config.architecture))
        if about.bytes_per_video is not None:
            claims.append(compared("bytes a video: vector, tokens", list(about.bytes_per_video), list(stored)))
    said, measured = _metrics(folder, release, about, sets)
    claims += said
    found = {**provenance, **measured}
    if (folder / CARD).is_file():
        own = config.toolkit == __version__ and about.cost is not None
        claims += check_card(folder / CARD, kind, found, stored, parameters=parameters, own=own)
    if EVAL_RESULTS in manifest.files:
        expected = eval_results(found)
        claims += check_results(_yaml(folder / EVAL_RESULTS), yaml.safe_load(expected) if expected else [])
    return claims


def _metrics(
    folder: Path, release: Release, about: Stated, sets: Mapping[str, FrameSet]
) -> tuple[list[Claim], dict[str, Any]]:
    """Measure the metrics again; return claims about them, and those that differ by their key in the provenance."""
    claims: list[Claim] = []
    found = {}
    for key, role, stated in (("validation", "val", about.validation), ("test", "test", about.test)):
        if not stated.t2v:
            continue
        if role not in sets:
            claims.append(unchecked(f"{key}: metrics", f"t2v R@1 {stated.t2v.get('R@1')}", "its frames are not here"))
            continue
        measured = Measured(release, sets[role], about.precision)
        here = measured.claims(key, stated)
        claims += here
        if role == "val" and release.second_look is not None:
            claims.append(measured.second_look(release.second_look))
        if role == "test":
            claims += _beside(folder, measured)
        if any(claim.verdict == "differs" for claim in here):
            found[key] = measured.metrics()
    return claims, found


def _beside(folder: Path, measured: Measured) -> list[Claim]:
    """Compare what the run left beside its release, if this one still lies in its run's folder."""
    claims: list[Claim] = []
    run = folder.parent
    if folder.name == RELEASE and (run / TEST).is_file():
        claims += measured.claims(TEST, read_json(run / TEST, Metrics, MEND))
    if folder.name == RELEASE and (run / TEST_RANKS).is_file():
        claims += measured.check_ranks(run / TEST_RANKS)
    return claims


def _at(tree: Any, path: str) -> Any:
    """Return the value at a dotted path; None where there is none."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _yaml(path: Path) -> Any:
    try:
        found = yaml.safe_load(read_small(path, MEND))
    except (yaml.YAMLError, ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []
