"""The Python code of README runs, word for word, on a small corpus."""

import re
from pathlib import Path

import pytest
from conftest import ROOT, World, python

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: next(w for w in ("Gallery", "similarity") if w in block))
def test_the_examples_run(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, block: str):
    python("distill/run.py", world.recipe("my-teachclip", "teachclip", tmp_path / "runs"))
    videos = tmp_path / "my" / "videos"
    videos.mkdir(parents=True)
    for path in sorted((world.corpus / "videos").glob("*.mp4"))[:5]:
        (videos / path.name).symlink_to(path)
    next(videos.glob("*.mp4")).rename(videos / "dogs.mp4")
    python("tools/index.py", tmp_path / "runs/my-teachclip/release", videos, "--out", tmp_path / "my/gallery")
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == (5 + 4 if "Gallery" in block else 1), printed  # a video is not like itself
