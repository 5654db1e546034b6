"""Reports of runs: the figures of the test, in one file that a browser shows without network on phone and desktop."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import metrics, one_line_error, python, quick
from labelling import change_videos
from pages import contrast, luminance, needs_chromium
from safetensors.torch import load_file, save_file

from distill.data.frames import FrameSet
from distill.errors import ArtefactError, ExpectedError
from distill.evaluation.duplicates import plain, words
from distill.evaluation.evaluate import texts_of, video_numbers
from distill.evaluation.metrics import paired_bootstrap, recall_interval
from distill.release.release import load
from distill.reporting.charts import Line, lines, thinned
from distill.reporting.comparison import write_comparison
from distill.reporting.examples import worst
from distill.reporting.figures import differences, largest_changes, of_kinds, same_test
from distill.reporting.finished import FinishedRun
from distill.reporting.kinds import kinds
from distill.reporting.page import LARGEST, said
from distill.reporting.report import write_report
from distill.reporting.study import write_study
from tools import report as tool

pytest_plugins = ("browsing",)
HOSTILE = (
    '<script>document.title="broken in"</script><img src=x onerror=alert(1)>',
    "'\"></td></table><style>*{display:none}</style>",
    "\u202eright to left\u2066 and never ended",
    "x" * 10_000,
    "a\0b\x1b[2J\ud800",
)


class Seen(HTMLParser):
    """The content of a page: its tags, its text, and all that it would fetch."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text, self.fetched = "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        self.fetched += [found[name] for name in ("src", "href", "srcset", "poster", "data") if found.get(name)]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def run(teacher_run, tmp_path) -> Path:
    """A copy of a finished run."""
    return copied(teacher_run, tmp_path / "copy")


def copied(run: Path, to: Path) -> Path:
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("checkpoints", "best.safetensors"))
    return to


def other_of(run: Path, to: Path, seed: int = 0) -> Path:
    """A run with the same queries and other ranks."""
    copied(run, to)
    ranks, rng = load_file(to / "test_ranks.safetensors"), torch.Generator().manual_seed(seed)
    for side in ("t2v", "v2t"):
        ranks[side] = ranks[side][torch.randperm(len(ranks[side]), generator=rng)].contiguous()
    save_file(ranks, to / "test_ranks.safetensors")
    return to


def test_a_run_leaves_a_report_with_the_figures_of_its_test(teacher_run):
    page = (teacher_run / "report.html").read_text()
    tested = json.loads((teacher_run / "test.json").read_text())
    ranks = load_file(teacher_run / "test_ranks.safetensors")
    for side, groups in (("t2v", ranks["video_of_text"]), ("v2t", torch.arange(len(ranks["v2t"])))):
        low, high = recall_interval(ranks[side], groups, 1, 0)
        assert f"{tested[side]['R@1']:.1f} <small>[{low:.1f}, {high:.1f}]</small>" in page
        assert f"mean rank {tested[side]['MnR']:.1f}" in page
    seen = Seen(page)
    ids = {found["id"] for _, found in seen.tags if "id" in found}
    assert {"test", "training", "kinds", "worst", "cost", "provenance"} <= ids
    rows = [row for row in metrics(teacher_run) if "val" in row]
    assert f"{len(rows)} validations" in seen.text
    assert FinishedRun.read(teacher_run).release.id in seen.text


def test_a_page_fetches_nothing_and_has_words_for_its_pictures(teacher_run):
    seen = Seen((teacher_run / "report.html").read_text())
    assert all(address.startswith(("data:", "#")) for address in seen.fetched)
    pictures = [found for tag, found in seen.tags if tag == "img"]
    assert pictures and all(found["alt"] for found in pictures)
    assert all(found.get("aria-label") for tag, found in seen.tags if tag == "svg")
    assert not [tag for tag, _ in seen.tags if tag in ("script", "iframe", "object")]
    assert [tag for tag, _ in seen.tags].count("h1") == 1


def test_what_ranked_first_is_what_the_model_scores_highest(teacher_run, world):
    answers = load_file(teacher_run / "test_answers.safetensors")
    release, frames = load(teacher_run / "release"), FrameSet(world.frames["test"])
    text = release.encode_text(texts_of(frames))
    from distill.data.padding import pad

    padded = [pad(frames.pixels(number), frames.num_frames) for number in range(len(frames))]
    pixels, real = (torch.from_numpy(np.stack(part)) for part in zip(*padded, strict=True))
    video = release.encode_frames(pixels, real)
    with torch.no_grad():
        scores = release.model.similarity(text, video).double()
        own = video[video_numbers(frames)]
        shares = release.model.relevance(text, own).double()
    for query, row in enumerate(scores):
        first = [int(number) for number in answers["first"][query]]
        assert row[first].tolist() == pytest.approx(sorted(row.tolist(), reverse=True)[:10], abs=1e-4)
    expected = scores.gather(1, video_numbers(frames).unsqueeze(1)).squeeze(1)
    assert torch.allclose(answers["own_scores"].double(), expected, atol=1e-4)
    shares = shares.masked_fill(~real[video_numbers(frames)], -torch.inf).softmax(1)
    assert torch.allclose(answers["relevance"].double(), shares, atol=1e-3)


def test_a_report_is_written_again_alike_and_lacks_frames_that_are_gone(run, teacher_run):
    first = (teacher_run / "report.html").read_bytes()
    (run / "report.html").unlink()
    tool.main([str(run)])
    assert (run / "report.html").read_bytes() == first
    about = json.loads((run / "release/provenance.json").read_text())
    about["recipe"]["data"]["test"] = str(run / "nowhere")
    (run / "release/provenance.json").write_text(json.dumps(about))
    write_report(run)
    page = (run / "report.html").read_text()
    assert "data:image/jpeg" not in page and "What this page lacks" in page and "no such folder" in page


def test_a_run_without_a_test_set_has_curves_and_validation_alone(run):
    for name in ("test.json", "test_ranks.safetensors", "test_answers.safetensors"):
        (run / name).unlink()
    write_report(run)
    seen = Seen((run / "report.html").read_text())
    ids = {found["id"] for _, found in seen.tags if "id" in found}
    assert {"training", "cost", "provenance"} <= ids and not {"test", "kinds", "worst"} & ids
    assert "names no test set" in seen.text


def test_words_of_others_are_shown_and_nothing_else(run, world):
    frames = FrameSet(world.frames["test"])
    changes = {}
    for number, video in enumerate(frames.videos):
        captions = tuple(
            replace(caption, text=HOSTILE[(number + place) % len(HOSTILE)])
            for place, caption in enumerate(video.captions)
        )
        changes[number] = replace(video, id=HOSTILE[number % len(HOSTILE)], captions=captions)
    change_videos(frames, changes)
    about = json.loads((run / "release/provenance.json").read_text())
    about |= {"name": HOSTILE[0], "parents": {**about["parents"], HOSTILE[1]: HOSTILE[2]}}
    (run / "release/provenance.json").write_text(json.dumps(about))
    (run / "recipe.yaml").write_text("name: </pre><script>alert(1)</script>\n")
    write_report(run, opened={"test": frames})
    page = (run / "report.html").read_bytes()
    assert len(page) < LARGEST and b"\0" not in page and b"\x1b" not in page
    seen = Seen(page.decode())
    tags = {tag for tag, _ in seen.tags}
    assert "script" not in tags and sum(tag == "style" for tag, _ in seen.tags) == 1
    assert not any(name.startswith("on") for _, found in seen.tags for name in found)
    assert "\u202e" not in page.decode() and "x" * 300 not in page.decode()
    assert "alert(1)" in seen.text and "(10,000 characters)" in seen.text


def listen(page, complaints: list[str]) -> None:
    """Note everything that a page complains of or asks of others."""
    page.on("console", lambda said: complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda sent: sent.url.startswith(("file:", "data:")) or complaints.append(sent.url))


@needs_chromium
@pytest.mark.parametrize("width", quick([390, 1280], [390]))
def test_a_browser_shows_it_without_network(chromium, teacher_run, tmp_path, width):
    other = other_of(teacher_run, tmp_path / "other")
    shown = copied(teacher_run, tmp_path / "shown")
    write_report(shown, other)
    write_comparison([teacher_run, other], tmp_path / "comparison.html")
    write_study(tmp_path / "study.html", SUMMARY)
    for path in (shown / "report.html", tmp_path / "comparison.html", tmp_path / "study.html"):
        for scheme in ("light", "dark"):
            complaints: list[str] = []
            size = {"width": width, "height": 800}
            context = chromium.new_context(viewport=size, color_scheme=scheme, offline=True)
            page = context.new_page()
            listen(page, complaints)
            page.goto(path.as_uri())
            assert complaints == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing stands out to the right"
            assert path.stat().st_size < LARGEST
            ink, paper = page.evaluate(
                "(style => [style.color, style.backgroundColor])(getComputedStyle(document.body))"
            )
            assert contrast(luminance(ink), luminance(paper)) > 7
            assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
            context.close()


def test_differences_are_those_of_the_paired_bootstrap(run, teacher_run, tmp_path):
    one, two = FinishedRun.read(run), FinishedRun.read(other_of(teacher_run, tmp_path / "other"))
    assert same_test(one, two)
    for found, side in zip(differences(one, two), ("t2v", "v2t"), strict=True):
        for gain, _ in found.rows:
            expected = paired_bootstrap(one.ranks[side], two.ranks[side], one.texts(side), 0, gain.title)
            assert (gain.value, gain.low, gain.high) == expected
    gains, losses = largest_changes(one, two, 4)
    gain = 1 / (one.ranks["t2v"].double() + 1) - 1 / (two.ranks["t2v"].double() + 1)
    assert gain[gains].tolist() == sorted(gain.tolist(), reverse=True)[: len(gains)]
    assert gain[losses].tolist() == sorted(gain.tolist())[: len(losses)]
    assert not set(gains) & set(losses)
    write_report(run, two.folder)
    assert "Largest gains" in (run / "report.html").read_text()


def test_the_worst_queries_are_of_different_videos_and_none_is_right(run):
    found = FinishedRun.read(run)
    numbers = worst(found)
    ranks, videos = found.ranks["t2v"], found.ranks["video_of_text"]
    assert len({int(videos[number]) for number in numbers}) == len(numbers)
    assert int(ranks[numbers[0]]) == int(ranks.max()) and all(ranks[number] > 0 for number in numbers)
    assert [int(ranks[number]) for number in numbers] == sorted(
        (int(ranks[number]) for number in numbers), reverse=True
    )


def test_runs_that_answered_other_queries_are_not_compared(run, teacher_run, tmp_path):
    other = copied(teacher_run, tmp_path / "other")
    answers = load_file(other / "test_answers.safetensors")
    save_file(answers, other / "test_answers.safetensors", {"frames": "0" * 64})
    with pytest.raises(ExpectedError, match=r"same data\.test"):
        write_report(run, other)
    with pytest.raises(ExpectedError, match="do not belong in one table"):
        write_comparison([run, other], tmp_path / "page.html")
    (other / "test_ranks.safetensors").unlink()
    with pytest.raises(ExpectedError, match=r"has no test_ranks\.safetensors"):
        write_comparison([run, other], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_several_runs_stand_in_one_table(run, teacher_run, tmp_path, capsys):
    other = other_of(teacher_run, tmp_path / "other")
    about = json.loads((run / "release/provenance.json").read_text())
    about |= {"bytes_per_video": [2048, 6412], "query": {"encode_ms": 1.0, "score_ms": 0.05, "videos": 45}}
    (run / "release/provenance.json").write_text(json.dumps(about))
    tool.main([str(run), str(other), "--out", str(tmp_path / "page.html")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    seen = Seen((tmp_path / "page.html").read_text())
    assert "2 runs, one test" in seen.text and "2,048 + 6,412" in seen.text and "0.05" in seen.text
    plots = [found["aria-label"] for tag, found in seen.tags if tag == "svg" and "R@1 over" in found["aria-label"]]
    assert len(plots) == 2 and "xclip 8460" in plots[0] and "xclip 0.05" in plots[1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.jsonl", b'{"step": 1}\nnot json\n', "line 2"),
        ("metrics.jsonl", b'{"step": 0}\n', "line 1"),
        ("metrics.jsonl", b'{"step": 1, "val": {"t2v": {"R@1": "<b>"}}}\n', "line 1"),
        ("test_ranks.safetensors", b"\xff" * 64, "not readable as safetensors"),
        ("release/provenance.json", b'{"query": {"encode_ms": -1, "score_ms": 1, "videos": 1}}', "encode_ms"),
        ("test.json", b"[]", "damaged"),
        ("release/provenance.json", b'{"seconds": "long"}', "seconds"),
        ("release/manifest.json", b"{}", "damaged"),
    ],
)
def test_damaged_files_are_named(run, name, content, said):
    (run / name).write_bytes(content)
    with pytest.raises(ArtefactError, match=said):
        write_report(run)


def test_ranks_and_answers_that_contradict_one_another_are_refused(run):
    ranks, answers = (load_file(run / f"test_{name}.safetensors") for name in ("ranks", "answers"))
    save_file({**ranks, "video_of_text": ranks["video_of_text"] + 10**6}, run / "test_ranks.safetensors")
    with pytest.raises(ArtefactError, match="video_of_text does not hold numbers below"):
        write_report(run)
    save_file(ranks, run / "test_ranks.safetensors")
    save_file({**answers, "first": answers["first"][:-1].contiguous()}, run / "test_answers.safetensors")
    with pytest.raises(ArtefactError, match=r"first is \[.*\], expected finite numbers by text, rank"):
        write_report(run)
    save_file({**answers, "first": answers["first"] - 99}, run / "test_answers.safetensors")
    with pytest.raises(ArtefactError, match="first does not hold numbers below"):
        write_report(run)
    save_file({**answers, "relevance": answers["relevance"][:, 0].contiguous()}, run / "test_answers.safetensors")
    with pytest.raises(ArtefactError, match="relevance is"):
        write_report(run)
    save_file({name: ranks[name] for name in ("t2v", "v2t")}, run / "test_ranks.safetensors")
    with pytest.raises(ArtefactError, match="video_of_text is missing"):
        write_report(run)
    (run / "release/manifest.json").unlink()
    shutil.rmtree(run / "release")
    with pytest.raises(ArtefactError, match="let it train to its end"):
        write_report(run)


def test_the_command_says_what_it_cannot_do(run, capsys):
    for arguments in ([run, run], [run, "--out", "x.html"], [run, run, "--out", "x.html", "--against", run]):
        with pytest.raises(SystemExit):
            tool.main([str(argument) for argument in arguments])
        assert "error: --" in capsys.readouterr().err
    one_line_error(python("tools/report.py", run.parent, check=False), "no folder release")


@pytest.mark.slow
def test_a_report_that_cannot_be_written_does_not_fail_a_run(world, tmp_path):
    recipe = world.recipe("unlucky", "clip4clip", tmp_path)
    (tmp_path / "unlucky" / "report.html").mkdir(parents=True)
    result = python("distill/run.py", recipe)
    assert result.returncode == 0 and (tmp_path / "unlucky/release/manifest.json").is_file()
    complaints = [line for line in result.stderr.splitlines() if "its report was not written" in line]
    assert len(complaints) == 1 and "report.html" in complaints[0] and "Traceback" not in result.stderr


def test_kinds_of_captions_are_counted_by_hand():
    captions = ["A dog barks", "the dog barks!", "a cat sleeps, then it eats a large fish and drinks some fresh milk"]
    captions += ["zebra", "one two three four five six"]
    videos = [0, 1, 2, 2, 3]
    known = {word for caption in captions[:3] for word in words(caption)}
    found = kinds(captions, videos, known, np.array([0.0, 0.32, 0.34, 0.67, 1.0]))
    members = {(kind.group, kind.name): kind.members.tolist() for kind in found}
    assert members["length", "1 to 5 words"] == [True, True, False, True, False]
    assert members["length", "6 to 10 words"] == [False, False, False, False, True]
    assert members["length", "11 to 20 words"] == [False, False, True, False, False]
    assert members["events", "one event"] == [True, True, False, True, True]
    assert members["ambiguity", "same words for several videos"] == [True, True, False, False, False]
    assert members["words", "with a word never seen"] == [False, False, False, True, True]
    assert members["moment", "first third of the video"] == [True, True, False, False, False]
    assert members["moment", "last third of the video"] == [False, False, False, True, True]
    assert not [kind for kind in kinds(["one"], [0], None, None)], "one kind alone divides nothing"
    assert words("It's 2 DOGS") == ["it", "s", "2", "dogs"] and plain("The Dog; a dog") == "dog dog"


def test_kinds_of_a_run_have_all_captions_and_their_recall(teacher_run, world):
    run, frames = FinishedRun.read(teacher_run), FrameSet(world.frames["test"])
    for rows in of_kinds(run, frames, FrameSet(world.frames["train"])).values():
        assert sum(row.count for row in rows) == len(run.ranks["t2v"])
        right = sum(row.count * row.recall.value for row in rows) / 100
        assert right == pytest.approx(int((run.ranks["t2v"] == 0).sum()))


def test_long_curves_are_thinned_and_keep_their_mean_and_end():
    points = [(float(step), float(step % 7)) for step in range(1, 100_001)]
    few = thinned(points)
    assert len(few) == 300 and few[-1] == points[-1]
    assert np.mean([y for _, y in few]) == pytest.approx(3, abs=0.05)
    drawn = str(lines("a title <b>", [Line("loss", points)], "step"))
    assert len(drawn) < 10_000 and "a title &lt;b&gt;" in drawn
    for odd in ([(1.0, 0.0)], [(1.0, 5.0)], [(1.0, -3.0), (2.0, -3.0)], []):
        assert "nan" not in str(lines("one", [Line("loss", odd)], "step"))
        assert "nan" not in str(lines("one", [Line("loss", odd)], "step", logarithmic=True))


def test_words_are_cut_and_steering_characters_spelled_out():
    assert said("short", 80) == "short"
    assert said("y" * 100, 10) == "y" * 10 + "… (100 characters)"
    assert said("a\0\u202eb", 80) == "a\\u0000\\u202eb"


def row(title: str, value: float) -> dict:
    side = {"R@1": value, "R@5": value + 20, "R@10": value + 30, "MdR": 2.0, "MnR": 7.0}
    return {"title": title, "t2v": side, "v2t": side, "mass": 86.0, "ms": 0.05, "train_seconds": 300.0}


SUMMARY = {
    "seeds": [{"a": row("TeachCLIP", 40 + seed), "b": row("<b>plain</b>", 30.0)} for seed in range(3)],
    "gains": {"a - b": {side: {"R@1": [11.0, 9.5, 12.5], "MnR": [-1.0, -2.0, 0.5]} for side in ("t2v", "v2t")}},
}


def test_a_study_shows_means_spreads_and_differences_by_title(tmp_path):
    write_study(tmp_path / "study.html", SUMMARY, "a <study>")
    page = (tmp_path / "study.html").read_text()
    seen = Seen(page)
    assert "41.0 <small>±1.0</small>" in page and "30.0 <small>±0.0</small>" in page
    assert "TeachCLIP − <b>plain</b>" in seen.text, "titles in place of keys"  # noqa: RUF001
    assert "+11.0 <small>[+9.5, +12.5]</small>" in page and "-1.0 <small>[-2.0, +0.5]</small>" in page
    pictures = [found for tag, found in seen.tags if tag == "svg"]
    assert [found["class"] for found in pictures].count("interval sure") == 2, "those of R@1 exclude 0"
    one = {"seeds": [{"a": row("alone", 50.0)}], "gains": {}}
    write_study(tmp_path / "study.html", one)
    assert "±" not in (tmp_path / "study.html").read_text()
    assert not re.search("Differences", (tmp_path / "study.html").read_text())
    with pytest.raises(ArtefactError, match="damaged at seeds"):
        write_study(tmp_path / "other.html", {"seeds": "three"})
