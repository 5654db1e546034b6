"""Real crashes and wrong inputs: killed jobs finish with the same bytes, bad input is one line and exit code 2."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import World, one_line_error, python
from faults.campaign import campaign
from faults.setting import prepare


@pytest.mark.slow
def test_random_kills_change_nothing(world: World, tmp_path: Path):
    """A small sample of `make faults`."""
    jobs = prepare(tmp_path, world, ("pack", "train"), clips=15)
    tallies = campaign(jobs, kills=7, seed=5, folder=tmp_path / "killed")
    assert not [failure for tally in tallies for failure in tally.failures]
    assert sum(tally.kills for tally in tallies) == 7
    assert all(tally.equal == tally.jobs > 0 for tally in tallies)


def test_unusable_videos_are_reported_and_never_become_samples(world: World, tmp_path: Path):
    videos = tmp_path / "videos"
    videos.mkdir()
    good = sorted((world.corpus / "videos").glob("*.mp4"))[:3]
    for path in good:
        shutil.copy(path, videos / path.name)
    whole = good[0].read_bytes()
    (videos / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (videos / "empty.mp4").write_bytes(b"")
    (videos / "text.mp4").write_text("not a video")
    names = [*(path.stem for path in good), "cut", "empty", "text", "gone"]
    (tmp_path / "a.csv").write_text("video,caption\n" + "".join(f"{name},something\n" for name in names))
    printed = python("tools/pack_frames.py", tmp_path / "a.csv", videos, "--size", "64", "--out", tmp_path / "f").stdout
    assert "3 videos" in printed
    manifest = json.loads((tmp_path / "f" / "manifest.json").read_text())
    assert manifest["counts"]["videos"] == 3 and manifest["counts"]["skipped"] == 4
    reasons = {note["video"]: note["reason"] for note in manifest["notes"]}
    assert reasons["gone"] == "missing" and "empty" in reasons["empty"]
    assert "truncated" in reasons["cut"] and "not a video" in reasons["text"]


def damaged(folder: Path, out: Path, change: Callable[[Path], None]) -> Path:
    """A copy of an artefact folder, changed."""
    shutil.copytree(folder, out)
    change(out)
    return out


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


class TestTenWrongInputs:
    """Each gives one clear line and exit code 2."""

    def test_unknown_recipe_key(self, world: World, tmp_path: Path):
        result = python("distill/run.py", world.recipe("x", "xclip", tmp_path), "optim.leraning_rate=0.1", check=False)
        one_line_error(result, "optim.leraning_rate", "unknown key")

    def test_no_such_recipe(self):
        one_line_error(python("distill/run.py", "recipes/nothing.yaml", check=False), "recipes/nothing.yaml")

    def test_labels_of_other_frames(self, world: World, teacher: Path, tmp_path: Path):
        labels = tmp_path / "labels"
        python("tools/dump_soft_labels.py", teacher, world.frames["val"], "--out", labels)
        recipe = world.recipe("s", "teachclip", tmp_path, labels=[str(labels)])
        one_line_error(python("distill/run.py", recipe, check=False), "labels were made from frames", "rerun")

    def test_missing_teacher(self, world: World, tmp_path: Path):
        result = python(
            *("tools/dump_soft_labels.py", tmp_path / "nobody", world.frames["val"], "--out", tmp_path / "l"),
            check=False,
        )
        one_line_error(result, "nobody", "no such folder")

    def test_a_student_is_no_teacher(self, world: World, tmp_path: Path):
        python("distill/run.py", world.recipe("plain", "clip4clip", tmp_path))
        release = tmp_path / "plain" / "release"
        command = ("tools/dump_soft_labels.py", release, world.frames["val"], "--out", tmp_path / "l")
        one_line_error(python(*command, check=False), "student", "only teachers can label")

    def test_truncated_shard(self, world: World, tmp_path: Path):
        frames = damaged(world.frames["train"], tmp_path / "f", lambda f: cut(f / "00000.tar"))
        recipe = world.recipe("x", "xclip", tmp_path, data={"train": str(frames)})
        one_line_error(python("distill/run.py", recipe, check=False), "00000.tar", "truncated")

    def test_one_flipped_byte_in_a_shard(self, world: World, tmp_path: Path):
        frames = damaged(world.frames["train"], tmp_path / "f", lambda f: flip(f / "00000.tar"))
        recipe = world.recipe("x", "xclip", tmp_path, data={"train": str(frames)})
        one_line_error(python("distill/run.py", recipe, check=False), "00000.tar", "sha256")

    def test_one_flipped_byte_in_a_teacher(self, world: World, teacher: Path, tmp_path: Path):
        release = damaged(teacher, tmp_path / "t", lambda f: flip(f / "model.safetensors"))
        command = ("tools/dump_soft_labels.py", release, world.frames["val"], "--out", tmp_path / "l")
        one_line_error(python(*command, check=False), "model.safetensors", "sha256")

    def test_empty_captions_file(self, world: World, tmp_path: Path):
        (tmp_path / "a.csv").write_text("")
        command = ("tools/pack_frames.py", tmp_path / "a.csv", world.corpus / "videos", "--out", tmp_path / "f")
        one_line_error(python(*command, check=False), "a.csv", "empty")

    def test_no_such_video_folder(self, world: World, tmp_path: Path):
        command = ("tools/pack_frames.py", world.corpus / "train.csv", tmp_path / "none", "--out", tmp_path / "f")
        one_line_error(python(*command, "--layout", "msrvtt", check=False), "none", "no such folder")

    def test_a_damaged_checkpoint(self, world: World, tmp_path: Path):
        recipe = world.recipe("x", "xclip", tmp_path)
        python("distill/run.py", recipe)
        shutil.rmtree(tmp_path / "x" / "release")
        cut(next((tmp_path / "x" / "checkpoints").glob("step*/model.safetensors")))
        one_line_error(python("distill/run.py", recipe, check=False), "checkpoint", "damaged")

    def test_a_gallery_of_another_release(self, world: World, tmp_path: Path):
        for name, seed in (("a", "1"), ("b", "2")):
            python("distill/run.py", world.recipe(name, "teachclip", tmp_path), f"seed={seed}")
        gallery = tmp_path / "gallery"
        python("tools/index.py", tmp_path / "a" / "release", world.frames["test"], "--out", gallery)
        search = ("tools/search.py", gallery, "a dog", "--release", tmp_path / "b" / "release")
        one_line_error(python(*search, check=False), "made by release")

    def test_frames_of_another_size(self, world: World, tmp_path: Path):
        frames = tmp_path / "small"
        pack = ("tools/pack_frames.py", world.corpus / "val.csv", world.corpus / "videos", "--layout", "msrvtt")
        python(*pack, "--size", "32", "--out", frames)
        recipe = world.recipe("x", "xclip", tmp_path, data={"train": str(frames), "batch_size": 4})
        one_line_error(python("distill/run.py", recipe, check=False), "32 pixels", "64")

    def test_a_batch_that_processes_cannot_share(self, world: World, tmp_path: Path):
        recipe = world.recipe("x", "xclip", tmp_path, data={"batch_size": 7})
        one_line_error(
            python("distill/run.py", recipe, check=False, WORLD_SIZE="2", RANK="0"), "batch_size", "2 processes"
        )
