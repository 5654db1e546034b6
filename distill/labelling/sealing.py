"""The folder of a label set, from its claim to its manifest.

`begin_labels` claims the folder, any process on any host adds shards, and `seal_labels` decides by the folder's content
alone whether the set is complete. `merge_labels` joins the folders of hosts that share none. distill/data/labels.py
reads the set.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from distill.data import building
from distill.data.building import CLAIM, WORK, ShardContent, ShardRecord, build, finished
from distill.data.labels import DUMP, INTERACTION, TEACHER, VERSION, StoredLabels, TeacherAbout
from distill.data.shards import Shards
from distill.errors import ArtefactError, first_few
from distill.labelling.softness import measured
from distill.log import progress
from distill.manifest import Manifest, SealedFile, seal
from distill.publishing import publish
from distill.records import View, changed, parsed, read_small, write_json
from distill.remote import Place

log = logging.getLogger(__name__)
SOFTNESS = "softness"  # key of the config that is not of the job


class LabelClaim(View):
    """The job that a folder was claimed for: these keys are for sealing, all others are the set's config."""

    model_config = ConfigDict(extra="allow")
    frames: str | None = None  # id of the frame set
    texts: str | None = None  # or sha256 of the text file
    shards: list[str]
    counts: dict[str, int]
    head: str  # sha256 of the stored scoring head


def begin_labels(out: Place, job: dict[str, Any], head: bytes, teacher: TeacherAbout) -> None:
    """Claim `out` for a job, which has all fields of a `LabelClaim` but the hash of the stored scoring head."""
    building.claim(out, job | {"head": hashlib.sha256(head).hexdigest()}, command=DUMP)
    if not (out / INTERACTION).is_file():
        publish(out / INTERACTION, head)
    if not (out / TEACHER).is_file():
        write_json(out / TEACHER, teacher.model_dump())


def recorded(folder: Place, name: str) -> bool:
    """Return whether a shard has a record. That it is still whole is for `finished` to say, which hashes it."""
    return (folder / WORK / f"{name}.json").is_file()


def seal_labels(out: Place) -> Manifest | None:
    """Seal a label set whose shards are all present and whole, with its softness; returns None if some are not.

    Records of damaged shards are deleted, so that those shards are made again. Any number of processes may call this at
    the same time: they write the same bytes.
    """
    job = _claimed(out)
    if not all(recorded(out, name) for name in job.shards):
        return None
    records = {name: finished(out, name) for name in progress(job.shards, f"seal {out} (shards)")}
    damaged = [name for name, record in records.items() if record is None]
    if damaged:
        _forget(out, damaged)
        return None
    head, teacher = _head(out, job), _teacher(out)
    unsealed = Manifest(
        kind="labels",
        version=VERSION,
        config=job.model_extra or {},
        counts=job.counts,
        parents={name: id for name, id in (("frames", job.frames), ("texts", job.texts)) if id is not None},
        files={
            **building.sealed_files(record for record in records.values() if record),
            INTERACTION: _sealed(head),
            **({} if teacher is None else {TEACHER: _sealed(teacher)}),
        },
    )
    softness = measured(StoredLabels(out, unsealed=(unsealed, Shards(out, unsealed.files))))
    manifest = unsealed.model_copy(update={"config": unsealed.config | {SOFTNESS: softness.model_dump()}})
    try:
        return seal(out, manifest)
    except FileNotFoundError:  # another process is sealing, and has swept this one's unfinished file away
        return manifest


def made_by(manifest: Manifest) -> dict[str, Any]:
    """Return the settings that a set was made by: its config without what sealing measured."""
    return {key: value for key, value in manifest.config.items() if key != SOFTNESS}


def _forget(out: Place, damaged: Sequence[str]) -> None:
    """Delete the records of damaged shards, so that they are made again; in a bucket only its owner may."""
    for name in damaged:
        record = out / WORK / f"{name}.json"
        if not isinstance(record, Path):
            raise ArtefactError(
                f"{out}: shard {name} was changed after it was written; delete {record} and label again"
            )
        record.unlink(missing_ok=True)
    log.warning(f"{out}: shards {first_few(damaged)} were changed after they were written; they will be made again")


def merge_labels(parts: Sequence[Place], out: Place) -> Manifest:
    """Join the unfinished folders of one job into a set with the hash that one process would have given it.

    Raises `ArtefactError` for parts of different jobs, for a shard that differs between two parts, and for gaps.
    """
    jobs = [_claimed(part) for part in parts]
    for part, job in zip(parts, jobs, strict=True):
        if keys := changed(job.model_dump(), jobs[0].model_dump()):
            raise ArtefactError(
                f"{part}: part of another job than {parts[0]} ({', '.join(keys)} differ); merge parts of one job"
            )
    homes = {name: _home(name, parts) for name in progress(jobs[0].shards, "check parts (shards)")}
    gaps = [name for name, home in homes.items() if home is None]
    if gaps:
        raise ArtefactError(
            f"{parts[0]}: {len(gaps)} of {len(homes)} shards are in no part: {first_few(gaps)}; label them with "
            f"{DUMP} --part, or name the folder that holds them"
        )
    unset = {name for name in ("frames", "texts") if getattr(jobs[0], name) is None}
    building.claim(out, jobs[0].model_dump(exclude=unset), command="tools/labels.py merge")
    publish(out / INTERACTION, _head(parts[0], jobs[0]))
    if (teacher := next((found for part in parts if (found := _teacher(part)) is not None), None)) is not None:
        publish(out / TEACHER, teacher)
    for name, home in progress(homes.items(), f"merge into {out} (shards)"):
        assert home is not None
        part, record = home
        built = build(out, name, lambda name=name, part=part, record=record: _content(part, name, record))
        if built.tar != record.tar:  # equal samples give equal bytes
            raise ArtefactError(f"{part / WORK / name}.json: does not describe its shard; delete it and label it again")
    manifest = seal_labels(out)
    assert manifest is not None, "every shard was just made"
    return manifest


def _claimed(folder: Place) -> LabelClaim:
    found, mend = building.claimed(folder), f"this is not a folder that {DUMP} began"
    if found is None:
        raise ArtefactError(f"{folder}: has no {CLAIM}; {mend}")
    return parsed(LabelClaim, found, folder / CLAIM, mend)


def _head(folder: Place, job: LabelClaim) -> bytes:
    """Return the stored scoring head of a folder, which must be the one that the job began with."""
    path = folder / INTERACTION
    head = read_small(path, f"run {DUMP} again")
    if hashlib.sha256(head).hexdigest() != job.head:
        raise ArtefactError(f"{path}: not the head that the job began with; delete it and run {DUMP} again")
    return head


def _teacher(folder: Place) -> bytes | None:
    """Return what a folder records of the teacher; None in a folder that an earlier version began."""
    path = folder / TEACHER
    return read_small(path, f"run {DUMP} again") if path.is_file() else None


def _sealed(content: bytes) -> SealedFile:
    return SealedFile(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def _home(name: str, parts: Sequence[Place]) -> tuple[Place, ShardRecord] | None:
    """Return the first part that holds a shard whole, with the shard's record; None if no part does."""
    whole = [(part, record) for part in parts if (record := finished(part, name)) is not None]
    if len({record.tar.sha256 for _, record in whole}) > 1:
        holders = " and ".join(str(part) for part, _ in whole)
        raise ArtefactError(f"{holders}: hold different shards {name}; delete one of them and label it again")
    return whole[0] if whole else None


def _content(part: Place, name: str, record: ShardRecord) -> ShardContent:
    shards = building.open_built_shards(part, [name])
    samples = {key: {ext: shards.read(key, ext) for ext in shards.extensions(key)} for key in shards.keys}
    return ShardContent(samples, record.report)
