"""The demo's figures: how often the best frame is right, and queries that nothing in the corpus answers."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from test_demo_corpus import corpus
from test_release import make

from distill import catalogue
from distill.config import read_recipe
from distill.data.frames import FrameSet
from distill.data.videos import Caption
from distill.demo import measuring, search, story, trials
from distill.demo.nonsense import WORDS, caught, nonsense
from distill.evaluation.evaluate import Encoded
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.towers import Towers
from distill.recipe import Recipe
from distill.release.release import Release
from distill.retrieval import Hit


def test_a_moment_is_right_where_the_frame_that_answers_best_is_relevant():
    _, model = make()
    release = Release.__new__(Release)  # of which the model alone is asked
    release.model = model
    generator = torch.Generator().manual_seed(3)
    real = torch.ones(5, 4, dtype=torch.bool)
    real[1, 2:] = False
    video = VideoFeatures(
        vector=torch.randn(5, 64, generator=generator), frames=torch.randn(5, 4, 64, generator=generator), real=real
    )
    of = torch.tensor([0, 0, 1, 2, 3, 3, 4, 4])
    text = TextFeatures(sentence=torch.randn(8, 64, generator=generator))
    relevant = (torch.rand(8, 4, generator=generator) < 0.6) & real[of]
    part = torch.tensor([True, False] * 4)
    found = measuring._moments(release, Encoded(text, video, of), relevant, part)
    right = []
    for caption, row in enumerate(of.tolist()):
        frames = video.frames[row][real[row]].numpy()
        cosines = frames @ text.sentence[caption].numpy() / np.linalg.norm(frames, axis=1)
        right.append(bool(relevant[caption, int(cosines.argmax())]))
    assert 0 < sum(right) < 8
    assert found["moment"] == 100 * np.mean(right) and found["moment_part"] == 100 * np.mean(right[::2])


def test_seconds_of_the_truth_become_frames_and_say_what_a_part_is(tmp_path):
    captions = tuple(Caption(id=name, text=name) for name in ("whole", "part"))
    frames = FrameSet.__new__(FrameSet)
    frames.videos = [Packed("v", captions, (0.5, 2.0, 4.9, 5.5, 7.0))]
    said = {"whole": [0, 0, 1, 1, 1, 0], "part": [0, 0, 0, 0, 1, 0]}
    (tmp_path / "truth.json").write_text(json.dumps({"content": {"v": [2, 3, 4]}, "captions": {"v": said}}))
    relevant, parts = measuring._truth(frames, tmp_path / "truth.json", 6)
    assert relevant.int().tolist() == [[0, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0]] and parts.tolist() == [False, True]


@dataclass
class Packed:
    """The facts of a video of a frame set that are asked for."""

    id: str
    captions: tuple[Caption, ...]
    timestamps: tuple[float, ...]


def test_queries_without_sense_say_nothing_that_a_clip_shows():
    queries = nonsense(60, seed=1)
    assert queries == nonsense(60, seed=1) != nonsense(60, seed=2) and len(set(queries)) == 60
    shown = {word for clip in corpus() for sentence in clip.sentences for word in re.findall("[a-z]+", sentence.text)}
    joining = {"a", "the", "of", "in", "beside", "without", "about", "before"}
    assert len(shown) > 100 and not set(WORDS.split()) & shown
    for query in queries:
        assert not set(query.split()) & shown - joining, query


def test_a_study_of_some_rows_has_the_rows_that_they_need():
    rows = [row.key for row in trials.chosen(trials.ROWS, ["teachclip-two", "teachclip-look+look"])]
    assert sorted(rows) == ["teachclip-look", "teachclip-look+look", "teachclip-two", "ts2net", "xclip"]
    assert trials.chosen(trials.ROWS, [row.key for row in trials.ROWS]) == trials.ROWS
    assert len({row.key for row in trials.ROWS}) == len(trials.ROWS)
    known = set(trials.ROWS)
    for pair in trials.PAIRS:
        assert set(pair) <= known, pair


@pytest.mark.parametrize("row", [row for row in trials.ROWS if not row.of], ids=lambda row: row.key)
def test_every_row_is_a_recipe_that_is_read(row):
    command = story._training(row, Path("runs"), Path("labels"), 0)
    words = [str(word) for word in command.arguments]
    recipe, *changes = words[next(n for n, word in enumerate(words) if word.endswith("run.py")) + 1 :]
    found = read_recipe(recipe, changes, Recipe)
    assert found.name == row.key and found.train.epochs == row.epochs
    assert bool(found.labels) == bool(row.taught_by) and bool(found.data.texts) == ("texts" in row.beside)


@pytest.mark.parametrize("student", trials.STUDENTS, ids=lambda student: student.recipe)
def test_students_of_one_stage_take_a_second_look(student):
    config = read_recipe(f"recipes/{student.recipe}.yaml", [], Recipe).model
    model = catalogue.build(config, Towers.from_config(config.clip))
    assert (student.recipe in trials.ONE_STAGE) == (not model.rerank_fields)


def test_a_search_marks_the_best_setting_of_each_student_on_validation(tmp_path):
    rows = search.rows(["teachclip", "glscl"])
    assert len(rows) == 1 + 2 * len(search.GRID) and all("data.test=null" in row.changes for row in rows)
    for number, row in enumerate(rows[1:]):
        (tmp_path / row.key).mkdir()
        values = [{"t2v": {"R@1": float(number % 5 + v)}, "v2t": {"R@1": 50.0 - v}} for v in (0, 1)]
        lines = [{"step": 1, "loss": 2.0}, *({"val": {"t2v": v["t2v"], "v2t": v["v2t"]}} for v in values)]
        (tmp_path / row.key / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = search.results(rows, [tmp_path])
    assert [row["key"] for row in found if row["chosen"]] == ["teachclip-kl-8", "glscl-kl-8"]
    assert [line[-1] for line in search.table(found)[1:]].count("chosen") == 2


def test_a_query_is_caught_if_no_hit_fits():
    def search(queries, k):
        return [[hit(fits=query == "fits")] for query in queries]

    assert caught(search, ["fits", "no", "no", "no"] * 30) == 75


def hit(**facts):
    moment = {"seconds": (0.0, 1.0), "duration": 1.0, "timestamps": (0.5,), "weights": (1.0,), "span": None}
    return Hit(video="v", source="v.mp4", score=0.5, weighed_by="query", **moment, **facts)
