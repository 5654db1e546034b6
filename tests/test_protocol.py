"""Protocols: a fingerprint is of what is asked and searched, nothing else, and says when the gallery is not whole."""

import random
import re

import numpy as np
import pytest

from distill.data.frames import FrameSet
from distill.data.sampler import Clip4ClipSampler
from distill.data.video import write_video
from distill.demo.corpus import plan
from distill.demo.emoji import EMOJI
from distill.evaluation.protocol import PROTOCOLS, Protocol
from distill.evaluation.standing import captions_of, fingerprint, gallery_state
from distill.packing.packing import PackConfig, pack

ROWS = [(f"clip{number}", f"{colour} moves") for number, colour in enumerate(("red", "green", "blue"))]
ROWS += [("clip0", "something red"), ("clip1", "something green"), ("clip1", "something green")]
ADVICE = "; to evaluate on videos of your own use --protocol own"


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """Packs rows of (video, caption); only the videos in `there`, by number or id, have a file."""
    folder = tmp_path_factory.mktemp("protocol")

    def make(name, rows, there=(0, 1, 2)):
        for number, stem in enumerate(there):
            path = folder / name / "videos" / f"{stem if isinstance(stem, str) else f'clip{stem}'}.mp4"
            write_video(path, np.full((8, 32, 32, 3), 60 * number, np.uint8), fps=4)
        (folder / name / "all.csv").write_text("video,caption\n" + "".join(f"{v},{c}\n" for v, c in rows))
        config = PackConfig(sampler=Clip4ClipSampler(kind="clip4clip", num_frames=2), size=32)
        pack(folder / name / "all.csv", "csv", folder / name / "videos", folder / name / "frames", config, workers=1)
        return FrameSet(folder / name / "frames")

    return make


@pytest.fixture(scope="module")
def whole(packs):
    return packs("whole", ROWS)


def official(**changes):
    fields = {"size": (3, 6), "fingerprint": None} | changes
    return Protocol(split="squares, test", gallery="a csv", queries="its rows", **fields)


def test_the_fingerprint_of_known_content_never_changes():
    content = [("v1", ["a dog", "ein Höhlenbär"]), ("v0", ["a dog"])]
    assert fingerprint(content) == "c42a498c7209be4315823496382344e5bac4882df00001a0adc4d8b137f8b8ff"


def test_order_and_caption_ids_do_not_matter(packs, whole):
    rows = ROWS.copy()
    random.Random(1).shuffle(rows)
    shuffled = packs("shuffled", rows)
    ids = [[caption.id for video in frames.videos for caption in video.captions] for frames in (whole, shuffled)]
    assert [video.id for video in shuffled.videos] != [video.id for video in whole.videos] and ids[0] != ids[1]
    assert fingerprint(captions_of(shuffled)) == fingerprint(captions_of(whole))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-1],
        lambda content: [*content, ("v9", ())],
        lambda content: [(video, texts[:1]) for video, texts in content],
        lambda content: [(video, [*texts, texts[0]]) for video, texts in content],
        lambda content: [(video, [text.upper() for text in texts]) for video, texts in content],
        lambda content: [(video, content[1 - row][1]) for row, (video, _) in enumerate(content)],
    ],
    ids=["a video less", "a video more", "a caption less", "a caption repeated", "other words", "captions swapped"],
)
def test_any_other_task_has_another_fingerprint(change):
    content = [("v0", ["a dog", "a cat"]), ("v1", ["a horse", "a hare"])]
    assert fingerprint(change(content)) != fingerprint(content)


def test_the_official_gallery_is_complete(whole, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "squares", official(fingerprint=fingerprint(captions_of(whole))))
    state = gallery_state("squares", whole)
    assert (state.videos, state.captions, state.complete, state.missing, state.unusable) == (3, 6, True, 0, ())
    assert state.words.startswith("complete")


def test_missing_videos_are_counted_and_named(packs, whole, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "squares", official(fingerprint=fingerprint(captions_of(whole))))
    lossy = packs("lossy", ROWS, there=(0, 2))
    state = gallery_state("squares", lossy)
    assert (state.videos, state.complete, state.missing, state.unusable) == (2, False, 1, ("clip1",))
    assert fingerprint(captions_of(lossy)) != fingerprint(captions_of(whole))
    assert state.words == "incomplete: 1 of 3 videos are missing; 1 video could not be packed (clip1)"
    annotated = packs("short", [row for row in ROWS if row[0] != "clip1"])
    short = gallery_state("squares", annotated)
    known = "incomplete: 1 of 3 videos are missing; the annotation file that was packed did not name them"
    assert short.words == f"{known}{ADVICE}"
    digests = {fingerprint(captions_of(frames)) for frames in (annotated, lossy)}
    assert len(digests) == 1, "why a video is missing makes no difference to what is searched"


@pytest.mark.parametrize(
    ("known", "rows", "words"),
    [
        ({}, ROWS[:-1], "differs from the official files: 3 videos as there, but 5 captions, where the protocol has 6"),
        (
            {},
            [*ROWS[:-1], ROWS[0]],
            "differs from the official files: 3 videos as there, but other ids or other captions",
        ),
        ({"size": (2, 6), "fingerprint": "0" * 64}, ROWS, "another gallery: 3 videos, where the protocol has 2"),
        (
            {"fingerprint": None},
            ROWS,
            "3 videos as in the protocol; whether they are the right ones is not known here",
        ),
    ],
    ids=["fewer captions", "other captions", "more videos", "not known"],
)
def test_another_gallery_is_called_that(known, rows, words, packs, whole, monkeypatch, request):
    given = {"fingerprint": fingerprint(captions_of(whole))} | known
    monkeypatch.setitem(PROTOCOLS, "squares", official(**given))
    if rows is not ROWS:
        whole = packs(request.node.callspec.id.replace(" ", "-"), rows)
    state = gallery_state("squares", whole)
    assert state.words == f"{words}{ADVICE}"
    assert state.complete is (None if known == {"fingerprint": None} else False)


DEMO_ROWS = [("video3", "an owl spins on a red background"), ("video4", "grapes and then a red apple")]


def test_the_demo_has_no_fixed_size(packs):
    state = gallery_state("demo", packs("demo", [*DEMO_ROWS, ("video5", "grapes rise")], there=("video3", "video5")))
    assert state.complete is False and state.words == "incomplete: 1 video could not be packed (video4)"
    state = gallery_state("demo", packs("demo-whole", DEMO_ROWS, there=("video3", "video4")))
    assert state.complete is True and state.words == "complete: every video of its file was packed"


def test_every_caption_that_the_demo_draws_is_known_as_its_own():
    known = PROTOCOLS["demo"]
    for clip in [*plan(60, 0), *plan(200, 3)]:
        assert re.search(known.video_form, clip.video)
        for sentence in clip.sentences:
            assert re.search(known.caption_form, sentence.text), sentence.text
    for one in EMOJI:
        assert re.search(known.caption_form, f"{one.phrase} and then {EMOJI[0].phrase}")
    for foreign in ("a man plays the guitar", "two dogs fight over a ball and then run", "she falling leaves"):
        assert not re.search(known.caption_form, foreign), foreign


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (ROWS, "its first other video id is 'clip0', expected videos in the test.csv that tools/make_demo.py writes"),
        (
            [*DEMO_ROWS, ("video4", "a man sings")],
            "its first other caption is 'a man sings' (video video4), expected all captions of each video in MSRVTT",
        ),
    ],
    ids=["ids", "captions"],
)
def test_videos_of_ones_own_are_never_the_demo(rows, words, packs, request):
    there = dict.fromkeys(video for video, _ in rows)
    state = gallery_state("demo", packs(f"foreign-{request.node.callspec.id}", rows, there=tuple(there)))
    assert state.complete is False
    assert state.words.startswith(f"another gallery: {words}")
    assert state.words.endswith("use --protocol own")


def test_a_set_of_ones_own_is_whole_if_all_its_videos_were_packed(packs, whole):
    state = gallery_state("own", whole)
    assert (state.videos, state.captions, state.complete, state.missing) == (3, 6, True, 0)
    assert state.words == "complete: every video of its file was packed"
    lossy = gallery_state("own", packs("own", ROWS, there=(0, 1)))
    assert lossy.complete is False and lossy.words == "incomplete: 1 video could not be packed (clip2)"


def test_the_table_is_consistent():
    for name, known in PROTOCOLS.items():
        assert re.fullmatch(r"[a-z0-9-]+", name)
        if known.fingerprint is not None:
            assert re.fullmatch(r"[0-9a-f]{64}", known.fingerprint) and known.size is not None
    hashes = [known.fingerprint for known in PROTOCOLS.values() if known.fingerprint]
    assert len(set(hashes)) == len(hashes) == 5
