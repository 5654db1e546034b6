"""The reader is strict, and its errors say where, what was found, what was expected."""

import os
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from distill.config import Config, dump_recipe, read_recipe
from distill.errors import RecipeError
from distill.recipe import Recipe

RECIPES = [path for path in sorted((ROOT / "recipes").rglob("*.yaml"))]


class Optim(Config):
    lr: float
    warmup: float = 0.1


class Tree(Config):
    optim: Optim
    name: str = "x"
    layers: int = 2


def read(tmp_path: Path, text: str, *overrides: str) -> Tree:
    (tmp_path / "r.yaml").write_text(text)
    return read_recipe(tmp_path / "r.yaml", overrides, Tree)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_of_the_project_is_valid(path: Path):
    read_recipe(path, [], Recipe)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_resolved_recipe_reads_back_equal(path: Path, tmp_path: Path):
    recipe = read_recipe(path, [], Recipe)
    (tmp_path / "resolved.yaml").write_text(dump_recipe(recipe))
    assert read_recipe(tmp_path / "resolved.yaml", [], Recipe) == recipe


def test_extends_is_relative_to_its_file_and_overrides_win(tmp_path: Path):
    (tmp_path / "base.yaml").write_text("optim: {lr: 0.1, warmup: 0.5}\nlayers: 4\n")
    tree = read(tmp_path, "extends: base.yaml\noptim: {lr: 0.2}\n", "layers=6")
    assert (tree.optim.lr, tree.optim.warmup, tree.layers) == (0.2, 0.5, 6)


def test_an_old_key_works_for_one_version_with_a_line_that_names_the_new_one(tmp_path: Path, caplog):
    recipe = read_recipe(ROOT / "recipes/eercf.yaml", ["losses.coarse.places=[weak]"], Recipe)
    assert recipe.losses.coarse.targets == ["weak"], "an override wins over the recipe, whatever it is called"
    (tmp_path / "own.yaml").write_text(f"extends: {ROOT / 'recipes/glscl.yaml'}\nmodel: {{recall: coarse}}\n")
    assert read_recipe(tmp_path / "own.yaml", [], Recipe).model.index_by == "coarse"
    assert [record.getMessage() for record in caplog.records] == [
        "losses.coarse.places=[weak]: losses.coarse.places is now called losses.coarse.targets; the old name works up "
        "to version 0.2",
        f"{tmp_path / 'own.yaml'}: model.recall is now called model.index_by; the old name works up to version 0.2",
    ]


def test_another_kind_replaces_the_whole_section(tmp_path: Path):
    recipe = read_recipe(ROOT / "recipes/teachclip.yaml", [], Recipe)
    assert recipe.model.kind == "teachclip"
    assert "words" not in recipe.model.model_dump()


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("optim: {lr: 0.1}\nlayer: 3\n", (), ("layer", "unknown key", "'layers'")),
        ("optim: {lr: 0.1, warmpu: 0.2}\n", (), ("optim.warmpu", "unknown key", "'warmup'")),
        ("optim: {lr: 1e-4}\n", (), ("optim.lr", "'1e-4'", "1.0e-4")),
        ("optim: {lr: fast}\n", (), ("optim.lr", "'fast'", "number")),
        ("optim: {warmup: 0.1}\n", (), ("optim.lr", "missing")),
        ("optim: {lr: 0.1}\nlayers: 2.5\n", (), ("layers", "2.5", "integer")),
        ("optim: {lr: 0.1}\n", ("layers",), ("layers", "section.key=value")),
        ("optim: {lr: 0.1}\n", ("optim.lr=[",), ("not valid YAML",)),
        ("- 1\n", (), ("mapping",)),
        ("a: [\n", (), ("not valid YAML",)),
        ("a: !!python/object/apply:os.system ['true']\n", (), ("not valid YAML",)),
        ("extends: r.yaml\n", (), ("extends itself",)),
        ("extends: nowhere.yaml\n", (), ("nowhere.yaml", "no such recipe")),
    ],
)
def test_a_bad_recipe_says_where_and_what(
    tmp_path: Path, text: str, overrides: tuple[str, ...], words: tuple[str, ...]
):
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text, *overrides)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.words=30"], ("model", "30", "24", "equal")),
        (["model.kind=xclap"], ("model", "xclap")),
        (["labels=[a]", "losses.fine.weight=1.0"], ("fine", "no frame scores")),
        (["model.clip.freze_vision=2"], ("freze_vision", "freeze_vision")),
        (["name=../x"], ("name", "folder")),
        (["train.zero=4"], ("train.zero", "4")),
        (["train.validate_every=0"], ("train.validate_every", "greater than or equal to 1")),
    ],
)
def test_an_impossible_combination_is_refused(overrides: list[str], words: tuple[str, ...]):
    with pytest.raises(RecipeError) as caught:
        read_recipe(ROOT / "recipes/xclip.yaml", overrides, Recipe)
    for word in words:
        assert word in str(caught.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_no_tree_escapes_as_another_error(tree):
    from distill.config import validate

    try:
        validate({"optim": tree}, Tree, where="r.yaml")
    except RecipeError as error:
        assert str(error).startswith("r.yaml: ")


def test_what_a_recipe_extends_is_named_with_the_recipe(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for parent, words in (("pipe.yaml", "a pipe or a device"), ("gone.yaml", "no such recipe")):
        (tmp_path / "child.yaml").write_text(f"extends: {parent}\n")
        with pytest.raises(RecipeError, match=rf"{parent}.*child\.yaml") as error:
            read_recipe(tmp_path / "child.yaml", [], Recipe)
        assert words in str(error.value)
