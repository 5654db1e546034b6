"""The reader is strict, and its errors say where, what was found, what was expected."""

import os
import time
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

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


def configs(root: type[Config], seen: set[type[Config]]) -> set[type[Config]]:
    """All parts of a recipe tree."""
    if root not in seen:
        seen.add(root)
        for field in root.model_fields.values():
            for part in parts(field.annotation):
                if isinstance(part, type) and issubclass(part, Config):
                    configs(part, seen)
    return seen


def parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in typing.get_args(annotation):
        yield from parts(inner)


def test_every_number_of_a_recipe_has_a_lower_bound():
    for config in configs(Recipe, set()):
        for name, field in config.model_fields.items():
            numbers = [part for part in parts(field.annotation) if part in (int, float)]
            limits = [*field.metadata, *(part for part in parts(field.annotation) if not isinstance(part, type))]
            bounded = any(getattr(limit, bound, None) is not None for limit in _flat(limits) for bound in ("ge", "gt"))
            assert not numbers or bounded, f"{config.__name__}.{name}"


def _flat(limits: Iterable[Any]) -> Iterator[Any]:
    for limit in limits:
        yield limit
        yield from _flat(getattr(limit, "metadata", ()))
        yield from _flat(getattr(limit, "__metadata__", ()))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("optim.clip_lr=-0.0006", "optim.clip_lr: found -0.0006, input should be greater than or equal to 0"),
        ("optim.lr=.nan", "optim.lr: found nan, input should be a finite number"),
        ("optim.lr=.inf", "optim.lr: found inf, input should be a finite number"),
        ("optim.lr=1.0e+400", "optim.lr: found inf, input should be a finite number"),
        ("optim.lr=500.0", "optim.lr: found 500.0, input should be less than or equal to 100"),
        ("optim.warmup=2.0", "optim.warmup: found 2.0, input should be less than or equal to 1"),
        ("optim.grad_clip=-1.0", "optim.grad_clip: found -1.0, input should be greater than 0"),
        ("optim.betas=[1.0, 1.0]", "optim.betas.0: found 1.0, input should be less than 1"),
        ("losses.contrastive.weight=-1.0", "losses.contrastive.weight: found -1.0, input should be greater than or"),
        ("train.stem_cache_gb=.nan", "train.stem_cache_gb: found nan, input should be a finite number"),
        ("data.batch_size=0", "data.batch_size: found 0, input should be greater than or equal to 1"),
        ("data.max_words=0", "data.max_words: found 0, input should be greater than or equal to 3"),
        ("seed=-1", "seed: found -1, input should be greater than or equal to 0"),
        (
            "train.epochs=010",
            "override 'train.epochs=010': '010' is not valid YAML: 010 is no decimal number; write one",
        ),
        ("train.epochs=0x10", "0x10 is no decimal number"),
        ("train.epochs=1_0", "1_0 is no decimal number"),
        ("optim.lr=1:30", "1:30 is no decimal number"),
        ('name="a\\0b"', "name: holds a NUL character, which no name can; delete it"),
        ('data.train="a\\0b"', "data.train: holds a NUL character"),
        (f"name={'x' * 300}", "cannot be a folder name under .*: at most 200 bytes, no slash, no dot at its start"),
        ('name="a\\nb"', "cannot be a folder name under"),
    ],
)
def test_absurd_numbers_and_names_are_refused_with_the_reason(change: str, reason: str):
    with pytest.raises(RecipeError, match=reason.replace("[", r"\[")):
        read_recipe(ROOT / "recipes/teachclip.yaml", [change], Recipe)


def test_a_recipe_of_many_keys_is_refused_at_once(tmp_path: Path):
    (tmp_path / "many.yaml").write_text("".join(f"key{n}: 1\n" for n in range(20_000)))
    began = time.process_time()
    with pytest.raises(RecipeError, match=r"missing; .* \(and 20004 more\)"):
        read_recipe(tmp_path / "many.yaml", [], Recipe)
    assert time.process_time() - began < 20
    (tmp_path / "twice.yaml").write_text("name: a\nname: b\n")
    with pytest.raises(RecipeError, match="'name' stands twice"):
        read_recipe(tmp_path / "twice.yaml", [], Recipe)
