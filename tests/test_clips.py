"""From annotation rows to clips: grouping, ids, repeats, files; the csv and MSR-VTT layouts and their errors."""

import json
import logging
from pathlib import Path

import pytest

from distill.data.videos import Caption
from distill.errors import ArtefactError
from distill.packing.clips import read_annotations


def folder(tmp_path: Path, *names: str) -> Path:
    videos = tmp_path / "videos"
    videos.mkdir(exist_ok=True)
    for name in names:
        (videos / name).write_bytes(b"x")
    return videos


def write(tmp_path: Path, text: str, name: str = "a.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def write_sentences(tmp_path: Path, *rows: tuple[str, str]) -> None:
    sentences = [{"video_id": video, "caption": text, "sen_id": number} for number, (video, text) in enumerate(rows)]
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps({"videos": [], "sentences": sentences}))


def texts(clips) -> dict[str, list[str]]:
    return {clip.video: [caption.text for caption in clip.captions] for clip in clips}


def test_msrvtt_test_layout_takes_captions_and_ids_from_the_csv(tmp_path):
    path = write(tmp_path, "key,vid_key,video_id,sentence\nret0,msr2,video2,a dog runs\nret1,msr1,video1,a cat sits\n")
    clips = read_annotations(path, "msrvtt", folder(tmp_path, "video1.webm", "video2.mp4"))
    assert [(clip.video, clip.source, clip.captions) for clip in clips] == [
        ("video2", "video2.mp4", (Caption("ret0", "a dog runs"),)),
        ("video1", "video1.webm", (Caption("ret1", "a cat sits"),)),
    ]


def test_msrvtt_captions_without_keys_are_numbered(tmp_path):
    path = write(tmp_path, "video_id,sentence\nvideo1,a\nvideo2,b\nvideo1,c\n")
    clips = read_annotations(path, "msrvtt", folder(tmp_path))
    assert [[caption.id for caption in clip.captions] for clip in clips] == [["0", "2"], ["1"]]


def test_msrvtt_training_layout_takes_captions_from_the_json_in_its_order(tmp_path):
    path = write(tmp_path, "video_id\nvideo7\nvideo3\n")
    write_sentences(tmp_path, ("video3", "x"), ("video7", "first"), ("video9", "unlisted"), ("video7", "second"))
    clips = read_annotations(path, "msrvtt", folder(tmp_path))
    assert texts(clips) == {"video7": ["first", "second"], "video3": ["x"]}
    assert [clip.video for clip in clips] == ["video7", "video3"]
    assert [caption.id for caption in clips[0].captions] == ["1", "3"]


def test_plain_csv_finds_files_with_and_without_extension_and_keeps_dots(tmp_path):
    path = write(
        tmp_path, 'video,caption\nmy.holiday.v2,a beach\nb.MOV,"waves, and wind"\nmy.holiday.v2,sand\nnone,sky\n'
    )
    clips = read_annotations(path, "csv", folder(tmp_path, "my.holiday.v2.mkv", "b.MOV"))
    assert texts(clips) == {"my.holiday.v2": ["a beach", "sand"], "b": ["waves, and wind"], "none": ["sky"]}
    assert [clip.source for clip in clips] == ["my.holiday.v2.mkv", "b.MOV", "none.mp4"]


def test_an_id_that_ends_like_a_number_is_not_cut_at_its_dot(tmp_path):
    path = write(tmp_path, "video,caption\nscene.01,a\nscene.02,b\n")
    clips = read_annotations(path, "csv", folder(tmp_path, "scene.01.mp4", "scene.02.mp4"))
    assert [(clip.video, clip.source) for clip in clips] == [("scene.01", "scene.01.mp4"), ("scene.02", "scene.02.mp4")]


def test_each_part_of_a_file_is_a_clip_of_its_own(tmp_path):
    path = write(tmp_path, "video,caption,start,end\na.mp4,x,0,4.5\na.mp4,y,4.5,9\na.mp4,z,0,4.5\nb,whole,,\n")
    clips = read_annotations(path, "csv", folder(tmp_path, "a.mp4", "b.avi"))
    assert texts(clips) == {"a#0-4.5": ["x", "z"], "a#4.5-9": ["y"], "b": ["whole"]}
    assert [(clip.source, clip.span) for clip in clips] == [
        ("a.mp4", (0.0, 4.5)),
        ("a.mp4", (4.5, 9.0)),
        ("b.avi", None),
    ]


def test_repeats_are_captions_of_their_own_and_counted_once(tmp_path, caplog):
    path = write(tmp_path, "video,caption\na,x\na, x \na,y\nb,x\na,x\n")
    with caplog.at_level(logging.INFO):
        clips = read_annotations(path, "csv", folder(tmp_path))
    assert texts(clips) == {"a": ["x", "x", "y", "x"], "b": ["x"]}
    assert [caption.id for caption in clips[0].captions] == ["0", "1", "2", "4"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: 2 captions repeat one of the same video; each is kept"
    ]


def test_without_repeats_nothing_is_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        read_annotations(write(tmp_path, "video,caption\na,x\nb,x\n"), "csv", folder(tmp_path))
    assert not caplog.records


def test_scattered_rows_and_unequal_counts_stay_with_their_videos(tmp_path):
    rows = [f"ret{number},video{number * 7 % 3},caption {number}" for number in range(10)] + ["ret10,video5,last"]
    clips = read_annotations(write(tmp_path, "\n".join(["key,video_id,sentence", *rows])), "msrvtt", folder(tmp_path))
    assert [(clip.video, [int(caption.id[3:]) for caption in clip.captions]) for clip in clips] == [
        ("video0", [0, 3, 6, 9]),
        ("video1", [1, 4, 7]),
        ("video2", [2, 5, 8]),
        ("video5", [10]),
    ]


def test_of_several_extensions_the_first_known_one_is_taken(tmp_path):
    path = write(tmp_path, "video,caption\na,x\nb.mpg,y\nc,z\n")
    clips = read_annotations(path, "csv", folder(tmp_path, "a.webm", "a.mp4", "a.txt", "b.mpg", "b.mp4", "c.txt"))
    assert [(clip.video, clip.source) for clip in clips] == [("a", "a.mp4"), ("b", "b.mpg"), ("c", "c.mp4")]


def test_one_id_cannot_mean_two_files(tmp_path):
    path = write(tmp_path, "video,caption\na.mp4,x\na,y\na.mov,z\n")
    message = r"a\.csv: line 4: expected one file of the name 'a', found 'a\.mp4' and 'a\.mov'; rename one"
    with pytest.raises(ArtefactError, match=message):
        read_annotations(path, "csv", folder(tmp_path, "a.mp4", "a.mov"))


def test_a_byte_order_mark_quoted_lines_and_other_scripts_are_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeffvideo,caption\r\na,"two\r\nlines"\r\n视频,一只狗\u2028跑\r\n'.encode())
    assert texts(read_annotations(path, "csv", folder(tmp_path))) == {"a": ["two\nlines"], "视频": ["一只狗\u2028跑"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"empty file; expected a header line with video, caption"),
        ("video,caption\n", r"no captions"),
        ("video,text\na,b\n", r"no column caption; found columns video, text"),
        ("video,caption\na,  \n", r"line 2: empty caption for 'a'"),
        ("video,caption\n,b\n", r"line 2: video: empty"),
        ("video,caption\na,b, c\n", r"line 2: more cells than columns; quote"),
        ("video,caption\n../a.mp4,b\n", r"line 2: video: expected a file name in the video folder, found '../a.mp4'"),
        ("video,caption\na\\b,c\n", r"line 2: video: expected a file name in the video folder"),
        ("video,caption\n..,c\n", r"line 2: video: expected a file name in the video folder, found '..'"),
        ("video,caption,start,end\na,b,zero,4\n", r"line 2: start: expected seconds, found 'zero'"),
        ("video,caption,start,end\na,b,nan,4\n", r"line 2: start: expected seconds, found 'nan'"),
        ("video,caption,start,end\na,b,5,4\n", r"line 2: expected both start and a later end"),
        ("video,caption,start,end\na,b,5,\n", r"line 2: expected both start and a later end"),
        ('video,caption\na,"b\n', r"not valid csv"),
    ],
)
def test_a_broken_csv_is_one_line_that_says_where(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ArtefactError, match=message) as error:
        read_annotations(path, "csv", folder(tmp_path))
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_listed_video_without_captions_is_named(tmp_path):
    path = write(tmp_path, "video_id\nvideo1\nvideo2\nvideo3\n")
    write_sentences(tmp_path, ("video1", "x"))
    with pytest.raises(ArtefactError, match=r"lists 'video2' and 1 more without a caption in MSRVTT_data.json"):
        read_annotations(path, "msrvtt", folder(tmp_path))


def test_a_repeated_id_in_a_list_counts_once(tmp_path, caplog):
    path = write(tmp_path, "video_id\nvideo1\nvideo2\nvideo1\n")
    write_sentences(tmp_path, ("video1", "x"), ("video2", "y"))
    with caplog.at_level(logging.INFO):
        assert texts(read_annotations(path, "msrvtt", folder(tmp_path))) == {"video1": ["x"], "video2": ["y"]}
    assert "dropped 1 repeated video ids" in caplog.text


def test_vatex_in_msrvtt_layout_is_read_unless_msrvtt_is_there_too(tmp_path):
    path = write(tmp_path, "video_id\nv1\n", "VATEX_train.csv")
    write_sentences(tmp_path, ("v1", "from vatex"))
    (tmp_path / "MSRVTT_data.json").rename(tmp_path / "VATEX_data.json")
    assert texts(read_annotations(path, "msrvtt", folder(tmp_path))) == {"v1": ["from vatex"]}
    write_sentences(tmp_path, ("v1", "from msrvtt"))
    assert texts(read_annotations(path, "msrvtt", folder(tmp_path))) == {"v1": ["from msrvtt"]}


def test_a_missing_or_broken_caption_file_is_named(tmp_path):
    path = write(tmp_path, "video_id\nvideo1\n")
    with pytest.raises(
        ArtefactError, match=r"a\.csv: no captions: expected MSRVTT_data\.json or VATEX_data\.json beside"
    ):
        read_annotations(path, "msrvtt", folder(tmp_path))
    for text, message in (
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"sentences": [], "sentences": []}', "not valid JSON: key 'sentences' appears twice"),
        ('{"videos": []}', "expected a list under 'sentences', found videos"),
        ("[]", "expected a list under 'sentences', found list"),
        ('{"sentences": [{"video_id": "video1"}]}', r"sentences\[0\]: expected video_id, caption and sen_id"),
        ('{"sentences": [{"video_id": "video1", "caption": " ", "sen_id": 0}]}', r"sentences\[0\]: empty caption"),
        ('{"sentences": [7]}', r"sentences\[0\]: expected video_id, caption and sen_id, found 7"),
        (
            '{"sentences": [{"video_id": "video1", "caption": "a \\ud83d", "sen_id": 0}]}',
            r"sentences\[0\]: 'video1': not a character",
        ),
    ):
        (tmp_path / "MSRVTT_data.json").write_text(text)
        with pytest.raises(ArtefactError, match=message):
            read_annotations(path, "msrvtt", folder(tmp_path))


def test_a_caption_id_used_twice_is_refused(tmp_path):
    path = write(tmp_path, "key,video_id,sentence\nr0,video1,a\nr0,video2,b\n")
    with pytest.raises(ArtefactError, match="line 3: caption id 'r0' appears twice"):
        read_annotations(path, "msrvtt", folder(tmp_path))


def test_files_that_cannot_be_annotations_are_refused(tmp_path):
    videos = folder(tmp_path)
    (tmp_path / "latin.csv").write_bytes("video,caption\na,café\n".encode("latin-1"))
    for name, layout, message in (
        ("nowhere.csv", "csv", "no such file"),
        ("latin.csv", "csv", "not UTF-8 at byte"),
        ("raw-captions.pkl", "csv", "pickles can run code"),
        ("latin.csv", "youcook", "unknown annotation layout 'youcook'; expected one of activitynet, csv, didemo"),
        ("videos", "csv", "a folder, expected a plain file"),
    ):
        with pytest.raises(ArtefactError, match=message):
            read_annotations(tmp_path / name, layout, videos)
    with pytest.raises(ArtefactError, match="no such folder"):
        read_annotations(write(tmp_path, "video,caption\na,b\n"), "csv", tmp_path / "absent")
