"""Exports as users make them: every student, towers that are not plain, graphs of 8 bits, and the command itself."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import families
import numpy as np
import pytest
from conftest import ROOT, World, one_line_error, python
from exports import MODELS, compare, trained
from test_jsontokens import CAPTIONS, towers

from distill.bench.drawn import draw_frames
from distill.catalogue import build, parse_model_config
from distill.data.frames import FrameSet
from distill.data.jsontokens import JsonTokenizer
from distill.evaluation.evaluate import texts_of
from distill.exporting.onnx import export_onnx
from distill.exporting.parity import CLOSE, SHARED
from distill.model.towers import ClipConfig, Towers, open_tokenizer
from distill.onnx.exported import FOLDER
from distill.onnx.session import TextSession
from distill.release.release import load
from distill.release.writing import write_release

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", sorted(MODELS.keys() - {"teachclip", "prompt_switch"}))
def test_every_student_is_exported_whole(kind: str, tmp_path: Path):
    frames = draw_frames(tmp_path / "frames", videos=24, captions=1, num_frames=2, size=32)
    path = trained(kind, frames, tmp_path)
    measured = export_onnx(path, frames.path, int8=False)
    print(f"{kind}: {measured}")
    assert measured.float32.score <= CLOSE and measured.float32.top10 == 100
    for side in ("text", "video"):
        compare(load(path), side, path / FOLDER / f"{side}.onnx", frames)


def untrained(clip: ClipConfig, words: int, frames: FrameSet, folder: Path, **provenance) -> Path:
    """Release CLIP4Clip's mean of frames on towers as they are."""
    config = parse_model_config({"kind": "clip4clip", "clip": clip.model_dump()}, "test")
    loaded = Towers.from_config(clip)
    tokenizer, model = open_tokenizer(clip, loaded.architecture, words), build(config, loaded)
    own = tokenizer.content if isinstance(tokenizer, JsonTokenizer) else None
    write_release(
        folder, model=model, model_config=config, weights=model.state_dict(), tokenizer_json=own,
        text={"max_words": words, "vocabulary": tokenizer.vocabulary}, frames_config=frames.manifest.config,
        provenance=provenance,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("family", ["siglip", "mobileclip"])
def test_towers_that_are_not_plain_are_exported_with_their_tokenizer(family: str, tmp_path: Path):
    folder = towers(tmp_path / "towers") if family == "siglip" else families.write(family, tmp_path / "towers")
    size = families.FAMILIES[family][0]["image_size"]
    frames = draw_frames(tmp_path / "frames", videos=24, captions=1, num_frames=2, size=size)
    path = untrained(ClipConfig(model=str(folder)), 12, frames, tmp_path / "release")
    measured = export_onnx(path, frames.path, int8=False)
    print(f"{family}: {measured}")
    assert measured.float32.score <= CLOSE
    release = load(path)
    for side in ("text", "video"):
        compare(release, side, path / FOLDER / f"{side}.onnx", frames)
    session = TextSession.open(path)
    assert np.array_equal(session.tokenizer(CAPTIONS), release.tokenizer(CAPTIONS))
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(session.vectors, [CAPTIONS] * 64))
    assert all(np.array_equal(one, together[0]) for one in together)
    np.testing.assert_allclose(together[0], release.embed_text(CAPTIONS).numpy(), atol=1e-5)


def test_the_command_exports_trained_towers_in_32_and_in_8_bits(world: World, tmp_path: Path):
    frames, recipe = FrameSet(world.frames["train"]), {"data": {"val": str(world.frames["train"])}}
    clip = ClipConfig(model=str(ROOT / "recipes/demo/clip"))
    path = untrained(clip, 24, frames, tmp_path / "release", recipe=recipe)
    command = (ROOT / "tools/export.py", path, "--to", "onnx")
    said = python(*command).stdout  # the frame set is the one that the recipe names
    print(said)
    rows = {line.split()[0]: line.split() for line in said.splitlines()[2:]}
    assert rows.keys() == {"torch", "float32", "int8"}
    assert float(rows["float32"][1]) <= CLOSE and float(rows["int8"][2].rstrip("%")) >= SHARED
    assert float(rows["int8"][4]) < 0.5 * float(rows["float32"][4]), "int8 is less than half as large"
    one_line_error(python(*command, check=False), "is there already; delete it to export again")
    texts, release = texts_of(frames), load(path)
    for int8, most in ((False, 1e-5), (True, 0.1)):
        found = TextSession.open(path, int8=int8).vectors(texts)
        assert np.abs(found - release.embed_text(texts).numpy()).max() < most
    measured = json.loads((path / FOLDER / "manifest.json").read_text())["config"]["measured"]
    assert measured["frames_id"] == frames.manifest.id and measured["texts"] == len(texts)


def test_graphs_of_8_bits_that_find_other_videos_are_refused(tmp_path: Path):
    frames = draw_frames(tmp_path / "frames", videos=24, captions=1, num_frames=2, size=64)
    folder = families.write("mobileclip", tmp_path / "towers")
    path = untrained(ClipConfig(model=str(folder)), 12, frames, tmp_path / "release")
    command = (ROOT / "tools/export.py", path, "--to", "onnx", "--frames", frames.path)
    one_line_error(python(*command, check=False), "of the ten best videos with torch", "leave them out with --float32")
    assert not (path / FOLDER).exists() and not [*path.glob(".*")]
    (path / "provenance.json").unlink()
    one_line_error(python(*command, "--float32", check=False), "provenance.json: missing")
