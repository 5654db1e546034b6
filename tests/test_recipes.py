"""Every recipe that comes with the project builds its model, and trains: tiny towers, small frames, two steps."""

import tomllib
from pathlib import Path

import pytest
import torch
from conftest import ROOT, World, quick
from labelling import write_labels
from open_clip.pretrained import get_pretrained_cfg, list_pretrained

from distill.config import read_recipe
from distill.data.datasets import PairDataset
from distill.data.plan import Plan
from distill.errors import RecipeError
from distill.experiment import prepare
from distill.model.architecture import is_plain
from distill.model.towers import HUB, named_architecture, read_architecture
from distill.recipe import Recipe
from distill.training.objective import Objective
from distill.training.optim import build_optimizer, schedule

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
OWN = {
    "pig": {"generation"},
    "eercf": {"constraint"},
    "glscl": {"idl", "icl"},
    "prompt_switch": {"caption"},
}  # losses of one student alone
PAPER = [path for path in RECIPES if path.parent.name not in ("recipes", "demo")]
# recipes of other datasets differ from those of MSR-VTT in data and schedule
TRAINED = [path for path in RECIPES if path not in PAPER or path.parent.name == "msrvtt"]


@pytest.fixture(scope="module")
def labels(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Label sets of two teachers with random weights."""
    folder = tmp_path_factory.mktemp("labels")
    return [write_labels(world, kind, folder / kind) for kind in ("xclip", "ts2net")]


def small(path: Path, world: World, labels: list[Path]) -> Recipe:
    """The recipe on tiny towers and the small corpus; everything else as it stands in the file."""
    recipe = read_recipe(path, [], Recipe)
    changes = {f"data.{split}": world.frames[split] for split in ("train", "val", "test")}
    changes |= {"data.max_words": 24, "data.num_frames": 12, "data.batch_size": 16, "data.workers": 0}
    changes |= {"model.clip.model": world.towers, "model.clip.weights": "folder", "train.precision": "fp32"}
    changes |= {f"model.{key}": size for key, size in (("words", 24), ("frames", 12)) if hasattr(recipe.model, key)}
    if recipe.model.clip.freeze_vision:  # the demo freezes all but the last block
        changes["model.clip.freeze_vision"] = 2
    if hasattr(recipe.model, "temporal"):
        changes["model.temporal.init"] = "normal"
    if hasattr(recipe.model, "generator"):  # which reads as many tokens as the text tower has positions
        changes["model.generator.selected"] = 4
    if recipe.labels:
        changes["labels"] = f"[{', '.join(map(str, labels[: len(recipe.labels)]))}]"
    return read_recipe(path, [f"{key}={value}" for key, value in changes.items()], Recipe)


@pytest.mark.parametrize("path", quick(RECIPES, TRAINED), ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_a_recipe_trains_two_steps(path: Path, world: World, labels: list[Path]):
    recipe = small(path, world, labels)
    job, _ = prepare(recipe)
    masked = recipe.data.same_video == "mask"
    heads = [(source.head, source.weight) for source in job.sources]
    own = [source.temperatures for source in job.sources]
    objective = Objective(job.model, heads, job.losses, bf16=False, mask_same_video=masked, temperatures=own)
    optimizer = build_optimizer(job.model, job.optim, fused=False)
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    counts = [len(video.captions) for video in job.train.videos]
    plan = Plan(counts, 16, epochs=1, seed=0, same_video_apart=recipe.data.same_video == "apart")
    dataset = PairDataset(job.train, [source.labels for source in job.sources], job.tokenizer, pixels=True)
    for step in range(2):
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * schedule(step + 1, 3, job.optim)
        parts = objective(dataset.__getitems__([(int(v), int(c)) for v, c in plan.batch(step)]))
        assert all(value.isfinite() for value in parts.values())
        wanted = {"contrastive", "coarse", "fine"} if recipe.labels else {"contrastive"}
        wanted |= {"sentence"} if recipe.labels and recipe.losses.sentence.weight else set()
        assert parts.keys() == wanted | OWN.get(recipe.model.kind, set()) | {"total"}
        optimizer.zero_grad()
        parts["total"].backward()
        optimizer.step()
    moved = {name for name, value in job.model.state_dict().items() if not torch.equal(value, before[name])}
    frozen = {name for name, parameter in job.model.named_parameters() if not parameter.requires_grad}
    assert moved and not moved & frozen


@pytest.mark.parametrize("path", PAPER, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_a_paper_recipe_names_towers_and_weights_that_are_there_and_read_its_captions(path: Path):
    recipe = read_recipe(path, [], Recipe)
    name = recipe.model.clip.model
    if name.startswith(HUB):  # nothing is fetched here: its repository is one that open_clip names, and so its towers
        known = {get_pretrained_cfg(one, tag).get("hf_hub", "").rstrip("/"): one for one, tag in list_pretrained()}
        architecture = named_architecture(known[name.removeprefix(HUB)])
    else:
        architecture = read_architecture(recipe.model.clip)
    assert recipe.data.max_words <= architecture["text_cfg"]["context_length"]
    if not is_plain(architecture) and hasattr(recipe.model, "temporal"):
        assert recipe.model.temporal.init == "normal"


@pytest.mark.parametrize("path", PAPER, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_a_paper_recipe_says_what_was_published_on_which_hardware(path: Path):
    header = path.read_text().split("\nname:")[0]
    for words in ("# Published: ", "Not reproduced here", "Batch ", " epochs", "ViT-B/32"):
        assert words in header, words


def test_recipe_folders_are_packaged():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in RECIPES}
    assert folders <= set(packages)


def test_packaged_names_are_found_from_any_folder_and_files_there_come_first(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = read_recipe("recipes/vatex/teachclip.yaml", [], Recipe)  # which extends another one
    assert whole == read_recipe(ROOT / "recipes/vatex/teachclip.yaml", [], Recipe)
    assert read_recipe("recipes/teachclip.yaml", [], Recipe).model.clip.folder == ROOT / "recipes/demo/clip"
    Path("mine.yaml").write_text("{extends: recipes/teachclip.yaml, name: mine}")
    assert read_recipe("mine.yaml", [], Recipe).model.kind == "teachclip"
    Path("recipes").mkdir()
    Path("recipes/teachclip.yaml").write_text("{extends: clip4clip.yaml, name: local}")  # and that is no file here
    with pytest.raises(RecipeError, match=r"clip4clip\.yaml"):
        read_recipe("mine.yaml", [], Recipe)
    Path("recipes/teachclip.yaml").write_text("{extends: recipes/clip4clip.yaml, name: local}")
    assert read_recipe("mine.yaml", [], Recipe).model.kind == "clip4clip"
    with pytest.raises(RecipeError, match="no such recipe"):
        read_recipe("teachclip.yaml", [], Recipe)
