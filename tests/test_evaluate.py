"""Evaluating a release: the numbers of training again, honest words on the gallery, no table of unlike things."""

import json
import re

import pytest
import torch
from conftest import ARCHITECTURE, one_line_error, python
from safetensors.torch import load_file

from distill.catalogue import build, parse_model_config
from distill.data.frames import FrameSet
from distill.errors import ArtefactError, ExpectedError
from distill.evaluation.evaluate import video_numbers
from distill.evaluation.metrics import ranks_t2v, ranks_v2t, recall_interval, summarise
from distill.evaluation.standing import captions_of, fingerprint
from distill.model.features import VideoFeatures
from distill.model.second_look import SecondLook
from distill.model.similarity import unit
from distill.model.towers import Towers
from distill.packing.packing import PackConfig, pack
from distill.release.release import load
from distill.release.writing import write_release
from tools import evaluate


@pytest.fixture(scope="module")
def result(teacher, world, tmp_path_factory):
    """The result file of the teacher on the test split with everything there is, and what was printed."""
    out = tmp_path_factory.mktemp("results") / "xclip.json"
    asked = ("--protocol", "demo", "--dsl", "--qbnorm", world.frames["train"], "--out", out)
    return out, python("tools/evaluate.py", teacher, world.frames["test"], *asked).stdout


@pytest.fixture(scope="module")
def student(world, tmp_path_factory):
    """A release of two stages, with random weights."""
    raw = {"kind": "eercf", "clip": {"model": "tiny"}, "frames": 12, "patches": False}
    config = parse_model_config(raw | {"temporal": {"layers": 1, "init": "normal"}}, "test")
    torch.manual_seed(0)
    model = build(config, Towers.from_architecture(ARCHITECTURE))
    folder = tmp_path_factory.mktemp("student") / "release"
    write_release(
        folder,
        model=model,
        model_config=config,
        weights=model.state_dict(),
        text={"max_words": 24, "vocabulary": None},
        frames_config=FrameSet(world.frames["test"]).manifest.config,
        provenance={},
    )
    return folder


def run(*args):
    evaluate.main([str(arg) for arg in args])


def test_the_numbers_are_those_of_training(result, teacher_run, world):
    found = json.loads(result[0].read_text())
    expected = json.loads((teacher_run / "test.json").read_text())
    for way in ("t2v", "v2t"):
        for name in ("R@1", "R@5", "R@10", "MdR", "MnR"):
            assert found["scores"]["metrics"][way][name] == pytest.approx(expected[way][name], abs=1e-6)
    ranks = load_file(teacher_run / "test_ranks.safetensors")
    frames = FrameSet(world.frames["test"])
    for way, videos in (("t2v", video_numbers(frames)), ("v2t", torch.arange(len(frames)))):
        interval = found["scores"]["intervals"][way]["R@1"]
        assert interval == pytest.approx(recall_interval(ranks[way], videos, 1, seed=0))
        assert interval[0] <= found["scores"]["metrics"][way]["R@1"] <= interval[1]


def test_the_result_says_what_was_searched(result, teacher, world):
    found, frames = json.loads(result[0].read_text()), FrameSet(world.frames["test"])
    assert found["protocol"] == "demo" and found["fingerprint"] == fingerprint(captions_of(frames))
    assert found["gallery"]["videos"] == len(frames) and found["gallery"]["complete"] is True
    assert found["subject"]["release"] == str(teacher) and found["subject"]["model"] == "xclip"
    assert found["subject"]["frames_id"] == frames.manifest.id
    assert found["qbnorm"]["queries"] == FrameSet(world.frames["train"]).manifest.counts["captions"]


def test_the_table_keeps_scores_by_other_queries_apart(result):
    plain, dsl, qbnorm = re.split(r"\n\n(?=DSL|QB-Norm)", result[1])
    assert "protocol  demo: emoji in motion, test" in plain and "complete: every video" in plain
    assert re.search(r"T2V R@1 \[95 %\] +R@5 +R@10 +MdR +MnR +V2T R@1 \[95 %\] +R@5", plain)
    assert "every answer uses all other test queries" in dsl and "Not to be compared with" in dsl
    assert "a bank of other queries" in qbnorm and "Not to be compared with" in qbnorm and "V2T" not in qbnorm
    found = json.loads(result[0].read_text())
    for block, measured in ((plain, found["scores"]), (dsl, found["dsl"]), (qbnorm, found["qbnorm"]["measured"])):
        row = block.splitlines()[-1]
        low, high = measured["intervals"]["t2v"]["R@1"]
        assert f"{measured['metrics']['t2v']['R@1']:.1f} [{low:.1f}, {high:.1f}]" in row
        assert f"{measured['metrics']['t2v']['MnR']:.1f}" in row
    assert found["dsl"]["metrics"] != found["scores"]["metrics"]


def test_json_is_one_object_without_what_was_not_asked_for(result, teacher, world, capsys):
    run(teacher, world.frames["test"], "--protocol", "demo", "--json", "--compare", result[0])
    found, stored = json.loads(capsys.readouterr().out), json.loads(result[0].read_text())
    assert found["scores"] == stored["scores"], "an evaluation repeats to the last bit"
    assert found["dsl"] is None and found["qbnorm"] is None
    assert found["compared"] == [stored]


def test_earlier_results_stand_in_the_same_table(result, teacher, world, tmp_path, capsys):
    earlier = json.loads(result[0].read_text())
    earlier["subject"]["release"] = "runs/before/release"
    (tmp_path / "before.json").write_text(json.dumps(earlier))
    run(teacher, world.frames["test"], "--protocol", "demo", "--compare", tmp_path / "before.json")
    plain, dsl, qbnorm = re.split(r"\n\n(?=DSL|QB-Norm)", capsys.readouterr().out)
    ours, before = plain.splitlines()[-2:]
    assert ours.startswith(str(teacher)) and before.startswith("runs/before/release")
    assert ours.split("  ")[-1] == before.split("  ")[-1]
    assert str(teacher) not in dsl + qbnorm, "only the earlier result has these"
    assert qbnorm.splitlines()[-2].split() == ["T2V", "R@1", "[95", "%]", "R@5", "R@10", "MdR", "MnR"]


def test_two_stages_are_measured_both_ways_in_a_block_of_their_own(student, world, tmp_path, capsys):
    frames, out = FrameSet(world.frames["test"]), tmp_path / "eercf.json"
    videos, captions = len(frames), len(captions_of(frames)[0][1]) * len(frames)
    run(student, world.frames["test"], "--protocol", "demo", "--candidates", "2", str(captions), "--out", out)
    plain, block = capsys.readouterr().out.split("\n\nTwo stages: ")
    found = json.loads(out.read_text())
    few, whole = found["two_stage"]
    assert (few["candidates"], whole["candidates"]) == (2, captions) and captions > videos
    for way, metrics in found["scores"]["metrics"].items():
        assert whole["measured"]["metrics"][way] == pytest.approx(metrics, abs=0.5), "random weights: many near ties"
        assert whole["shared"][way] > 98
    assert few["shared"]["t2v"] < 90 and few["measured"]["metrics"] != found["scores"]["metrics"]
    assert "2 candidates (shared top 10: T2V" in block and "V2T R@1" in block and str(student) in plain
    del found["two_stage"]
    (tmp_path / "before.json").write_text(json.dumps(found))
    run(student, world.frames["test"], "--protocol", "demo", "--compare", tmp_path / "before.json")
    assert "Two stages" not in capsys.readouterr().out, "a result from before there were two stages can still be read"


def test_a_second_look_stands_in_a_block_of_its_own(world, tmp_path, capsys):
    config = parse_model_config(
        {"kind": "teachclip", "clip": {"model": "tiny"}, "temporal": {"init": "normal"}}, "test"
    )
    torch.manual_seed(0)
    model, frames = build(config, Towers.from_architecture(ARCHITECTURE)).eval(), FrameSet(world.frames["test"])
    write_release(
        tmp_path / "release",
        model=model,
        model_config=config,
        weights=model.state_dict(),
        text={"max_words": 24, "vocabulary": None},
        frames_config=frames.manifest.config,
        provenance={},
        second_look=SecondLook(temperature=0.2, t2v=1.5, v2t=0.5),
    )
    run(tmp_path / "release", frames.path, "--protocol", "demo", "--out", tmp_path / "result.json")
    assert "(temperature 0.2; weight 1.5 for T2V, 0.5 for V2T)" in capsys.readouterr().out
    found = json.loads((tmp_path / "result.json").read_text())
    release, of = load(tmp_path / "release"), video_numbers(frames)
    video = VideoFeatures.cat([release.encode_video(frames.pixels(number)) for number in range(len(frames))])
    sentence = unit(release.encode_text([c.text for v in frames.videos for c in v.captions]).sentence)
    cosines = torch.einsum("td,vfd->tvf", sentence, unit(video.frames)).masked_fill(~video.real, -1e9)
    answers = ((cosines / 0.2).softmax(-1) * cosines).sum(-1)
    plain = sentence @ unit(video.vector).T
    for way, ranks, weight in (("t2v", ranks_t2v, 1.5), ("v2t", ranks_v2t, 0.5)):
        measured = found["second_look"]["measured"]["metrics"][way]
        assert measured["MnR"] == pytest.approx(summarise(ranks(plain + weight * answers, of))["MnR"], abs=0.05)
        assert found["scores"]["metrics"][way]["MnR"] == pytest.approx(summarise(ranks(plain, of))["MnR"], abs=0.05)


def test_two_stages_are_refused_where_there_is_one(teacher, student, world, capsys):
    with pytest.raises(ExpectedError, match="xclip model has no second stage to rerank in; leave --candidates out"):
        run(teacher, world.frames["test"], "--protocol", "demo", "--candidates", "5")
    with pytest.raises(SystemExit):
        run(student, world.frames["test"], "--protocol", "demo", "--candidates", "0")
    assert "expected how many candidates to score in full, at least 1" in capsys.readouterr().err


def test_results_of_other_galleries_are_refused(result, teacher, world):
    """Another fingerprint, and another protocol with the same one."""
    command = ("tools/evaluate.py", teacher, world.frames["val"], "--protocol", "demo", "--compare", result[0])
    other = fingerprint(captions_of(FrameSet(world.frames["val"])))
    own = json.loads(result[0].read_text())["fingerprint"]
    refused = python(*command, check=False)
    one_line_error(refused, f"a result of demo {own[:12]}, expected demo {other[:12]}", "do not belong in one table")
    assert refused.stdout == ""
    with pytest.raises(ExpectedError, match="expected msvd"):
        run(teacher, world.frames["test"], "--protocol", "msvd", "--compare", result[0])


def test_results_on_a_set_of_ones_own_compare_by_its_fingerprint(student, world, tmp_path, capsys):
    out = tmp_path / "own.json"
    run(student, world.frames["val"], "--protocol", "own", "--out", out)
    printed, digest = capsys.readouterr().out, json.loads(out.read_text())["fingerprint"]
    assert digest == fingerprint(captions_of(FrameSet(world.frames["val"])))
    assert "protocol  own: a test set of your own" in printed and f"fingerprint {digest[:12]}" in printed
    assert "complete: every video of its file was packed" in printed
    run(student, world.frames["val"], "--protocol", "own", "--compare", out)
    assert len(re.findall(re.escape(str(student)), capsys.readouterr().out)) == 2
    with pytest.raises(
        ExpectedError, match=f"a result of own {digest[:12]}, expected own .* do not belong in one table"
    ):
        run(student, world.frames["test"], "--protocol", "own", "--compare", out)


def test_a_foreign_gallery_is_called_incomplete(teacher, world, capsys):
    run(teacher, world.frames["val"], "--protocol", "msrvtt-1ka")
    assert re.search(r"incomplete: [\d,]+ of 1,000 videos are missing.* use --protocol own", capsys.readouterr().out)


def test_a_bank_must_not_hold_the_test_queries(teacher, world):
    with pytest.raises(ExpectedError, match="must not hold what is tested"):
        run(teacher, world.frames["test"], "--protocol", "demo", "--qbnorm", world.frames["test"])


def test_frames_of_other_settings_are_refused(teacher, world, tmp_path):
    (tmp_path / "some.csv").write_text(f"video,caption\n{FrameSet(world.frames['val']).videos[0].source},a star\n")
    config = PackConfig(sampler=FrameSet(world.frames["val"]).manifest.config["sampler"], size=32)
    pack(tmp_path / "some.csv", "csv", world.corpus / "videos", tmp_path / "small", config, workers=1)
    with pytest.raises(ArtefactError, match=r'packed with .*"size": 32.*trained with .*"size": 64'):
        run(teacher, tmp_path / "small", "--protocol", "demo")


def test_files_that_are_no_results_are_refused(result, teacher, world, tmp_path):
    (tmp_path / "odd.json").write_text('{"format": 1}')
    asked = (teacher, world.frames["val"], "--protocol", "demo")
    with pytest.raises(ArtefactError, match=r"odd\.json: damaged at toolkit: Field required; expected a result"):
        run(*asked, "--compare", tmp_path / "odd.json")
    with pytest.raises(ArtefactError, match=r"cannot be read \(No such file.*expected a result"):
        run(*asked, "--compare", tmp_path / "none.json")
    with pytest.raises(ArtefactError, match="already holds another result"):
        run(*asked, "--out", result[0])


def test_several_processes_are_refused(teacher, world, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ExpectedError, match="runs in one"):
        run(teacher, world.frames["val"], "--protocol", "demo")
