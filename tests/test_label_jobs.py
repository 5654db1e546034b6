"""One label job in any number of parts and processes ends in the same set, and says beforehand what it will write."""

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, World, command, quick, tree_bytes
from labelling import label_job, pack_shards

import tools.dump_soft_labels
from distill.data.frames import FrameSet
from distill.data.labels import StoredLabels, Tier, tier_of
from distill.errors import ArtefactError, ExpectedError
from distill.labelling.forecast import forecast
from distill.labelling.job import LabelJob, LabelJobConfig
from distill.labelling.sealing import merge_labels, seal_labels
from distill.manifest import Manifest
from distill.remote import Place, locate

ALL = ("relevance", "topk", "features")


@pytest.fixture(scope="module")
def shards(world: World, tmp_path_factory) -> Path:
    """The training frames in shards of five."""
    return pack_shards(world, tmp_path_factory.mktemp("shards") / "frames", 5)


@pytest.fixture(scope="module")
def whole(world: World, shards: Path, tmp_path_factory) -> Path:
    """All tiers, by one process in one go."""
    job = make_job(world, shards, tmp_path_factory.mktemp("whole") / "labels")
    assert job.begin() is None
    assert job.label() is not None
    return Path(str(job.out))


def make_job(world: World, frames: Path, out: Place, **options) -> LabelJob:
    return label_job(world, "xclip", out, "float16", **{"frames": frames, "tiers": ALL, "top": 4, **options})


def run_part(job: LabelJob, index: int, count: int) -> Manifest | None:
    assert job.begin() is None
    return job.label_part(index, count)


@pytest.mark.parametrize(("count", "scheme"), [(2, ""), pytest.param(4, "file://", marks=pytest.mark.slow)])
def test_parts_end_in_the_same_set_as_one_process(
    world: World, shards: Path, whole: Path, tmp_path: Path, count: int, scheme: str
):
    encoded = {"videos": 0, "captions": 0}
    sealed: list[Manifest | None] = []
    order = [*reversed(range(count)), *range(count)]  # features of all parts first, then labels
    for index in order:
        out = locate(f"{scheme}{tmp_path / 'labels'}")  # behind a URL as in a folder
        job = make_job(world, shards, out)  # another process knows nothing of the first
        sealed.append(run_part(job, index, count))
        encoded = {name: encoded[name] + job.encoder.encoded[name] for name in encoded}
    assert sealed[-1] is not None and sealed[:-1].count(None) == len(order) - 1
    assert tree_bytes(tmp_path / "labels") == tree_bytes(whole)
    frames = FrameSet(shards)
    texts = {caption.text for video in frames.videos for caption in video.captions}
    shared = [text for text in texts if len(homes(frames, text)) > 1]
    assert shared, "the corpus has captions that several shards need"
    assert encoded == {"videos": len(frames), "captions": len(texts)}
    assert not (tmp_path / "labels" / ".work" / "features").exists()


def homes(frames: FrameSet, text: str) -> set[str]:
    return {
        tar
        for tar, numbers in frames.shards().items()
        for number in numbers
        if any(caption.text == text for caption in frames.videos[number].captions)
    }


def test_a_finished_set_is_left_alone(world: World, shards: Path, whole: Path):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    job = make_job(world, shards, whole)
    found = job.begin()
    assert found is not None and found.id == StoredLabels(whole).manifest.id
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    with pytest.raises(ArtefactError, match="another label set"):
        make_job(world, shards, whole, top=5).begin()


def test_what_is_missing_is_made_and_nothing_else(world: World, shards: Path, tmp_path: Path, caplog):
    job = make_job(world, shards, tmp_path / "labels", tiers=("relevance",))
    run_part(job, 1, 3)
    names = list(job.shards)
    assert job.labels.missing() == [name for i, name in enumerate(names) if i % 3 != 1]
    times = {name: (tmp_path / "labels" / f"{name}.tar").stat().st_mtime_ns for name in names[1::3]}
    tar = tmp_path / "labels" / f"{names[1]}.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    assert job.label() is not None  # the damaged one was made again
    assert f"shards {names[1]} were changed after they were written" in caplog.text
    assert (tmp_path / "labels" / f"{names[4]}.tar").stat().st_mtime_ns == times[names[4]]
    job = make_job(world, shards, tmp_path / "one", tiers=("relevance",))
    assert job.begin() is None and job.label() is not None
    assert tree_bytes(tmp_path / "labels") == tree_bytes(tmp_path / "one")


@pytest.mark.slow
def test_a_process_whose_fellows_are_lost_makes_their_share(
    world: World, shards: Path, whole: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr("distill.labelling.job.SILENCE", 0.1)
    monkeypatch.setattr("distill.labelling.job.LOOK", 0.01)
    job = make_job(world, shards, tmp_path / "labels")
    assert job.begin() is None
    assert job.label(rank=1, world=3) is not None  # 0 and 2 never come
    assert tree_bytes(tmp_path / "labels") == tree_bytes(whole)


def workers_of(launcher: int) -> list[int]:
    found = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(pid) for pid in found if b"dump_soft_labels" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the workers in /proc")
def test_a_killed_worker_is_made_up_for(world: World, teacher: Path, tmp_path: Path):
    """Two workers under torchrun; one gets kill -9 while shards remain; the agent starts both again."""
    frames = pack_shards(world, tmp_path / "frames", 1)
    options = [str(teacher), str(frames), "--tiers", *ALL, "--top", "4"]
    tools.dump_soft_labels.main([*options, "--out", str(tmp_path / "one")])
    out = tmp_path / "two"
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", *launcher, "tools/dump_soft_labels.py", *options, "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "LOGLEVEL": "INFO"},  # INFO: the launcher says that it restarts
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not any(out.glob("*.tar")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(workers_of(process.pid)[1], signal.SIGKILL)
    remaining = len(FrameSet(frames)) - len(list(out.glob("*.tar")))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0 and remaining > 0, errors
    assert "exitcode: -9" in errors and errors.count("will restart worker group") == 1, errors
    assert "Traceback" not in errors
    assert tree_bytes(out) == tree_bytes(tmp_path / "one")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.slow
def test_processes_that_seal_at_once_write_the_same_bytes(whole: Path):
    expected = tree_bytes(whole)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=seal_often, args=(whole,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert tree_bytes(whole) == expected


def seal_often(folder: Path) -> None:
    for _ in range(8):
        manifest = seal_labels(folder)
        assert manifest is not None


@pytest.fixture(scope="module")
def made(world: World, shards: Path, tmp_path_factory) -> Path:
    """Two folders, each with half of a job."""
    folder = tmp_path_factory.mktemp("parts")
    for index, name in enumerate("ab"):
        job = make_job(world, shards, folder / name, tiers=("relevance", "features"))
        assert run_part(job, index, 2) is None
    return folder


@pytest.fixture
def parts(made: Path, tmp_path: Path) -> list[Path]:
    """Copies of these folders."""
    return [shutil.copytree(made / name, tmp_path / name) for name in "ab"]


class TestMerge:
    """Parts made on hosts that share no folder."""

    def test_the_merged_set_is_the_one_made_in_one_go(
        self, world: World, shards: Path, parts: list[Path], tmp_path: Path
    ):
        job = make_job(world, shards, tmp_path / "one", tiers=("relevance", "features"))
        assert job.begin() is None
        expected = job.label()
        merged = merge_labels(parts, tmp_path / "merged")
        assert expected is not None and merged.id == expected.id
        assert tree_bytes(tmp_path / "merged") == tree_bytes(tmp_path / "one")
        # into the first part itself, with an overlap that is the same
        assert merge_labels([parts[0], tmp_path / "one"], parts[0]).id == expected.id

    def test_a_gap_is_named(self, parts: list[Path], tmp_path: Path):
        with pytest.raises(ArtefactError, match=r"of 7 shards are in no part: 00001, 00003, 00005"):
            merge_labels(parts[:1], tmp_path / "merged")
        assert not (tmp_path / "merged").exists()

    def test_other_settings_are_refused(self, world: World, shards: Path, parts: list[Path], tmp_path: Path):
        run_part(make_job(world, shards, tmp_path / "c", tiers=("relevance",)), 0, 2)
        with pytest.raises(ArtefactError, match=r"part of another job than .* \(tiers differ\)"):
            merge_labels([*parts, tmp_path / "c"], tmp_path / "merged")

    def test_shards_that_differ_are_refused(self, world: World, shards: Path, parts: list[Path], tmp_path: Path):
        other = label_job(world, "xclip", tmp_path / "c", "float16", frames=shards)
        encoder = other.encoder
        encoder.encode_texts = lambda texts, encode=encoder.encode_texts: encode([text[::-1] for text in texts])
        run_part(other, 0, 2)
        with pytest.raises(ArtefactError, match="hold different shards 00000"):
            merge_labels([*parts, tmp_path / "c"], tmp_path / "merged")

    def test_a_folder_of_another_kind_is_refused(self, parts: list[Path], shards: Path, tmp_path: Path):
        with pytest.raises(ArtefactError, match=r"not a folder that tools/dump_soft_labels\.py began"):
            merge_labels([*parts, tmp_path], tmp_path / "merged")


class TestPlan:
    """`--plan` is right, and writes nothing."""

    @pytest.mark.parametrize("tiers", quick([("relevance",), ("relevance", "features"), ALL], [ALL]))
    def test_bytes_are_those_that_are_written(self, world: World, shards: Path, tmp_path: Path, tiers):
        job = make_job(world, shards, tmp_path / "labels", tiers=tiers)
        found = forecast(job)
        assert not (tmp_path / "labels").exists()
        assert (found.left, found.videos, found.distinct) == (7, len(job.frames), len(job.captions))
        assert found.seconds > 0
        assert job.begin() is None
        job.label_part(0, 4)
        if job.top:
            for index in (1, 2, 3):
                job.label_part(index, 4)
            kept = sum(path.stat().st_size for path in (tmp_path / "labels" / ".work" / "features").glob("*.tar"))
            assert found.kept <= kept <= 1.2 * found.kept  # headers, and blocks of small tars
        again = forecast(job)
        assert (again.left, again.bytes) == (6 if job.top else 5, found.bytes) and again.seconds < 10 * found.seconds
        job.label()
        written = {name: len(data) for name, data in tree_bytes(tmp_path / "labels").items() if name != "manifest.json"}
        assert sum(found.bytes.values()) == sum(written.values())
        stored = StoredLabels(tmp_path / "labels")
        for tier in tiers:
            entries = [item for key in stored.keys for item in stored.header(key).items()]
            assert found.bytes[tier] == sum(entry.end - entry.begin for name, entry in entries if tier_of(name) == tier)

    def test_the_command_prints_it(self, world: World, teacher: Path, shards: Path, tmp_path: Path, capsys):
        command = [str(teacher), str(shards), "--out", str(tmp_path / "labels"), "--plan", "--part", "2/4"]
        tools.dump_soft_labels.main(command)
        printed = capsys.readouterr().out
        frames = FrameSet(shards)
        assert f"{len(frames)} videos" in printed and "7 shards: 0 done, 7 left" in printed
        assert re.search(r"\nfeatures +[\d,]+\n", printed) and re.search(r"minutes for 4 process", printed)
        assert not (tmp_path / "labels").exists()


@pytest.mark.slow
def test_accelerate_launches_it(world: World, teacher: Path, tmp_path: Path):
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
    done = command(*launcher, "tools/dump_soft_labels.py", teacher, world.frames["val"], "--out", tmp_path / "labels")
    assert "labels of" in done.stdout
    assert StoredLabels(tmp_path / "labels").manifest.counts["videos"] == len(FrameSet(world.frames["val"]))


def test_a_config_holds_the_tiers_in_one_order_with_the_relevance():
    def tiers(*given: Tier) -> list[Tier]:
        return LabelJobConfig(tiers=list(given), storage="float16", batch=1, precision="fp32").tiers

    assert tiers() == tiers("relevance") == ["relevance"]
    assert tiers("topk") == tiers("topk", "relevance", "topk") == ["relevance", "topk"]
    assert tiers("features", "topk") == ["relevance", "topk", "features"]


@pytest.mark.parametrize(("name", "value", "least"), [("top", 0, 1), ("batch", 0, 1), ("workers", -1, 0)])
def test_numbers_that_cannot_be_are_refused_before_anything_is_read(tmp_path: Path, name: str, value: int, least: int):
    command = [str(tmp_path / "none"), str(tmp_path / "none"), "--out", str(tmp_path / "labels"), f"--{name}={value}"]
    with pytest.raises(ExpectedError, match=f"options: {name}: found {value}, .* greater than or equal to {least}"):
        tools.dump_soft_labels.main(command)


def test_a_student_cannot_label(tmp_path: Path):
    made = Path(__file__).parent / "artefacts" / "5368ee6"
    with pytest.raises(ArtefactError, match="teachclip is a student, only teachers can label"):
        tools.dump_soft_labels.main([str(made / "teachclip"), str(made / "frames"), "--out", str(tmp_path / "labels")])
    assert not (tmp_path / "labels").exists()


def test_parts_are_numbered_from_one(teacher: Path, tmp_path: Path, capsys, monkeypatch):
    command = [str(teacher), str(tmp_path), "--out", str(tmp_path / "labels"), "--part"]
    for wrong in ("0/4", "5/4", "4", "a/b"):
        with pytest.raises(SystemExit):
            tools.dump_soft_labels.main([*command, wrong])
        assert "expected I/N with I from 1 to N" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ExpectedError, match="divide the shards themselves"):
        tools.dump_soft_labels.main([*command, "1/2"])
