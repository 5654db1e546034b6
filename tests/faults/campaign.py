"""Kills jobs at random points and starts them again until they end; then looks at what they left."""

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from processes import Ranks

from distill.log import progress
from faults.jobs import Job

LONGEST_CHAIN = 6  # kills of one job before it may end
HANGS = 60.0  # seconds after a kill in which everything must have ended
WHOLE = 600.0  # seconds in which an undisturbed job must have ended
GOOD_ENDS = {0, 2, 143}  # of the ranks that were not killed: they had finished, noticed, or were told


@dataclass
class Tally:
    """The results of one kind of job."""

    kills: int = 0
    restarts: int = 0
    jobs: int = 0
    equal: int = 0
    processes: set[int] = field(default_factory=set)
    moments: dict[str, int] = field(default_factory=dict)  # how often at which kind of moment
    failures: list[str] = field(default_factory=list)


class Clock:
    """When things happen in a job of this kind that nobody kills, in seconds after the start."""

    def __init__(self, begins: float, ends: float):
        self.begins, self.ends = begins, ends


def undisturbed(job: Job, out: Path, count: int, log: Path) -> Clock:
    """Runs a job to its end."""
    before, started = snapshot(out), time.monotonic()
    ranks, begins = start(job, out, count, log), None
    while ranks.running:
        if begins is None and snapshot(out) != before:
            begins = time.monotonic() - started
        time.sleep(0.005)
    assert ranks.ended(WHOLE), f"{job.name} did not end"
    assert set(ranks.codes) == {0}, f"{job.name} ended with {ranks.codes}: {ranks.said(0)[-3:]}"
    ends = time.monotonic() - started
    return Clock(begins or ends, ends)


def start(job: Job, out: Path, count: int, log: Path) -> Ranks:
    return Ranks(job.command(out, count), count if job.ranks else 1, log)


def campaign(jobs: Sequence[tuple[Job, Clock]], kills: int, seed: int, folder: Path) -> list[Tally]:
    """Kills the jobs `kills` times in all, in turns; a tally for each of them."""
    draw, left = random.Random(seed), kills
    tallies = [Tally() for _ in jobs]

    def killed() -> Iterator[int]:
        nonlocal left
        while left:
            for (job, clock), tally in zip(jobs, tallies, strict=True):
                wanted = min(left, draw.randint(1, LONGEST_CHAIN))
                done = chain(job, clock, wanted, draw, folder / f"{job.name}-{tally.jobs}", tally) if wanted else 0
                left -= done
                yield from range(done)

    for _ in progress(killed(), "kill", kills):
        pass
    return tallies


def chain(job: Job, clock: Clock, wanted: int, draw: random.Random, folder: Path, tally: Tally) -> int:
    """One job from its first start to its end, killed up to `wanted` times in between; how often it was."""
    out, log, kills = job.out(folder), folder / "log", 0
    for left in (folder, out):
        shutil.rmtree(left, ignore_errors=True)
    folder.mkdir(parents=True)
    if job.beginning is not None:
        shutil.copytree(job.beginning, out)
    tally.jobs += 1
    while kills < wanted and not job.finished(out):
        count = draw.choice(job.counts)
        tally.processes.add(count)
        moment = draw.choices(["any time", "at work", "while a file is written"], [1, 3, 2])[0]
        ranks = start(job, out, count, log)
        if not reach(ranks, out, moment, clock, draw):
            break  # it ended before
        whom = draw.choices(["all", "a rank", "any process"], [2, 2, 1])[0]
        if whom == "all":
            ranks.kill_all()
        elif whom == "a rank":
            ranks.kill_one(draw.choice(ranks.processes).pid)
        else:
            ranks.kill_one(draw.choice(sorted(ranks.left())))
        kills += 1
        tally.kills += 1
        tally.moments[moment] = tally.moments.get(moment, 0) + 1
        tally.failures += [f"{folder.name}, kill {kills} of {whom}, {moment}: {what}" for what in wrong(ranks)]
        ranks.kill_all()
    count = draw.choice(job.counts)
    tally.processes.add(count)
    tally.restarts += kills
    try:
        if not job.finished(out):
            undisturbed(job, out, count, log)
        found = list(job.differences(out))
    except (AssertionError, OSError, ValueError, KeyError) as error:
        found = [f"{type(error).__name__}: {error}"]
    tally.equal += not found
    tally.failures += [f"{folder.name}, at the end: {what}" for what in found[:5]]
    if not found:
        shutil.rmtree(out)
        shutil.rmtree(folder)
    return kills


def reach(ranks: Ranks, out: Path, moment: str, clock: Clock, draw: random.Random) -> bool:
    """Waits for a moment at which to kill; False if the job ended before."""
    before, works = snapshot(out), clock.ends - clock.begins
    if moment == "any time":
        return sleep(ranks, draw.uniform(0, clock.ends))
    while snapshot(out) == before if moment == "at work" else not writing(out):
        if not ranks.running:
            return False
        time.sleep(0.001)
    return sleep(ranks, draw.uniform(0, works / 2) if moment == "at work" else draw.uniform(0, 0.01))


def sleep(ranks: Ranks, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while ranks.running and time.monotonic() < deadline:
        time.sleep(0.001)
    return ranks.running


def wrong(ranks: Ranks) -> list[str]:
    """Say what is wrong with how the processes ended after a kill: the others must end, with one line if not done."""
    if not ranks.ended(HANGS):
        return [f"hangs: {ranks.codes}, processes {ranks.left()}"]
    found = []
    for rank, code in enumerate(ranks.codes):
        if code == -signal.SIGKILL:
            continue
        said = [line for line in ranks.said(rank) if line.startswith(("error: ", "stopped by "))]
        early = code == -signal.SIGTERM  # before it had come to listen to signals
        if (code not in GOOD_ENDS and not early) or "Traceback" in "".join(ranks.said(rank)):
            found.append(f"rank {rank} ended with {code}: {ranks.said(rank)[-3:]}")
        elif not early and len(said) > (code != 0):
            found.append(f"rank {rank} ended with {code} and said {said}")
    return found


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Times and sizes of everything in a folder that is being written."""
    found = {}
    for path in everything(folder):
        try:
            about = os.stat(path)
        except OSError:
            continue  # gone meanwhile
        found[path] = (about.st_mtime_ns, about.st_size)
    return found


def writing(folder: Path) -> bool:
    return any(".part" in os.path.basename(path) for path in everything(folder))


def everything(folder: Path) -> Iterator[str]:
    for inside, folders, files in os.walk(folder):
        yield from (os.path.join(inside, name) for name in (*folders, *files))


def table(jobs: Sequence[Job], tallies: Sequence[Tally]) -> str:
    """One line per job."""
    lines = [f"{'job':<14}{'processes':<11}{'kills':>6}{'restarts':>9}{'jobs':>6}{'ended equal':>12}"]
    for job, tally in zip(jobs, tallies, strict=True):
        counts = ",".join(map(str, sorted(tally.processes)))
        lines.append(f"{job.name:<14}{counts:<11}{tally.kills:>6}{tally.restarts:>9}{tally.jobs:>6}{tally.equal:>12}")
    return "\n".join(lines)
