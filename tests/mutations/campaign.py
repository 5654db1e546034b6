"""Changes one file of a fresh copy of an artefact, lets its reader read it in a process of its own, and judges that.

Right is one of two ends: an `ExpectedError` of one short line that names a file of the artefact, or an answer that does
no harm. Where every file is compared with its hash, that is the answer of the whole artefact.
"""

import hashlib
import json
import os
import resource
import select
import shutil
import signal
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from distill.data.frames import FrameSet
from distill.data.indexes import make_index
from distill.errors import ExpectedError
from distill.log import progress
from distill.manifest import NAME, file_sha256
from distill.release.release import load
from mutations.changes import MARKER, PLACES, change
from mutations.readers import READERS, Reader, Whole

SECONDS = 20.0  # in which a reader must have ended
BYTES = 1 << 30  # that a reader may take
REFUSED, HARMLESS = "refused", "harmless"
LONGEST = 2000  # characters of an error


@dataclass
class Tally:
    """The results of the mutations of one kind of artefact."""

    mutations: int = 0
    refused: int = 0
    harmless: int = 0
    largest: int = 0  # bytes that a reader took
    kinds: dict[str, int] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)


def campaign(folder: Path, names: Sequence[str], count: int, seed: int) -> dict[str, Tally]:
    """`count` mutations, in turns over the readers; `folder / "whole"` holds the artefacts."""
    whole = Whole(
        folder / "whole",
        folder / "scratch",
        FrameSet(folder / "whole" / "frames"),
        load(folder / "whole" / "release"),
        load(folder / "whole" / "two_stage"),
    )
    tallies = {name: Tally() for name in names}
    expected = {name: apart(READERS[name], _copy(name, folder), whole, None) for name in names}
    for name, (end, told, _) in expected.items():
        assert end == HARMLESS, f"the whole artefact {name}: {told}"
    for number in progress(range(count), "damage and read"):
        name = names[number % len(names)]
        draw, path = Random(f"{seed} {number} {name}"), _copy(name, folder)
        what, file = mutate(path, READERS[name], draw)
        same = READERS[name].hashed and file != NAME and "resealed" not in what
        end, told, took = apart(READERS[name], path, whole, expected[name][1] if same else None)
        tally = tallies[name]
        tally.mutations += 1
        tally.largest = max(tally.largest, took)
        kind = what.partition(" ")[0]
        tally.kinds[kind] = tally.kinds.get(kind, 0) + 1
        tally.refused += end == REFUSED
        tally.harmless += end == HARMLESS
        if end not in (REFUSED, HARMLESS):
            tally.findings.append(f"{number} {name}: {what}: {end}: {told}")
            print(tally.findings[-1], flush=True)
    return tallies


def _copy(name: str, folder: Path) -> Path:
    """A fresh copy of an artefact."""
    path = folder / "changed" / name
    shutil.rmtree(path.parent, ignore_errors=True)
    shutil.copytree(folder / "whole" / name, path)
    return path


def mutate(path: Path, reader: Reader, draw: Random) -> tuple[str, str]:
    """Changes one file of an artefact; what was done in words, and the file."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    file = draw.choice(files)
    name = str(file.relative_to(path))
    file.chmod(0o644)
    if draw.random() < 0.15:
        how = draw.choice(PLACES)
        if file.parent == path and how.__name__ == "folder_gone":
            how = PLACES[0]
        how([*files][files.index(file)], [other for other in files if other != file], draw)
        called = how.__name__
    else:
        content, called = change(file, file.read_bytes(), draw)
        file.write_bytes(content)
    what = f"{called} of {name}"
    if reader.sealed and name != NAME and draw.random() < 0.7:
        reseal(path, draw.random() < 0.5)
        what += " resealed"
    return what, name


def reseal(path: Path, indexes: bool) -> None:
    """Makes the manifest agree with the files as they are; with `indexes`, those of the tars too, where that can be."""
    try:
        manifest = json.loads((path / NAME).read_bytes())
        manifest["files"].keys()
    except (ValueError, LookupError, TypeError):
        return  # it was swapped for another file
    for name in list(manifest["files"]):
        file, index = path / name, path / name.replace(".tar", ".index.json")
        if indexes and file.suffix == ".tar" and file.is_file() and index.is_file():
            try:
                with file.open("rb") as opened:
                    index.write_bytes(make_index(opened, file))
            except (ExpectedError, OSError):  # no tar any more, or a link to what cannot be written
                pass
    for name, sealed in list(manifest["files"].items()):
        file = path / name
        if file.is_file() and file.stat().st_size < BYTES and not file.is_symlink():
            sealed |= {"sha256": file_sha256(file), "bytes": file.stat().st_size}
        elif not os.path.lexists(file):
            del manifest["files"][name]
    (path / NAME).write_text(json.dumps(manifest))


def apart(reader: Reader, path: Path, whole: Whole, expected: str | None) -> tuple[str, str, int]:
    """Reads in a child; how that ended, what it said (or a hash of what it read), and the bytes it took."""
    shutil.rmtree(whole.scratch, ignore_errors=True)
    whole.scratch.mkdir()
    out, into = os.pipe()
    child = os.fork()
    if not child:
        os.close(out)
        _child(reader, path, whole, into)
    os.close(into)
    ended = os.pidfd_open(child)
    watch = select.poll()  # not `select`, which takes no descriptor above 1,023
    watch.register(ended, select.POLLIN)
    hung = not watch.poll(1000 * SECONDS)
    if hung:
        os.kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    os.close(ended)
    with os.fdopen(out, "rb") as pipe:
        said = pipe.read()
    # A fork begins without most of its parent's mapped files, so it says itself what it began with.
    end, told, began = json.loads(said) if said else ("DIED", "", 0)
    took = max(0, used.ru_maxrss * 1024 - began)
    if (whole.scratch / MARKER).exists() or (path / MARKER).exists() or (path.parent / MARKER).exists():
        return "RAN", "something in the file was run or written", took
    if hung:
        return "HUNG", f"more than {SECONDS:.0f} s", took
    if status or not said:
        return "DIED", f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {status}", took
    if took > BYTES:
        return "LARGE", f"{took >> 20} MiB ({end}: {told[:200]})", took
    if end == HARMLESS and expected is not None and told != expected:
        return "SILENT", "gave something else than the whole artefact does", took
    return end, told, took


def _child(reader: Reader, path: Path, whole: Whole, into: int) -> None:
    """Never comes back."""
    os.chdir(whole.scratch)  # where markers go
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    _, began, _, _, _, private, _ = (
        int(pages) * resource.getpagesize() for pages in Path("/proc/self/statm").read_text().split()
    )
    resource.setrlimit(resource.RLIMIT_DATA, (private + 3 * BYTES, private + 3 * BYTES))
    warnings.simplefilter("ignore")
    try:
        end, told = HARMLESS, digest(reader.read(path, whole))
    except ExpectedError as error:
        end, told = judged(str(error), path)
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-4:]
        where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(place))
        end, told = type(error).__name__, f"{str(error)[:200]} ({where})"
    os.write(into, json.dumps([end, told[:4000], began]).encode())
    os._exit(0)


def judged(message: str, path: Path) -> tuple[str, str]:
    """An error must name a file of the artefact (or its folder), and be short."""
    if str(path) not in message:
        return "NAMELESS", message[:300]
    return (REFUSED, message) if len(message) <= LONGEST else ("LONG", f"{len(message)} characters: {message[:200]}")


def digest(value: Any) -> str:
    """A hash of all that was read."""
    found = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, dict):
            for key in sorted(part, key=str):
                add((key, part[key]))
        elif isinstance(part, list | tuple):
            found.update(b"[%d" % len(part))
            for child in part:
                add(child)
        elif isinstance(part, torch.Tensor | np.ndarray):
            array = part.numpy() if isinstance(part, torch.Tensor) else part
            found.update(f"{array.shape} {array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
        else:
            found.update(repr(part).encode(errors="backslashreplace") + b";")

    add(value)
    return found.hexdigest()


def table(tallies: dict[str, Tally]) -> str:
    """A row per reader, and the sum."""
    rows = [f"{'reader':<20} {'mutations':>9} {'refused':>9} {'harmless':>9} {'findings':>9} {'MiB':>6}"]
    for name, t in tallies.items():
        rows.append(
            f"{name:<20} {t.mutations:>9} {t.refused:>9} {t.harmless:>9} {len(t.findings):>9} {t.largest >> 20:>6}"
        )
    total = [sum(getattr(t, key) for t in tallies.values()) for key in ("mutations", "refused", "harmless")]
    total += [sum(len(t.findings) for t in tallies.values())]
    return "\n".join([*rows, f"{'all':<20} " + " ".join(f"{number:>9}" for number in total)])
