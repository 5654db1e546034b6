"""A table never shows a run of another recipe, nor a student that another teacher taught."""

from pathlib import Path

import pytest

from distill.config import dump_recipe, read_recipe
from distill.demo import story, trials
from distill.demo.build import MARK, VERSION
from distill.demo.commands import Commands
from distill.demo.earlier import check_earlier
from distill.errors import ExpectedError
from distill.manifest import Manifest, seal
from distill.recipe import Recipe
from distill.records import write_json
from distill.training.folder import RECIPE

ROWS = trials.chosen(trials.ROWS, ["teachclip", "teachclip-more", "teachclip+look"])
KEYS = ("teachclip", "teachclip-more", "xclip")
SPLITS = ("xclip", "xclip-more")  # folders of labels, of the training clips and of those beside them


def sealed(folder: Path, kind: str, config: dict | None = None, **parents: str) -> Manifest:
    folder.mkdir(parents=True)
    version = {"release": 2, "labels": 2, "gallery": 4}[kind]
    made = {"kind": kind, "version": version, "config": {"of": str(folder), **(config or {})}, "parents": parents}
    return seal(folder, Manifest.model_validate(made | {"counts": {}, "files": {}}))


@pytest.fixture
def made(tmp_path: Path) -> dict:
    """Everything as a finished study leaves it: runs with their recipes, releases, labels and a gallery."""
    runs, labels, gallery = (tmp_path / name for name in ("runs", "labels", "gallery"))
    recipes, releases = story.recipes_of(ROWS, runs, labels, 3), {}
    for key in KEYS:
        releases[key] = sealed(runs / key / "release", "release").id
        (runs / key / RECIPE).write_text(dump_recipe(Recipe.model_validate(recipes[key][key])))
    for split in SPLITS:
        sealed(labels / split, "labels", {"teacher": releases["xclip"]})
    sealed(gallery, "gallery", release=releases["teachclip"])
    return {"rows": ROWS, "runs": runs, "labels": labels, "seed": 3, "galleries": {"teachclip": gallery}}


def test_nothing_and_all_of_this_recipe_pass(made: dict, tmp_path: Path):
    check_earlier(**made)
    check_earlier(ROWS, tmp_path / "none", tmp_path / "nothing", 3, {"teachclip": tmp_path / "nowhere"})


@pytest.mark.parametrize("key", KEYS)
def test_a_run_of_another_recipe_is_named_with_what_differs(key: str, made: dict):
    path = made["runs"] / key / RECIPE
    other = read_recipe(path, ["optim.warmup=0.2"], Recipe)
    path.write_text(dump_recipe(other))
    with pytest.raises(ExpectedError) as error:
        check_earlier(**made)
    recipe = "xclip" if key == "xclip" else "teachclip"
    assert f"runs/{key}: trained by another recipe than recipes/{recipe}.yaml is now (optim.warmup: 0.2, now 0.1)" in (
        said := str(error.value)
    )
    assert "\n" not in said and "delete or move it" in said


def test_another_seed_is_another_recipe(made: dict):
    with pytest.raises(ExpectedError, match=r"runs/\S+: trained by another recipe .*\(seed: 3, now 4\)"):
        check_earlier(**{**made, "seed": 4})


def test_clips_of_another_number_are_refused_before_any_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_json(story.CORPUS / MARK, {"version": VERSION, "clips": 9, "seed": 0})
    with pytest.raises(ExpectedError, match=r'demo/corpus: holds another corpus \({"clips": 9, .*delete this one'):
        story.corpus(Commands(tmp_path / "logs", total=1), 8, trials.DEMO)
    assert not list((tmp_path / "logs").iterdir()) and [path.name for path in story.CORPUS.iterdir()] == [MARK]


def test_clips_that_fill_no_batch_are_refused_before_any_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExpectedError, match="--clips: 127, expected at least 128: a batch of the recipes has so many"):
        story.corpus(Commands(tmp_path / "logs", total=1), 127, trials.DEMO)
    assert not list((tmp_path / "logs").iterdir()) and not story.CORPUS.exists()


@pytest.mark.parametrize("split", SPLITS)
def test_labels_of_another_teacher_are_refused(split: str, made: dict, tmp_path: Path):
    (made["labels"] / split).rename(tmp_path / "away")
    check_earlier(**made)
    sealed(made["labels"] / split, "labels", {"teacher": "another"})
    with pytest.raises(
        ExpectedError, match=rf"labels/{split}: made with another release than \S+runs/xclip/release is"
    ):
        check_earlier(**made)


def test_labels_and_galleries_of_a_release_that_is_gone_are_refused(made: dict, tmp_path: Path):
    for key, what in (("teachclip", "gallery"), ("xclip", "labels/xclip")):
        (made["runs"] / key).rename(tmp_path / key)
        with pytest.raises(ExpectedError, match=rf"{what}: made with another release than \S+runs/{key}/release is"):
            check_earlier(**made)
        (tmp_path / key).rename(made["runs"] / key)
    check_earlier(**made)
