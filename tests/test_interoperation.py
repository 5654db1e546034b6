"""Frame and label shards in libraries that know nothing of this project: webdataset, datasets, open_clip's training.

Beside them stands a decoder of its own: tarfile, json, PIL, and numbers out of safetensors by hand. The code blocks of
docs/labels.md run word for word.
"""

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import open_clip
import open_clip_train.data
import pytest
import torch
import webdataset
from conftest import ROOT
from PIL import Image
from safetensors.torch import save_file

import tools.dump_soft_labels
from distill.data.frames import FrameSet
from distill.data.sampler import Clip4ClipSampler
from distill.data.video import write_video
from distill.packing.packing import PackConfig, pack

LABELS = (ROOT / "docs/labels.md").read_text()
SECTION = LABELS[LABELS.index("## Reading shards with other libraries") : LABELS.index("## Sizes")]
JOINED, COLUMNS, PAIRS = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
# webdataset leaves shards to be closed by the collector.
pytestmark = pytest.mark.filterwarnings("ignore:.*unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning")
EARLIER = ROOT / "tests/artefacts/5368ee6"


@pytest.fixture(scope="module")
def my(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven videos of two to eight seconds in three shards, with one to three captions, and labels of given vectors."""
    folder = tmp_path_factory.mktemp("user") / "my"
    (folder / "videos").mkdir(parents=True)
    drawn = np.random.default_rng(0)
    rows = ["video,caption"]
    for number in range(7):
        shots = drawn.integers(0, 256, (number + 2, 6, 8, 3), np.uint8)  # one a second
        write_video(folder / f"videos/clip.{number}.mp4", shots.repeat(4, 0).repeat(8, 1).repeat(8, 2), fps=4)
        rows += [f"clip.{number}.mp4,video {number} said {said} times" for said in range(1 + number % 3)]
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    config = PackConfig(sampler=Clip4ClipSampler(kind="clip4clip", num_frames=6), size=32, per_shard=3)
    pack(folder / "train.csv", "csv", folder / "videos", folder / "frames/train", config, workers=1)
    vectors = {}
    for video in FrameSet(folder / "frames/train").videos:
        vectors[f"frames/{video.id}"] = drawn.standard_normal((len(video.timestamps), 8))
        for caption in video.captions:
            vectors[f"sentence/{caption.text}"] = drawn.standard_normal(8)
    (folder / "vectors").mkdir()
    save_file({name: torch.from_numpy(value) for name, value in vectors.items()}, folder / "vectors/all.safetensors")
    given = ["--vectors", folder / "vectors", folder / "frames/train", "--out", folder / "labels/xclip"]
    tools.dump_soft_labels.main([str(one) for one in given])
    return folder


def members(folder: Path) -> dict[str, dict[str, bytes]]:
    """The members of all shards, by key and extension."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                found.setdefault(key, {})[extension] = file.read()
    return found


def relevance(content: bytes) -> np.ndarray:
    """The tensor `relevance` of safetensors, read by hand: a header of JSON, then the numbers."""
    size = int.from_bytes(content[:8], "little")
    about = json.loads(content[8 : 8 + size])["relevance"]
    begin, end = about["data_offsets"]
    assert about["dtype"] == "F32"
    return np.frombuffer(content[8 + size + begin : 8 + size + end], "<f4").reshape(about["shape"])


def pictures(sample: dict[str, bytes]) -> list[np.ndarray]:
    names = sorted(name for name in sample if name.endswith(".jpg"))
    return [np.asarray(Image.open(io.BytesIO(sample[name])).convert("RGB")) for name in names]


def expected(frames: Path, labels: Path) -> list[tuple[str, str, float]]:
    """For every caption its sample, its text and the second of the frame with the greatest relevance."""
    said, rows = members(labels), []
    for key, sample in members(frames).items():
        about, scores = json.loads(sample["json"]), relevance(said[key]["labels.safetensors"])
        for caption, row in zip(about["captions"], scores, strict=True):
            shown = len(pictures(sample))
            rows.append((key, caption["text"], about["timestamps"][int(np.argmax(row[:shown]))]))
    return rows


def test_webdataset_joins_frames_and_labels_as_the_docs_say(my: Path, monkeypatch, capsys):
    monkeypatch.chdir(my.parent)
    names: dict[str, Any] = {}
    exec(JOINED, names)
    wanted = expected(my / "frames/train", my / "labels/xclip")
    assert capsys.readouterr().out.splitlines() == [f"{key} {text} {second}" for key, text, second in wanted]
    assert len(wanted) == 1 + 2 + 3 + 1 + 2 + 3 + 1 and len({second for _, _, second in wanted}) > 2
    decoded = list(names["samples"]("my/frames/train"))
    assert [sample["__key__"] for sample in decoded] == list(members(my / "frames/train"))
    for sample, raw in zip(decoded, members(my / "frames/train").values(), strict=True):
        shown = [sample[name] for name in sorted(sample) if name.endswith(".jpg")]
        assert all(np.array_equal(*both) for both in zip(shown, pictures(raw), strict=True))
        assert len(shown) == min(6, len(sample["json"]["timestamps"])) and sample["json"] == json.loads(raw["json"])


def test_webdataset_joins_sets_of_an_earlier_version(capsys):
    code = JOINED.replace('"my/frames/train"', repr(str(EARLIER / "frames")))
    exec(code.replace('"my/labels/xclip"', repr(str(EARLIER / "labels"))), {})
    wanted = expected(EARLIER / "frames", EARLIER / "labels")
    assert capsys.readouterr().out.splitlines() == [f"{key} {text} {second}" for key, text, second in wanted] != []


def test_datasets_reads_both_with_named_columns(my: Path, monkeypatch, capsys, tmp_path: Path):
    monkeypatch.chdir(my.parent)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    names: dict[str, Any] = {}
    exec(COLUMNS, names)
    assert capsys.readouterr().out == "(32, 32) clip.0\n"
    stored, said = members(my / "frames/train"), members(my / "labels/xclip")
    assert names["videos"]["__key__"] == names["labels"]["__key__"] == list(stored)
    for video, labels in zip(names["videos"], names["labels"], strict=True):
        raw = pictures(stored[video["__key__"]])
        shown = [np.asarray(video[f"{number:03d}.jpg"]) for number in range(len(raw))]
        assert all(np.array_equal(*both) for both in zip(shown, raw, strict=True))
        assert [video[f"{number:03d}.jpg"] for number in range(len(raw), 12)] == [None] * (12 - len(raw))
        assert video["json"] == json.loads(stored[video["__key__"]]["json"])
        assert labels["labels.json"] == json.loads(said[video["__key__"]]["labels.json"])
        assert labels["labels.safetensors"] == said[video["__key__"]]["labels.safetensors"]


def test_datasets_reads_frames_of_one_number_by_itself_and_refuses_others(my: Path, tmp_path: Path):
    def opened(folder: Path) -> datasets.Dataset:
        files = str(folder / "*.tar")
        return datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=str(tmp_path))

    found, stored = opened(EARLIER / "frames"), members(EARLIER / "frames")
    for video in found:
        raw = pictures(stored[video["__key__"]])
        assert all(np.array_equal(video[f"{number:03d}.jpg"], raw[number]) for number in range(len(raw)))
    with pytest.raises(Exception, match="don't share the same prefix or the same types"):
        opened(my / "frames/train")


def test_the_pipeline_of_open_clip_gives_pairs(my: Path):
    """The pipeline by which open_clip evaluates, with the step of the docs in place of its filter and its renaming."""
    names: dict[str, Any] = {}
    exec(PAIRS, names)
    shards = sorted(str(path) for path in (my / "frames/train").glob("*.tar"))
    tokenizer, preprocess = open_clip.get_tokenizer("ViT-B-32"), open_clip.image_transform(32, is_train=False)
    pipeline = webdataset.DataPipeline(
        webdataset.SimpleShardList(shards),
        webdataset.split_by_worker,
        webdataset.tarfile_to_samples(handler=open_clip_train.data.log_and_continue),
        webdataset.decode("pilrgb", handler=open_clip_train.data.log_and_continue),
        names["pairs"],
        webdataset.map_dict(image=preprocess, text=lambda text: tokenizer(text)[0]),
        webdataset.to_tuple("image", "text"),
        webdataset.batched(16, partial=True),
    )
    images, texts = (torch.cat(side) for side in zip(*pipeline, strict=True))
    wanted = [
        (preprocess(Image.fromarray(picture)), caption["text"])
        for sample in members(my / "frames/train").values()
        for caption in json.loads(sample["json"])["captions"]
        for picture in pictures(sample)
    ]
    assert len(wanted) > 50
    assert torch.equal(images, torch.stack([image for image, _ in wanted]))
    assert torch.equal(texts, tokenizer([text for _, text in wanted]))


def test_the_training_reader_of_open_clip_stops_as_the_docs_say():
    shards = str(EARLIER / "frames/00000.tar")
    read = webdataset.DataPipeline(webdataset.SimpleShardList(shards), open_clip_train.data.tarfile_to_samples_nothrow)
    with pytest.raises(KeyError, match="fname"):
        list(read)
