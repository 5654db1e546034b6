"""One small artefact of every kind, made by the project itself; each in a folder of the name of its reader."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow
import test_convert
import torch
import yaml
from pyarrow import parquet
from safetensors.torch import save_file
from test_clip import write_folder
from test_downloads import tar
from test_export import grown
from test_gallery import two_stage_release
from test_release import VOCABULARY, make, release

from distill.data.frames import FrameSet
from distill.data.sampler import Clip4ClipSampler
from distill.data.tokens import Tokenizer
from distill.data.video import write_video
from distill.evaluation.result import Metrics, Result, Subject
from distill.evaluation.standing import GalleryState
from distill.labelling.job import LabelJob, LabelJobConfig
from distill.labelling.teacher import TeacherRelease
from distill.manifest import NAME
from distill.packing.packing import PackConfig, pack
from distill.records import write_json
from distill.release.release import load
from distill.retrieval import Gallery, upkeep
from distill.retrieval.indexing import _Index, build_gallery
from distill.retrieval.upkeep import delete
from distill.training import checkpoint
from distill.training.checkpoint import Progress

COLOURS = {"red": 210, "green": 120, "blue": 40}
CAPTIONS = [(name, text) for name in COLOURS for text in (f"a {name} square", f"something {name}")]


def prepare(folder: Path) -> None:
    """Makes them all."""
    folder.mkdir(parents=True)
    _videos(folder / "video")
    _annotations(folder)
    config = PackConfig(sampler=Clip4ClipSampler(kind="clip4clip", num_frames=4), size=32, per_shard=2)
    pack(folder / "csv" / "all.csv", "csv", folder / "video", folder / "frames", config, workers=1)
    _labels(folder)
    _vectors(folder)
    release(folder / "release", *make())
    for name, loaded in (
        ("gallery", load(folder / "release")),
        ("tokens", two_stage_release(folder / "two_stage", kind="eercf", frames=4)),
    ):
        build_gallery(
            loaded, folder / "frames", folder / name, captions=True, vectors="int8" if name == "tokens" else None
        )
        delete(folder / name, ["green"])
    with patch.object(_Index, "_join", side_effect=KeyboardInterrupt), suppress(KeyboardInterrupt):
        build_gallery(load(folder / "release"), folder / "frames", folder / "unfinished")
    grown(Gallery.open(folder / "gallery", load(folder / "release")), folder / "approximate", upkeep.LEAST, 64)
    shutil.copytree(folder / "approximate", folder / "built")
    upkeep.approximate(folder / "approximate")
    upkeep.calibrate(folder / "approximate", load(folder / "release"), [text for _, text in CAPTIONS])
    _checkpoint(folder / "checkpoint")
    _recipe(folder / "recipe")
    for suffix in (".pt", ".bin", ".safetensors"):
        (folder / f"authors{suffix}").mkdir()
        test_convert.saved(test_convert.checkpoint("clip4clip"), folder / f"authors{suffix}" / f"model{suffix}")
    _result(folder / "result")
    (folder / "towers").mkdir()
    write_folder(folder / "towers")
    (folder / "queries").mkdir()
    (folder / "queries" / "queries.txt").write_text("a red square\nsomething blue\n")


def _videos(folder: Path) -> None:
    for name, grey in COLOURS.items():
        write_video(folder / f"{name}.mp4", np.full((8, 32, 48, 3), grey, np.uint8), fps=4)


def _annotations(folder: Path) -> None:
    for name in ("csv", "msrvtt", "downloads", "msvd", "vatex", "lsmdc", "activitynet", "didemo"):
        (folder / name).mkdir()
    rows = "".join(f"{name},{text}\n" for name, text in CAPTIONS)
    (folder / "csv" / "all.csv").write_text(f"video,caption\n{rows}")
    (folder / "msrvtt" / "train.csv").write_text("video_id\n" + "".join(f"{name}\n" for name in COLOURS))
    sentences = [{"video_id": name, "caption": text, "sen_id": i} for i, (name, text) in enumerate(CAPTIONS)]
    write_json(folder / "msrvtt" / "MSRVTT_data.json", {"sentences": sentences})
    listed, said = "".join(f"{name}\n" for name in COLOURS), {name: [f"a {name} square"] for name in COLOURS}
    for name, captions in (("msvd", "captions_msvd.json"), ("vatex", "ref_captions.json")):
        (folder / name / "train_list.txt").write_text(listed)
        write_json(folder / name / captions, said | {"red": [["a", "red", "square"], "something red"]})
    times = "\t".join(["00.00.00.000"] * 4)
    (folder / "lsmdc" / "train.csv").write_text("".join(f"{name}\t{times}\t{text}\n" for name, text in CAPTIONS))
    write_json(
        folder / "activitynet" / "train.json",
        {f"v_{name}": {"duration": 2.5, "sentences": texts} for name, texts in said.items()},
    )
    write_json(
        folder / "didemo" / "train_data.json",
        [{"video": f"{name}.mp4", "description": text} for name, text in CAPTIONS],
    )
    (folder / "didemo" / "train_list.txt").write_text(listed)
    for number, names in enumerate((["red", "green"], ["blue"])):
        files: dict[str, bytes | str | dict] = {}
        for key in names:
            files[f"{key}.mp4"] = (folder / "video" / f"{key}.mp4").read_bytes()
            files[f"{key}.json"] = {"key": key, "caption": f"a {key} square", "status": "success"}
        tar(folder / "downloads" / f"{number:05d}.tar", files)


def _labels(folder: Path) -> None:
    frames, (_, teacher) = FrameSet(folder / "frames"), make("xclip")
    teacher = TeacherRelease(model=teacher, tokenizer=Tokenizer(16, VOCABULARY), kind="xclip", id="teacher")
    tiers = ["relevance", "topk", "features"]
    config = LabelJobConfig(tiers=tiers, storage="float32", batch=4, precision="fp32", top=2)
    job = LabelJob(teacher, frames, folder / "labels", config)
    assert job.begin() is None and job.label() is not None
    shutil.copytree(folder / "labels", folder / "unsealed")
    (folder / "unsealed" / NAME).unlink()
    shutil.rmtree(folder / "labels" / ".work", ignore_errors=True)
    shutil.rmtree(folder / "frames" / ".work", ignore_errors=True)


def _vectors(folder: Path) -> None:
    """Vectors from elsewhere, as safetensors and as Parquet."""
    (folder / "vectors").mkdir()
    (folder / "tables").mkdir()
    frames, rng = FrameSet(folder / "frames"), np.random.default_rng(0)
    texts = [text for _, text in CAPTIONS]
    sentences = {text: rng.normal(size=5).astype(np.float32) for text in texts}
    seen = {video.id: rng.normal(size=(len(video.timestamps), 5)).astype(np.float32) for video in frames.videos}
    named = {f"sentence/{text}": value for text, value in sentences.items()}
    named |= {f"frames/{video}": value for video, value in seen.items()}
    save_file({name: torch.from_numpy(value) for name, value in named.items()}, folder / "vectors" / "all.safetensors")
    said = {"text": texts, "sentence": [value.tolist() for value in sentences.values()]}
    parquet.write_table(pyarrow.table(said), folder / "tables" / "captions.parquet")
    videos = {"id": list(seen), "frames": [value.tolist() for value in seen.values()]}
    parquet.write_table(pyarrow.table(videos), folder / "tables" / "videos.parquet")


def _checkpoint(folder: Path) -> None:
    weights = {"layer.weight": torch.randn(8, 4), "layer.bias": torch.randn(8)}
    moments = {
        f"{moment}/{name}": value.abs() for moment in ("exp_avg", "exp_avg_sq") for name, value in weights.items()
    }
    checkpoint.save(folder, weights, moments, Progress(step=3, metrics_bytes=100))


def _recipe(folder: Path) -> None:
    folder.mkdir()
    base = {
        "out": "runs",
        "seed": 1,
        "model": {"kind": "teachclip", "clip": {"model": "towers"}, "temporal": {"layers": 1, "init": "normal"}},
        "data": {"train": "frames", "val": "frames", "max_words": 16, "batch_size": 4},
        "optim": {"lr": 1.0e-3, "clip_lr": 1.0e-4, "head_lr": 1.0e-2},
    }
    own = {"extends": "base.yaml", "name": "student", "labels": ["labels"], "train": {"epochs": 1}}
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    (folder / "student.yaml").write_text(yaml.safe_dump(own))


def _result(folder: Path) -> None:
    folder.mkdir()
    row = {"R@1": 40.0, "R@5": 70.0, "R@10": 80.0, "MdR": 2.0, "MnR": 14.0}
    recalls: dict[str, tuple[float, float]] = {name: (30.0, 90.0) for name in ("R@1", "R@5", "R@10")}
    result = Result(
        toolkit="0",
        protocol="msrvtt-1ka",
        fingerprint="0" * 64,
        gallery=GalleryState(videos=3, captions=6, complete=None, missing=0, unusable=(), words="3 videos"),
        subject=Subject(release="release", release_id="1" * 64, model="teachclip", frames="frames", frames_id="2" * 64),
        scores=Metrics(metrics={"t2v": row, "v2t": row}, intervals={"t2v": recalls, "v2t": recalls}),
        dsl=None,
        qbnorm=None,
    )
    (folder / "result.json").write_text(json.dumps(result.model_dump(mode="json"), indent=1))
