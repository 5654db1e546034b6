"""Makes the artefacts of this folder and `expected.json`, what they answer; README.md says how it was run."""

import json
import subprocess
import sys
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from shutil import copytree, rmtree

ROOT = Path(sys.argv[1]).resolve()  # a checkout of commit 5368ee6
sys.path[0] = str(ROOT)

import numpy as np
import torch

from distill.catalogue import build, parse_model_config
from distill.data.frames import FrameSet
from distill.data.labels import LabelSet
from distill.data.tokens import Tokenizer, prune
from distill.data.video import write_video
from distill.manifest import Manifest
from distill.model.clip import Clip
from distill.release.release import load, write_release
from distill.retrieval import Gallery, generation
from distill.training import checkpoint

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 60), "blue": (20, 40, 220), "white": (250, 250, 250)}
CAPTIONS = [(name, text) for name in COLOURS for text in (f"a {name} square moves", f"something {name}")]
QUERIES = ["a red square", "something blue moves"]
VOCABULARY = prune([text for _, text in CAPTIONS])
ARCHITECTURE = {
    "embed_dim": 8,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 8, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": len(VOCABULARY), "width": 8, "heads": 1, "layers": 1},
}
TEMPORAL = {"layers": 1, "init": "normal", "positions": 4}
MODELS = {
    "teachclip": {"temporal": TEMPORAL},
    "xclip": {"temporal": TEMPORAL, "words": 16, "frames": 4},
    "eercf": {"temporal": TEMPORAL, "frames": 4},
}


def main() -> None:
    """Makes everything in the working folder."""
    videos = Path("videos")
    videos.mkdir()
    for number, (name, colour) in enumerate(COLOURS.items()):
        frames = np.zeros((12, 32, 48, 3), np.uint8)
        for step in range(12):
            frames[step, 8:24, step + 4 * number : step + 4 * number + 12] = colour
        write_video(videos / f"{name}.mp4", frames, fps=4)
    (videos / "broken.mp4").write_bytes(b"no video")
    rows = "".join(f"{name},{text}\n" for name, text in [*CAPTIONS, ("broken", "nothing")])
    Path("captions.csv").write_text(f"video,caption\n{rows}")
    tool("pack_frames", "captions.csv", "videos", "--out", "frames", "--size", "32", "--frames", "4")
    for kind in MODELS:
        release(kind)
    tiers = ("--tiers", "relevance", "topk", "features")
    tool("dump_soft_labels", "xclip", "frames", "--out", "labels", *tiers, "--top", "3")
    for kind, gallery, more in (("teachclip", "gallery", ()), ("eercf", "tokens", ("--vectors", "int8"))):
        tool("index", kind, "frames", "--out", gallery, "--videos", "videos", "--captions", *more)
    tool("gallery", "tokens", "delete", "green")
    Path("bank.txt").write_text("".join(f"{text}\n" for _, text in CAPTIONS))
    tool("gallery", "gallery", "calibrate", "bank.txt")
    checkpoint.save(
        Path("checkpoints"),
        {"layer.weight": torch.arange(6.0).reshape(2, 3)},
        {"exp_avg/layer.weight": torch.ones(2, 3)},
        checkpoint.Progress(step=3, metrics_bytes=100, processes=2, best_step=2, best_score=41.5),
    )
    Path("expected.json").write_text(json.dumps(expected()) + "\n")
    for name in ("captions.csv", "bank.txt"):
        Path(name).unlink()
    rmtree("videos")


def tool(name: str, *arguments: str) -> None:
    """Runs a command of the checkout."""
    subprocess.run([sys.executable, ROOT / "tools" / f"{name}.py", *arguments], check=True)


def release(kind: str) -> None:
    """A release of a model with random weights, large enough to tell queries apart."""
    config = parse_model_config({"kind": kind, "clip": {"model": "tiny"}, **MODELS[kind]}, kind)
    torch.manual_seed(7)
    model = build(config, Clip.from_architecture(ARCHITECTURE)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape) if weight.ndim else 0)
    write_release(
        Path(kind),
        model=model,
        model_config=config,
        weights=model.state_dict(),
        text={"max_words": 16, "vocabulary": VOCABULARY},
        frames_config=FrameSet("frames").manifest.config,
        provenance={"name": kind, "parents": {"frames": FrameSet("frames").manifest.id}},
        card=f"# {kind}\n",
    )


def expected() -> dict:
    """Describe all of them, and what they answer."""
    names = ("frames", "labels", *MODELS, "gallery", "tokens")
    manifests = {name: Manifest.model_validate_json(Path(name, "manifest.json").read_bytes()) for name in names}
    frames = FrameSet("frames")
    return {
        "ids": {name: manifest.id for name, manifest in manifests.items()},
        "videos": [asdict(video) for video in frames.videos],
        "pixel_means": [frames.pixels(number).mean((1, 2, 3)).tolist() for number in range(len(frames))],
        "labels": labels(frames),
        "releases": {kind: answers(kind) for kind in MODELS},
        "galleries": {name: searches(name, kind) for name, kind in (("gallery", "teachclip"), ("tokens", "eercf"))},
        "changed": changed(),
    }


def labels(frames: FrameSet) -> dict:
    """Shapes and hashes of all that the label set says of the frame set, by tier."""
    pairs = [(number, caption) for number in range(len(frames)) for caption in range(2)]
    read = {coarse: LabelSet("labels", frames, coarse=coarse).batch(pairs) for coarse in ("features", "topk")}
    return {
        tier: {name: [list(value.shape), sha256(value.numpy().tobytes()).hexdigest()] for name, value in rows.items()}
        for tier, rows in read.items()
    }


def answers(kind: str) -> dict:
    """Features of two queries and of frames, and their similarities."""
    loaded = load(kind)
    frames = np.arange(4 * 32 * 32 * 3, dtype=np.uint32).reshape(4, 32, 32, 3) * 7 % 256
    text, video = loaded.encode_text(QUERIES), loaded.encode_video(frames.astype(np.uint8))
    return {
        "ids": Tokenizer(16, VOCABULARY)(QUERIES).tolist(),
        "sentence": text.sentence.tolist(),
        "vector": video.vector.tolist(),
        "similarity": loaded.model.similarity(text, video).tolist(),
    }


def searches(name: str, kind: str) -> dict:
    """Hits of every way to search a gallery."""
    gallery = Gallery.open(name, load(kind))
    return {
        "search": [[asdict(hit) for hit in hits] for hits in gallery.search(QUERIES, 3)],
        "like": [asdict(hit) for hit in gallery.like("blue", 2)],
        "captions": [asdict(hit) for hit in gallery.search_captions("red", 3)],
    }


def changed() -> dict:
    """The ids of copies from which a video was deleted, and that were then compacted."""
    found = {}
    for name in ("gallery", "tokens"):
        copytree(name, "copy")
        found[name] = []
        for change in (("delete", "white"), ("compact",)):
            tool("gallery", "copy", *change)
            found[name].append(generation.read(Path("copy")).id)
        rmtree("copy")
    return found


main()
