"""Small students that a few steps have trained, and their graphs beside torch: for the tests of exports."""

from pathlib import Path

import numpy as np
import torch

from distill.catalogue import build, parse_model_config
from distill.data.datasets import VideoDataset
from distill.data.frames import FrameSet
from distill.data.tokens import prune
from distill.evaluation.evaluate import texts_of
from distill.exporting.graphs import sides
from distill.model.towers import Towers
from distill.onnx.session import open_graph
from distill.release.release import Release, load
from distill.release.writing import write_release

TEMPORAL = {"layers": 1, "init": "normal", "positions": 16}
MODELS = {
    "teachclip": {"temporal": TEMPORAL},
    "clip4clip": {"head": "seqTransf", "temporal": TEMPORAL},
    "prompt_switch": {"prompts": 2, "frames": 2, "captions": None},
    "pig": {"frames": 2, "proxies": 2, "generator": {"selected": 2}},
    "eercf": {"temporal": TEMPORAL, "frames": 2},
    "glscl": {"temporal": TEMPORAL, "queries": {"layers": 1, "heads": 2, "count": 2, "feed_forward": 32}},
}


def trained(kind: str, frames: FrameSet, folder: Path) -> Path:
    """Release a small student that a few steps of contrast have moved from its random weights."""
    vocabulary = prune(texts_of(frames))
    architecture = {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": len(vocabulary), "width": 32, "heads": 2, "layers": 1},
    }
    config = parse_model_config({"kind": kind, "clip": {"model": "tiny"}, **MODELS[kind]}, "test")
    torch.manual_seed(0)
    model = build(config, Towers.from_architecture(architecture, None, None)).eval()
    given = {
        "model_config": config,
        "text": {"max_words": 16, "vocabulary": vocabulary},
        "frames_config": frames.manifest.config,
        "provenance": {},
    }
    write_release(folder / "untrained", model=model, weights=model.state_dict(), **given)
    tokenizer = load(folder / "untrained").tokenizer
    ids, (pixels, real) = torch.from_numpy(tokenizer(texts_of(frames))), VideoDataset(frames).__getitems__([*range(24)])
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(10):
        logits = model.logits(model.encode_text(ids), model.encode_video(pixels, real))
        loss = torch.nn.functional.cross_entropy(logits, torch.arange(24))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    write_release(folder / kind, model=model, weights=model.state_dict(), **given)
    return folder / kind


def compare(release: Release, side: str, graph: Path, frames: FrameSet) -> None:
    """Run a graph on other numbers of rows than it was traced with, beside the model."""
    module, session = sides(release)[side][0], open_graph(graph)
    pixels, real = VideoDataset(frames).__getitems__([*range(7)])
    real[0, 1:] = False  # a short video
    for rows in (1, 3, 7):
        given = {"ids": torch.from_numpy(release.tokenizer(texts_of(frames)[:rows]))}
        if side == "video":
            given = {"pixels": pixels[:rows], "real": real[:rows]}
        with torch.no_grad():
            expected = module(*given.values())
        found = session.run(module.outputs, {name: value.numpy() for name, value in given.items()})
        for name, one, other in zip(module.outputs, found, expected, strict=True):
            assert one.shape == tuple(other.shape) and one.shape[0] == rows, name
            np.testing.assert_allclose(one, other.numpy(), atol=1e-5, rtol=1e-5, err_msg=name)
