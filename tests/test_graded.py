"""Graded truth: nDCG as trec_eval has it, false negatives forgiven, judgements that are read strictly."""

import itertools
import json

import numpy as np
import pytest
import pytrec_eval
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill.data.frames import FrameSet
from distill.demo.corpus import plan
from distill.demo.truth import grade
from distill.errors import ArtefactError
from distill.evaluation.duplicates import of_several
from distill.evaluation.evaluate import encode, score, texts_of, video_numbers
from distill.evaluation.graded import first_is_right, graded, ndcg
from distill.evaluation.metrics import recall_interval
from distill.evaluation.truth import Truth, by_teacher, read_qrels
from distill.release.release import load
from tools import dump_soft_labels, evaluate


@pytest.fixture(scope="module")
def frames(world):
    return FrameSet(world.frames["test"])


@pytest.fixture(scope="module")
def similarity(teacher, frames):
    """The teacher's scores of the test."""
    release = load(teacher)
    seen = encode(release.model, frames, release.tokenizer)
    return score(release.model, seen.text, seen.video)


def by_trec_eval(scores: np.ndarray, grades: np.ndarray) -> list[float]:
    """nDCG@10 of every query by pytrec-eval; queries and items are numbered."""
    qrels = {f"q{q}": {f"d{d}": int(grade) for d, grade in enumerate(row)} for q, row in enumerate(grades)}
    run = {f"q{q}": {f"d{d}": float(value) for d, value in enumerate(row)} for q, row in enumerate(scores)}
    found = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    return [found[f"q{q}"]["ndcg_cut_10"] for q in range(len(scores))]


@given(st.integers(1, 6), st.integers(1, 30), st.integers(0, 9999))
def test_ndcg_is_that_of_trec_eval(queries, items, seed):
    rng = np.random.default_rng(seed)
    scores = rng.permutation(queries * items).reshape(queries, items) / 7  # no ties, which it breaks by name
    grades = rng.integers(0, 4, (queries, items)) * (rng.random((queries, items)) < 0.3)
    found = ndcg(torch.from_numpy(scores), torch.from_numpy(grades))
    assert found.tolist() == pytest.approx(by_trec_eval(scores, grades), abs=1e-9)


@given(st.integers(0, 9999))
def test_ties_count_against_the_model(seed):
    rng = np.random.default_rng(seed)
    scores, grades = rng.integers(0, 3, (1, 5)), rng.integers(0, 3, (1, 5))
    apart = [scores + 1e-3 * np.array(order) for order in itertools.permutations(range(5))]
    tied, gains = torch.from_numpy(scores).double(), torch.from_numpy(grades)
    assert float(ndcg(tied, gains, 2)) == pytest.approx(
        min(float(ndcg(torch.from_numpy(one), gains, 2)) for one in apart)
    )
    right = gains > 1
    assert bool(first_is_right(tied, right)) == all(bool(right[0, one[0].argmax()]) for one in apart)


def test_r1_forgives_answers_that_fit_at_least_as_well():
    grades = torch.tensor([[2, 2, 1], [0, 1, 3], [0, 0, 0]], dtype=torch.int16)
    truth = Truth(grades, torch.tensor([0, 1, 2]), "qrels", "file", "id")
    assert truth.right(slice(None)).tolist() == [[True, True, False], [False, True, True], [False, False, True]]
    assert truth.several() == 2
    scores = torch.tensor([[0.1, 0.9, 0.3], [0.9, 0.2, 0.1], [0.0, 0.1, 0.2]])
    found = graded(truth, scores, scores, 0)
    assert found.metrics["t2v"]["R@1"] == pytest.approx(200 / 3)  # the second caption's first video fits worse
    assert found.metrics["v2t"]["R@1"] == pytest.approx(100 / 3)  # caption 0 for video 1 alone; 1 does not fit 0
    assert found.relevant == 5 and found.several == 2


def test_without_other_judgements_r1_is_that_of_the_papers(similarity, frames, tmp_path):
    lines = [f"{caption.id} 0 {video.id} 1" for video in frames.videos for caption in video.captions]
    (tmp_path / "own.qrels").write_text("\n".join(lines))
    truth = read_qrels(tmp_path / "own.qrels", frames)
    found = graded(truth, similarity, similarity, 0)
    own = video_numbers(frames)
    hits = (similarity > similarity.gather(1, own[:, None])).sum(1) == 0
    assert found.metrics["t2v"]["R@1"] == pytest.approx(100 * hits.double().mean().item())
    assert found.intervals["t2v"]["R@1"] == recall_interval((~hits).long(), own, 1, 0)
    assert found.several == 0 and found.relevant == len(lines)


@pytest.fixture(scope="module")
def judged(frames, tmp_path_factory):
    """A file of random judgements, some of the captions' own videos among them."""
    rng, lines = np.random.default_rng(0), []
    for video in frames.videos:
        for caption in video.captions:
            some = rng.choice(len(frames), 6, replace=False)
            lines += [f"{caption.id}\t0\t{frames.videos[other].id}\t{rng.integers(-1, 4)}" for other in some]
    path = tmp_path_factory.mktemp("judged") / "test.qrels"
    path.write_text("\n".join(lines) + "\n\n")
    return path


def test_an_evaluation_shows_it_in_a_block_of_its_own(teacher, world, frames, similarity, judged, tmp_path, capsys):
    out = tmp_path / "result.json"
    asked = [str(teacher), str(world.frames["test"]), "--protocol", "demo"]
    evaluate.main([*asked, "--qrels", str(judged), "--near-duplicates", "--out", str(out)])
    shown, found = capsys.readouterr().out, json.loads(out.read_text())
    given: dict[str, dict[str, int]] = {}
    for line in judged.read_text().split("\n"):
        if line:
            query, _, video, value = line.split("\t")
            given.setdefault(query, {})[video] = max(0, int(value))
    ids = [(caption.id, video.id) for video in frames.videos for caption in video.captions]
    grades = np.array(
        [[given[text].get(video.id, 3 if video.id == own else 0) for video in frames.videos] for text, own in ids]
    )
    expected = {"t2v": by_trec_eval(similarity.numpy(), grades), "v2t": by_trec_eval(similarity.T.numpy(), grades.T)}
    for side, values in expected.items():
        assert found["graded"]["metrics"][side]["nDCG@10"] == pytest.approx(100 * np.mean(values), abs=1e-4)
        low, high = found["graded"]["intervals"][side]["nDCG@10"]
        assert low < 100 * np.mean(values) < high
        assert found["graded"]["metrics"][side]["R@1"] >= found["scores"]["metrics"][side]["R@1"] or side == "v2t"
    assert found["graded"]["relevant"] == int((grades > 0).sum())
    plain, block = shown.split("\n\nGraded truth ")
    assert "nDCG" not in plain and "Not the papers' figures" in " ".join(block.split())
    assert f"{found['graded']['metrics']['t2v']['nDCG@10']:.1f} [" in block
    several = sum(of_several(texts_of(frames), video_numbers(frames).tolist()))
    assert f"Near duplicates: {several} of {len(ids)} captions" in block
    evaluate.main([*asked, "--compare", str(out)])
    assert "Graded truth" in capsys.readouterr().out, "an earlier result keeps its block"


def test_a_teacher_says_which_pairs_are_relevant(teacher, world, frames, similarity, tmp_path, capsys):
    dump_soft_labels.main(
        [str(teacher), str(world.frames["test"]), "--out", str(tmp_path / "labels"), "--dtype", "float32"]
    )
    truth = by_teacher(tmp_path / "labels", frames, 0.9)
    own = similarity.gather(1, video_numbers(frames)[:, None])
    near = (similarity >= 0.9 * own) & (own > 0)
    edge = (similarity - 0.9 * own).abs() < 1e-5
    expected = near.scatter(1, video_numbers(frames)[:, None], True)
    assert ((truth.grades > 0) == expected)[~edge].all() and truth.share == 0.9
    capsys.readouterr()
    asked = [str(teacher), str(world.frames["test"]), "--protocol", "demo", "--labels", str(tmp_path / "labels")]
    evaluate.main([*asked, "--share", "0.9", "--json"])
    found = json.loads(capsys.readouterr().out)["graded"]
    assert found["kind"] == "labels" and found["share"] == 0.9 and found["several"] == truth.several()
    with pytest.raises(SystemExit):
        evaluate.main([*asked[:-2], "--share", "0.9"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{text} 0 {video}", "expected a caption id, 0, a video id"),
        ("{text} 0 {video} good", "whole number"),
        ("{text} 0 {video} 99999", "whole number"),
        ("{text} 0 nowhere 1", r"1 videos \(nowhere\)"),
        ("nobody 0 {video} 1\nnobody 0 {video} 1", r"1 captions \(nobody\)"),
        ("{text} 0 {video} 1\n{text} 0 {video} 2", "line 2: .* two grades"),
        ("{text} 0 {video} 0", "grades nothing above 0"),
        ("", "grades nothing above 0"),
        ("x" * 10_000, "line 1"),
        ("\ud800", "not UTF-8"),
    ],
)
def test_judgements_are_read_strictly(frames, tmp_path, line, said):
    video = frames.videos[0]
    text = line.format(text=video.captions[0].id, video=video.id) if "{" in line else line
    (tmp_path / "odd.qrels").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ArtefactError, match=said):
        read_qrels(tmp_path / "odd.qrels", frames)


def test_a_pipe_or_a_missing_file_is_no_file_of_judgements(frames, tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    for path, said in ((tmp_path / "pipe", "a pipe"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(ArtefactError, match=said):
            read_qrels(path, frames)


@pytest.mark.slow
def test_the_demo_grades_every_caption_by_what_its_clips_show(world, frames):
    truth = read_qrels(world.corpus / "test.qrels", frames)
    clips = {clip.video: clip for clip in plan(32, 3) if clip.split == "test"}
    for row, (text, own) in enumerate(zip(texts_of(frames), video_numbers(frames).tolist(), strict=True)):
        clip = clips[frames.videos[own].id]
        sentence = next(said for said in clip.sentences if said.text == text)
        for column, video in enumerate(frames.videos):
            assert int(truth.grades[row, column]) == grade(clips[video.id], sentence)
            holds = clips[video.id].makes_true(sentence.claims)
            assert holds == (column == own) == (int(truth.grades[row, column]) == 3)
    assert {1, 2, 3} <= set(truth.grades.unique().tolist()) and truth.several() == 0
