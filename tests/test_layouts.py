"""The layouts of the data sets, each in a small file of its real form, and what is said of broken ones."""

import json
import logging
import pickle
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.data.frames import FrameSet
from distill.data.sampler import Clip4ClipSampler
from distill.data.video import write_video
from distill.data.videos import Caption
from distill.errors import ArtefactError
from distill.packing.clips import Clip, read_annotations
from distill.packing.layouts import LAYOUTS
from distill.packing.packing import PackConfig, pack
from tools import pack_frames


def place(folder: Path, **files: Any) -> Path:
    """Writes files (`__` in a name stands for a dot): text as it is, anything else as JSON; makes the video folder."""
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    (folder / "videos").mkdir(exist_ok=True)
    return folder


def add_videos(folder: Path, *names: str) -> None:
    for name in names:
        (folder / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "videos" / name).write_bytes(b"x")


def read(folder: Path, name: str, layout: str) -> list[Clip]:
    return read_annotations(folder / name, layout, folder / "videos")


def texts(clips: list[Clip]) -> dict[str, list[str]]:
    return {clip.video: [caption.text for caption in clip.captions] for clip in clips}


def refused(folder: Path, name: str, layout: str, message: str, about: str = "") -> None:
    with pytest.raises(ArtefactError, match=message) as error:
        read(folder, name, layout)
    assert str(error.value).startswith(str(folder / (about or name))) and "\n" not in str(error.value)


# MSVD and VATEX: a list of ids, captions beside it

LISTED = pytest.mark.parametrize(
    ("layout", "captions"), [("msvd", "captions_msvd.json"), ("vatex", "ref_captions.json")]
)


@LISTED
def test_a_list_decides_the_videos_and_the_json_their_captions(tmp_path, layout, captions):
    said = {"z_3_9": ["one", " two "], "unlisted": ["three"], "-a_1_2": ["four", "five", "six"]}
    place(tmp_path, train_list__txt="-a_1_2\r\n\r\nz_3_9  \r\n", **{captions.replace(".", "__"): said})
    add_videos(tmp_path, "z_3_9.avi")
    clips = read(tmp_path, "train_list.txt", layout)
    assert texts(clips) == {"-a_1_2": ["four", "five", "six"], "z_3_9": ["one", "two"]}
    assert [clip.video for clip in clips] == ["-a_1_2", "z_3_9"]
    assert clips[1] == Clip("z_3_9", (Caption("z_3_9#0", "one"), Caption("z_3_9#1", "two")), "z_3_9.avi")
    assert clips[0].source == "-a_1_2.mp4"  # missing: packing says so


@LISTED
def test_a_repeated_id_is_dropped_and_a_repeated_caption_is_kept(tmp_path, caplog, layout, captions):
    said = {"a.1": ["x", "y", "x", "x"], "b.2": ["x"]}
    place(tmp_path, test_list__txt="a.1\nb.2\na.1\n", **{captions.replace(".", "__"): said})
    with caplog.at_level(logging.INFO):
        clips = read(tmp_path, "test_list.txt", layout)
    assert texts(clips) == said
    assert [caption.id for caption in clips[0].captions] == ["a.1#0", "a.1#1", "a.1#2", "a.1#3"]
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "dropped 1 repeated video ids",
        "2 captions repeat one of the same video; each is kept",
    ]


def test_msvd_captions_may_be_lists_of_words_and_have_two_names(tmp_path):
    place(tmp_path, val_list__txt="a\n", raw_captions__json="")
    (tmp_path / "raw_captions.json").unlink()
    (tmp_path / "raw-captions.json").write_text(json.dumps({"a": [["a", "fox", "digs"], ["it", "rains"]]}))
    assert texts(read(tmp_path, "val_list.txt", "msvd")) == {"a": ["a fox digs", "it rains"]}
    place(tmp_path, captions_msvd__json={"a": ["first choice"]})
    assert texts(read(tmp_path, "val_list.txt", "msvd")) == {"a": ["first choice"]}


@LISTED
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ('{"a": ["x"], "a": ["y"]}', "not valid JSON: key 'a' appears twice in one object"),
        (["x"], r"expected \{id: \[caption, ...\]\}, found list"),
        ({"a": "x"}, "'a': expected a list of captions, found 'x'"),
        ({"a": ["x", 7]}, r"'a'\[1\]: expected a caption or the list of its words, found 7"),
        ({"a": [["x", 7]]}, r"'a'\[0\]: expected a caption or the list of its words, found \['x', 7\]"),
        ({"a": ["x", "\t"]}, r"'a'\[1\]: empty caption for 'a'"),
        ({"a": [[]]}, r"'a'\[0\]: empty caption for 'a'"),
        ({"a": ["\ud800"]}, r"'a'\[0\]: 'a': not a character"),
    ],
)
def test_a_broken_caption_file_is_one_line_that_says_where(tmp_path, layout, captions, content, message):
    place(tmp_path, train_list__txt="a\n", **{captions.replace(".", "__"): content})
    refused(tmp_path, "train_list.txt", layout, message, about=captions)


@LISTED
def test_a_broken_list_is_one_line_that_says_what_is_missing(tmp_path, layout, captions):
    place(
        tmp_path,
        train_list__txt="a\nb\nc\nd\n",
        empty__txt="\n \n",
        **{captions.replace(".", "__"): {"a": ["x"], "c": []}},
    )
    bare = rf"lists 'b' and 2 more without a caption in {captions}"
    refused(tmp_path, "train_list.txt", layout, bare)
    refused(tmp_path, "empty.txt", layout, "no videos; expected at least one id")
    refused(tmp_path, captions, layout, "expected the split's list of ids, such as train_list.txt")
    refused(tmp_path, "absent.txt", layout, "no such file")
    (tmp_path / captions).unlink()
    refused(tmp_path, "train_list.txt", layout, rf"no captions: expected .*{captions}.* beside it")


def test_an_id_that_leads_out_of_the_folder_is_refused(tmp_path):
    for video in ("../a", "b/../../c", "/b", "b/", "d\\e", ".", "f\0"):
        place(tmp_path, train_list__txt=f"{video}\n", captions_msvd__json={video: ["x"]})
        message = r"\[0\]: video: expected a file name in the video folder, found"
        refused(tmp_path, "train_list.txt", "msvd", message, about="captions_msvd.json")


def test_a_pickle_is_refused_with_a_command_that_makes_json_of_it(tmp_path):
    place(tmp_path, test_list__txt="a\n")
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps({"a": [["a", "fox"]]}))
    messages = []
    for name, layout in (("test_list.txt", "msvd"), ("raw-captions.pkl", "csv")):
        refused(tmp_path, name, layout, "pickles can run code and are not read", about="raw-captions.pkl")
        with pytest.raises(ArtefactError) as error:
            read(tmp_path, name, layout)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    command = shlex.split(messages[0].partition("in its folder: ")[2])
    assert command[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True)
    assert texts(read(tmp_path, "test_list.txt", "msvd")) == {"a": ["a fox"]}


# LSMDC

MOVIE = "1034_Great_Film_00.47.36.947-00.47.39.171"


def lsmdc(*rows: tuple[str, str]) -> str:
    return "".join(f"{clip}\t00.47.36.947\t00.47.39.171\t00.47.36.900\t00.47.39.200\t{text}\n" for clip, text in rows)


def test_lsmdc_quotes_are_literal_and_dots_belong_to_the_id(tmp_path):
    rows = lsmdc(
        (MOVIE, '"Run," SOMEONE says.'), ("2_b_00.1", "5' 10\" tall"), (MOVIE, 'A "quote'), (MOVIE, 'A "quote')
    )
    place(tmp_path, test__csv=rows + "\n")
    add_videos(tmp_path, f"{MOVIE}.avi")
    assert read(tmp_path, "test.csv", "lsmdc") == [
        Clip(
            MOVIE,
            (
                Caption(f"{MOVIE}#0", '"Run," SOMEONE says.'),
                Caption(f"{MOVIE}#1", 'A "quote'),
                Caption(f"{MOVIE}#2", 'A "quote'),
            ),
            f"{MOVIE}.avi",
        ),
        Clip("2_b_00.1", (Caption("2_b_00.1#0", "5' 10\" tall"),), "2_b_00.1.mp4"),
    ]


def test_lsmdc_clips_may_lie_in_the_folders_of_their_movies(tmp_path):
    place(tmp_path, test__csv=lsmdc((MOVIE, "x"), ("2_b_00.1", "y"), ("2_b_00.2", "z"), ("3_c_00.1", "w")))
    add_videos(tmp_path, f"1034_Great_Film/{MOVIE}.avi", "2_b/2_b_00.1.mp4", "2_b/2_b_00.2.avi", "2_b_00.2.mp4", "3_c")
    assert [clip.source for clip in read(tmp_path, "test.csv", "lsmdc")] == [
        f"1034_Great_Film/{MOVIE}.avi",
        "2_b/2_b_00.1.mp4",
        "2_b_00.2.mp4",  # the video folder itself comes first
        "3_c_00.1.mp4",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no captions; expected at least one"),
        (lsmdc(("a", "x")) + "a\tb\tx\n", r"line 2: expected 6 columns separated by tabs \(clip_id, .*\), found 3"),
        (lsmdc(("a", "x\ty")), "line 1: expected 6 columns .*, found 7"),
        ("a,b,c,d,e,x\n", "line 1: expected 6 columns .*, found 1"),
        (lsmdc(("a", "x"), (" ", "y")), "line 2: clip_id: empty; expected the name of a video"),
        (lsmdc(("a", " ")), "line 1: empty caption for 'a'"),
        (lsmdc(("../a", "x")), "line 1: video: expected a file name in the video folder, found '../a'"),
    ],
)
def test_a_broken_lsmdc_file_is_one_line_that_says_where(tmp_path, text, message):
    refused(place(tmp_path, test__csv=text), "test.csv", "lsmdc", message)


def test_a_movie_folder_cannot_lead_out_of_the_video_folder(tmp_path):
    place(tmp_path, test__csv=lsmdc((".._a", "x")))
    (tmp_path / ".._a.avi").write_bytes(b"x")
    assert [clip.source for clip in read(tmp_path, "test.csv", "lsmdc")] == [".._a.mp4"]


# ActivityNet


def spoken(*sentences: str, duration: float = 9.5) -> dict[str, Any]:
    return {"duration": duration, "timestamps": [[0, 1]] * len(sentences), "sentences": list(sentences)}


def test_activitynet_makes_one_paragraph_of_a_whole_video(tmp_path):
    said = {"v_b": spoken("A man sits.", "  He  stands. ", "", "He sits."), "v__a": spoken("x", "x", duration=30)}
    place(tmp_path, val_1__json=said)
    add_videos(tmp_path, "_a.mkv")
    assert read(tmp_path, "val_1.json", "activitynet") == [
        Clip("v_b", (Caption("v_b#0", "A man sits. He  stands. He sits."),), "v_b.mp4", (0.0, 10.0)),
        Clip("v__a", (Caption("v__a#0", "x x"),), "_a.mkv", (0.0, 30.0)),
    ]
    add_videos(tmp_path, "v__a.mp4")
    assert read(tmp_path, "val_1.json", "activitynet")[1].source == "v__a.mp4"


def test_activitynet_takes_the_split_from_the_annotations_not_from_a_list_beside_them(tmp_path):
    place(tmp_path, val_1__json={video: spoken(video) for video in ("v_a", "v_b")}, val_ids__json=["v_b", "v_x"])
    assert [clip.video for clip in read(tmp_path, "val_1.json", "activitynet")] == ["v_a", "v_b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nothing", "not valid JSON"),
        ([], "expected .*, found list"),
        ({}, "no captions; expected at least one"),
        ({"v_a": ["x"]}, "'v_a': duration: expected seconds above 0, found None"),
        ({"v_a": {"duration": "9", "sentences": ["x"]}}, "'v_a': duration: expected seconds above 0, found '9'"),
        ({"v_a": {"duration": True, "sentences": ["x"]}}, "'v_a': duration: expected seconds above 0, found True"),
        ({"v_a": spoken("x", duration=0)}, "'v_a': duration: expected seconds above 0, found 0"),
        ({"v_a": spoken("x", duration=float("nan"))}, "'v_a': duration: expected seconds above 0, found nan"),
        ({"v_a": {"duration": 9}}, "'v_a': sentences: expected a list of strings, found None"),
        ({"v_a": {"duration": 9, "sentences": "x"}}, "'v_a': sentences: expected a list of strings, found 'x'"),
        ({"v_a": {"duration": 9, "sentences": ["x", 1]}}, r"'v_a': sentences: expected a list of strings, found \['x'"),
        ({"v_a": spoken(" ", "")}, "'v_a': empty caption for 'v_a'"),
    ],
)
def test_a_broken_activitynet_file_is_one_line_that_says_where(tmp_path, content, message):
    refused(place(tmp_path, val_1__json=content), "val_1.json", "activitynet", message)


# DiDeMo


def moments(*rows: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"num_segments": 6, "description": text, "times": [[0, 0]], "video": name} for name, text in rows]


@pytest.mark.parametrize("name", ["test_data.json", "didemo_test_data.json", "mine.json"])
def test_didemo_makes_one_paragraph_of_a_video_whatever_its_names(tmp_path, name):
    rows = [
        ("1@N04_2.m4v", "a dog runs. "),
        ("b.x.avi", "first"),
        ("1@N04_2.mp4", "it barks"),
        ("1@N04_2.", "it barks"),
    ]
    place(tmp_path, **{name.replace(".", "__"): moments(*rows, ("c.M2TS", "z"), ("d.", "w"))})
    assert read(tmp_path, name, "didemo") == [
        Clip(
            "1@N04_2",
            (Caption("1@N04_2#0", "a dog runs. it barks it barks"),),
            "1@N04_2.m4v",
            (0.0, 31.0),
            published=True,
        ),
        Clip("b.x", (Caption("b.x#0", "first"),), "b.x.avi", (0.0, 31.0), published=True),
        Clip("c", (Caption("c#0", "z"),), "c.M2TS", (0.0, 31.0), published=True),
        Clip("d", (Caption("d#0", "w"),), "d.mp4", (0.0, 31.0), published=True),
    ]


@pytest.mark.parametrize(
    ("files", "source"),
    [
        (["a.mov"], "a.mov"),
        (["a.mp4"], "a.mp4"),
        (["a.mov.mp4"], "a.mov.mp4"),
        (["a.avi"], "a.avi"),
        (["a.avi", "a.mp4", "a.mov"], "a.mov"),
        (["a."], "a."),
        (["a..mp4"], "a..mp4"),
        (["ab.mp4"], "a.mov"),
    ],
)
def test_didemo_finds_the_file_under_any_of_its_names(tmp_path, files, source):
    place(tmp_path, val_data__json=moments(("a.mov", "x"), ("a.", "y"), ("a.mp4", "z")))
    add_videos(tmp_path, *files)
    assert [clip.source for clip in read(tmp_path, "val_data.json", "didemo")] == [source]


@pytest.mark.parametrize("name", ["test_data.json", "didemo_test_data.json"])
def test_a_didemo_list_chooses_and_orders_the_videos(tmp_path, caplog, name):
    rows = moments(("a.mov", "x"), ("b.avi", "y"), ("c.mov", "z"))
    place(tmp_path, **{name.replace(".", "__"): rows}, test_list__txt="c\na.mp4\nc.mov\n", val_list__txt="b\n")
    with caplog.at_level(logging.INFO):
        assert [clip.video for clip in read(tmp_path, name, "didemo")] == ["c", "a"]
    assert "dropped 1 repeated video ids" in caplog.text
    place(tmp_path, test_list__txt="c\nd\n")
    refused(tmp_path, name, "didemo", rf"lists 'd' without a caption in {name}", about="test_list.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not valid JSON"),
        ({}, "expected a list of entries, found dict"),
        ([], "no captions; expected at least one"),
        (["a.mov"], r"\[0\]: expected video and description, found 'a.mov'"),
        ([{"video": "a.mov"}], r"\[0\]: expected video and description, found"),
        ([{"video": 1, "description": "x"}], r"\[0\]: expected video and description, found"),
        ([{"video": "a.mov", "description": ["x"]}], r"\[0\]: expected video and description, found"),
        (moments(("a.mov", "x"), ("b.mov", " ")), r"\[1\]: empty caption for 'b'"),
        (moments(("../b.mov", "x")), r"\[0\]: video: expected a file name in the video folder, found '../b.mov'"),
        (moments((".", "x")), r"\[0\]: video: expected a file name in the video folder, found '.'"),
    ],
)
def test_a_broken_didemo_file_is_one_line_that_says_where(tmp_path, content, message):
    refused(place(tmp_path, val_data__json=content), "val_data.json", "didemo", message)


# all of them

SENTENCES = st.lists(st.text("abc\"' ,.é犬\u2028", min_size=1, max_size=9).filter(str.strip), min_size=1, max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(SENTENCES, min_size=1, max_size=5))
def test_every_caption_arrives_in_order_with_an_id_of_its_own(tmp_path, said):
    videos = {f"v_{number}.5": sentences for number, sentences in enumerate(said)}
    rows = [(video, text) for video, sentences in videos.items() for text in sentences]
    place(
        tmp_path,
        train_list__txt="\n".join(videos),
        captions_msvd__json=videos,
        ref_captions__json=videos,
        lsmdc__csv=lsmdc(*rows),
        train__json={video: spoken(*sentences) for video, sentences in videos.items()},
        train_data__json=moments(*((f"{video}.avi", text) for video, text in rows)),
    )
    single = {video: [text.strip() for text in sentences] for video, sentences in videos.items()}
    for name, layout in (("train_list.txt", "msvd"), ("train_list.txt", "vatex"), ("lsmdc.csv", "lsmdc")):
        clips = read(tmp_path, name, layout)
        assert texts(clips) == single
        assert len({caption.id for clip in clips for caption in clip.captions}) == len(rows)
    (tmp_path / "train_list.txt").unlink()  # it also means DiDeMo's
    for name, layout in (("train.json", "activitynet"), ("train_data.json", "didemo")):
        assert texts(read(tmp_path, name, layout)) == {video: [" ".join(said)] for video, said in single.items()}


@pytest.mark.parametrize("layout", sorted(LAYOUTS.keys() - {"webdataset"}))
def test_every_layout_names_a_missing_or_undecodable_file(tmp_path, layout):
    place(tmp_path)
    (tmp_path / "latin").write_bytes("café".encode("latin-1"))
    refused(tmp_path, "absent", layout, "no such file")
    refused(tmp_path, "latin", layout, "not UTF-8 at byte 3; save the file as UTF-8")


def test_packing_takes_clips_from_movie_folders_and_reports_missing_ones(tmp_path):
    place(tmp_path, test__csv=lsmdc(("7_x_00.5", "red"), ("7_x_00.9", "gone")))
    write_video(tmp_path / "videos/7_x/7_x_00.5.mp4", np.full((8, 32, 32, 3), 200, np.uint8), fps=8)
    config = PackConfig(sampler=Clip4ClipSampler(kind="clip4clip", num_frames=2), size=32)
    manifest = pack(tmp_path / "test.csv", "lsmdc", tmp_path / "videos", tmp_path / "out", config, workers=1)
    assert manifest.notes == [{"video": "7_x_00.9", "source": "7_x_00.9.mp4", "reason": "missing"}]
    assert [video.source for video in FrameSet(tmp_path / "out").videos] == ["7_x/7_x_00.5.mp4"]


def test_the_packing_help_teaches_every_layout(capsys):
    with pytest.raises(SystemExit):
        pack_frames.main(["--help"])
    said = capsys.readouterr().out
    for layout in LAYOUTS:
        assert f"\n    {layout} " in said
