"""Jobs that change a gallery, and one that serves it under load: killed at any moment they end as undisturbed ones."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT, World, tree_bytes
from safetensors.numpy import load_file

from faults.jobs import HERE, Job, unfinished, unlike

CHANGES = ("append", "sync", "delete", "compact", "calibrate", "approximate")
BANK = ("a red square", "the green star falls slowly", "a blue circle", "something moves", "an apple")
COPIES = 10  # of every clip, so that an approximate index has enough to be built of


class Change(Job):
    """One change of a gallery that is there, by its command line."""

    ranks = False

    def __init__(self, name: str, twin: Path, setting: "Setting"):
        super().__init__(twin, (1, 2) if name in ("append", "sync") else (1,))
        self.name, self.setting, self.beginning = name, setting, setting.galleries[name]

    def out(self, folder: Path) -> Path:
        return self.setting.folder / folder.name

    def command(self, out: Path, count: int) -> list[str | Path]:
        if self.name in ("append", "sync"):
            index = [ROOT / "tools" / "index.py", self.setting.release, self.setting.videos, "--out", out]
            return [*index, f"--{self.name}", "--workers", str(count)]
        bank = [str(self.setting.bank), "--release", str(self.setting.release)]
        extra = {"delete": self.setting.gone, "calibrate": bank}
        return [ROOT / "tools" / "gallery.py", out, self.name, *extra.get(self.name, [])]

    def differences(self, out: Path) -> Iterator[str]:
        yield from unlike(tree_bytes(out), tree_bytes(self.twin))
        yield from unfinished(out)
        manifest = json.loads((out / "manifest.json").read_text())
        for name, file in manifest["files"].items():
            if hashlib.sha256((out / name).read_bytes()).hexdigest() != file["sha256"]:
                yield f"{name} is not as its manifest says"
        lost = self.setting.expected(self.name) ^ set(ids(out, manifest))
        if lost:
            yield f"videos {sorted(lost)[:3]} are there or not where they should not be"


class Serve(Job):
    """A server of a gallery under load, and the answers that its clients got."""

    name, ranks = "serve", False

    def __init__(self, twin: Path, setting: "Setting"):
        super().__init__(twin, (4,))
        self.setting = setting

    def command(self, out: Path, count: int) -> list[str | Path]:
        return [HERE / "serve.py", self.setting.galleries["compact"], out, str(count)]

    def differences(self, out: Path) -> Iterator[str]:
        yield from unlike(tree_bytes(out), tree_bytes(self.twin))
        yield from unlike(tree_bytes(self.setting.galleries["compact"]), self.setting.served)


class Setting:
    """Videos, a release with random weights, and the gallery that each change begins with.

    A gallery names its videos by their path from its own folder: all copies stand beside them, or two that did the
    same would hold other bytes.
    """

    def __init__(self, folder: Path, world: World):
        from test_release import make, release

        from distill.release.release import load
        from distill.retrieval import upkeep
        from distill.retrieval.indexing import build_gallery

        self.folder = folder
        self.videos, self.release, self.bank = folder / "videos", folder / "student", folder / "bank.txt"
        release(self.release, *make())
        self.bank.write_text("\n".join(BANK) + "\n")
        clips = sorted((world.corpus / "videos").glob("*.mp4"))[:44]
        for number, clip in enumerate(clips * COPIES):
            self.put(clip, f"{number:04d}")
        student, whole = load(self.release), folder / "whole"
        build_gallery(student, self.videos, whole, workers=1)
        self.gone = ["0003", "0011", "0200"]
        pieces = shutil.copytree(whole, folder / "pieces")
        for number, clip in enumerate(clips[:5]):
            self.put(clip, f"later{number}")
        build_gallery(student, self.videos, pieces, append=True, workers=1)
        upkeep.delete(pieces, self.gone)
        for number, clip in enumerate(clips[:30]):
            self.put(clip, f"new{number}")
        (self.videos / "0009.mp4").unlink()
        self.galleries = dict.fromkeys(("append", "sync", "compact"), pieces)
        self.galleries |= dict.fromkeys(("delete", "calibrate", "approximate"), whole)
        self.served = tree_bytes(pieces)

    def put(self, clip: Path, name: str) -> None:
        self.videos.mkdir(exist_ok=True)
        shutil.copy2(clip, self.videos / f"{name}.mp4")

    def expected(self, change: str) -> set[str]:
        """The ids after a change, by the names of the files."""
        there = {path.stem for path in self.videos.iterdir()}
        new = {name for name in there if name.startswith("new")}
        late = {name for name in there if name.startswith("later")}
        return {
            "append": (there | {"0009"}) - set(self.gone),
            "sync": there - set(self.gone),
            "compact": (there | {"0009"}) - set(self.gone) - new,
            "delete": (there | {"0009"}) - set(self.gone) - new - late,
        }.get(change, (there | {"0009"}) - new - late)


def ids(gallery: Path, manifest: dict) -> Iterator[str]:
    """The ids of the rows that are not deleted, read without the project."""
    lines = [name for name in manifest["files"] if name.endswith("/videos.jsonl")]
    rows = [json.loads(row)["id"] for name in sorted(lines) for row in (gallery / name).read_text().splitlines()]
    deleted = {
        int(row)
        for name in manifest["files"]
        if name.startswith("deleted/")
        for row in load_file(gallery / name)["rows"]
    }
    return (name for row, name in enumerate(rows) if row not in deleted)
