"""Records of a study: what is kept of a seed, what is trained again, and a table made of records alone."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.demo import record, story, trials, wordings
from distill.demo.corpus import plan
from distill.errors import ArtefactError, ExpectedError
from tools import demo_study

ROWS = trials.chosen(trials.ROWS, ["teachclip", "teachclip+look", "teachclip-plain"])
VIDEOS, TEXTS = 980, 2676  # of the test split


def found(seed: int, clips: int = 700, videos: int = VIDEOS, texts: int = TEXTS) -> record.Record:
    """Return a made-up record: the student with labels is better by construction."""
    generator = torch.Generator().manual_seed(seed)
    ranks = {"video_of_text": torch.randint(videos, (texts,), generator=generator)}
    figures = {}
    for row in ROWS:
        top = 3 if row.key == "teachclip" else 20
        for side, count in (("t2v", texts), ("v2t", videos)):
            ranks[f"{row.key}/{side}"] = torch.randint(top, (count,), generator=generator)
        metrics = dict.fromkeys(story.METRICS, 50.0 + seed)
        others = dict.fromkeys(("mass", "moment", "moment_part", "ms", "train_seconds"), 1.0)
        figures[row.key] = {"title": row.title, "t2v": metrics, "v2t": metrics, **others}
    recipes = story.recipes_of(ROWS, Path(f"runs/study/seed{seed}"), Path(f"demo/labels/study-seed{seed}"), seed)
    return record.Record(clips, figures, recipes, ranks)


def test_a_record_is_read_as_it_was_written_and_grows(tmp_path):
    path, one = tmp_path / "seed0.safetensors", found(0)
    record.write(path, one)
    again = record.read(path)
    assert again.figures == one.figures and again.recipes == one.recipes and again.clips == 700
    assert again.ranks.keys() == one.ranks.keys()
    assert all(torch.equal(again.ranks[name], one.ranks[name]) for name in one.ranks)
    assert all(again.holds(row.key, one.recipes[row.key]) for row in ROWS)
    part = replace(again, figures={"new": one.figures["teachclip"]}, recipes={"new": {}}, ranks={})
    assert again.joined(part).figures.keys() == {*one.figures, "new"}


def test_a_row_that_was_trained_by_another_recipe_is_not_taken(tmp_path):
    one = found(0)
    changed = json.loads(json.dumps(one.recipes["teachclip"]))
    changed["xclip"]["optim"]["lr"] = 0.5  # of its teacher alone
    assert not one.holds("teachclip", changed) and not one.holds("teachclip-long", {})
    assert one.recipes["teachclip"].keys() == {"teachclip", "xclip"} == one.recipes["teachclip+look"].keys()
    assert one.recipes["teachclip-plain"].keys() == {"teachclip-plain"}


@pytest.mark.parametrize("kind", ["empty", "cut", "json", "short", "link"])
def test_a_file_that_is_no_record_is_refused(tmp_path, kind):
    path = tmp_path / "seed0.safetensors"
    record.write(path, found(0))
    content = path.read_bytes()
    if kind == "short":
        one = found(0)
        record.write(path, replace(one, ranks={**one.ranks, "teachclip/t2v": torch.zeros(3, dtype=torch.long)}))
    elif kind == "link":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({"empty": b"", "cut": content[:-9], "json": content.replace(b"clips", b"clops")}[kind])
    with pytest.raises(ArtefactError, match=r"seed0.safetensors.*delete it, and its rows are trained again"):
        record.read(path)


def test_a_study_whose_rows_are_all_recorded_trains_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        record.write(Path(f"kept/seed{seed}.safetensors"), found(seed))
    demo_study.main(["--records", "kept", "--seeds", "3", "--rows", *(row.key for row in ROWS if row.key != "xclip")])
    printed = capsys.readouterr().out
    assert "TeachCLIP with labels" in printed and "51.0 ±1.0" in printed  # of 50, 51, 52
    assert not Path("runs/study/logs").exists() and not Path("demo").exists()
    assert "a and then b (302)" in printed and "one scene (1,255)" in printed
    page = Path("runs/study/report.html").read_text()
    assert "over 3 seeds" in page and "TeachCLIP with labels" in page and "<svg" in page
    gains = json.loads(Path("runs/study/summary.json").read_text())["gains"]["teachclip - teachclip-plain"]
    for side in ("t2v", "v2t"):
        tables = [found(seed).ranks for seed in range(3)]
        a, b = (
            np.concatenate([t[f"{key}/{side}"].numpy() for t in tables]) for key in ("teachclip", "teachclip-plain")
        )
        assert gains[side]["R@1"][0] == pytest.approx(100 * ((a < 1).mean() - (b < 1).mean()))
        assert gains[side]["MnR"][0] == pytest.approx((a + 1).mean() - (b + 1).mean())
        assert gains[side]["R@1"][1] < gains[side]["R@1"][0] < gains[side]["R@1"][2]


def test_records_of_another_corpus_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record.write(Path("kept/seed0.safetensors"), found(0, clips=100))
    with pytest.raises(ExpectedError, match=r"seed0.safetensors: of 100 training clips, not 700"):
        demo_study.main(["--records", "kept", "--seeds", "1", "--rows", "teachclip"])


def test_what_is_missing_of_a_seed_is_trained_with_the_teacher_that_it_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record.write(Path("kept/seed0.safetensors"), found(0))
    rows = trials.chosen(trials.ROWS, ["teachclip", "glscl", "eercf-plain"])
    seed = demo_study._Seed(0, Path("kept"), rows, 700)
    assert {row.key for row in seed.missing} == {"glscl", "eercf-plain", "xclip"}


def test_queries_are_told_apart_by_what_they_claim_and_counted_by_seed():
    kinds = []  # from the claims of a sentence, not from its words
    clips = [clip for clip in plan(100, seed=0) if clip.split == "test"]
    for clip in clips:
        for sentence in clip.sentences:
            claims = sentence.claims
            if len(claims) == 1:
                kinds.append("one scene")
            elif claims[0].motion is None:
                kinds.append("a and then b")
            else:
                kinds.append("B after A" if claims[0].background is None else "A, then B")
    assert [wordings.wording(query) for query in wordings.queries(100)] == kinds and len(set(kinds)) == 4
    seeds = [found(seed, 100, len(clips), len(kinds)) for seed in (0, 1)]
    head, *lines = wordings.table(ROWS, seeds)
    assert head == ["T2V R@1", *(f"{kind} ({kinds.count(kind):,})" for kind in [*wordings.JOINED, wordings.ONE])]
    for row, line in zip(ROWS, lines, strict=True):
        for name, cell in zip([*wordings.JOINED, wordings.ONE], line[1:], strict=True):
            ranks = [
                seed.ranks[f"{row.key}/t2v"][n].item() for seed in seeds for n, kind in enumerate(kinds) if kind == name
            ]
            assert cell == f"{100 * sum(rank == 0 for rank in ranks) / len(ranks):.1f}"
