"""A recipe starts from a release: with exactly its weights, or refused with the names of what does not fit."""

from pathlib import Path

import pytest
import torch
import yaml
from conftest import World
from safetensors.torch import load_file

from distill.catalogue import build, parse_model_config
from distill.config import dump_recipe, read_recipe
from distill.data.frames import FrameSet
from distill.data.tokens import prune
from distill.errors import ExpectedError, RecipeError
from distill.experiment import prepare
from distill.model.towers import Towers
from distill.recipe import Recipe
from distill.release.release import load
from distill.release.writing import write_release
from distill.training.folder import RECIPE, choose_folder


def released(world: World, path: Path, kind: str, vocabulary: list[int] | None = None, **model) -> Path:
    """A release of a model with random weights on the towers of the world."""
    config = parse_model_config(
        {"kind": kind, "clip": {"model": str(world.towers), "freeze_vision": 2}, **model}, "test"
    )
    torch.manual_seed(7)
    made = build(config.released(), Towers.from_config(config.clip))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.rand_like(parameter) / 100)
    write_release(
        path,
        model=made,
        model_config=config.released(),
        weights=made.state_dict(),
        text={"max_words": 24, "vocabulary": vocabulary},
        frames_config=FrameSet(world.frames["train"]).manifest.config,
        provenance={},
    )
    return path


def recipe(world: World, path: Path, kind: str, init: Path, **sections) -> Recipe:
    return read_recipe(world.recipe(kind, kind, path, init=str(init), **sections), [], Recipe)


TEMPORAL = {"temporal": {"layers": 1, "init": "normal"}}
PROMPTS = {"prompts": 4, "frames": 4}


@pytest.mark.parametrize(
    ("kind", "model"),
    [("teachclip", TEMPORAL), ("clip4clip", {"head": "seqTransf", **TEMPORAL}), ("xpool", {})],
)
def test_step_0_has_the_weights_of_the_release_and_records_its_id(kind, model, world: World, tmp_path: Path):
    init = released(world, tmp_path / "before", kind, **model)
    job, _ = prepare(recipe(world, tmp_path, kind, init, model=_model(world, kind, model)))
    expected, found = load_file(init / "model.safetensors"), job.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    towers = load_file(world.towers / "open_clip_model.safetensors")
    assert not torch.equal(found["clip.visual.proj"], towers["visual.proj"]), "the towers' own weights are not read"
    frozen = {name for name, parameter in job.model.named_parameters() if not parameter.requires_grad}
    assert frozen and job.began_with == load(init).manifest.id


def test_what_only_training_needs_starts_fresh(world: World, tmp_path: Path, caplog):
    captions = {"layers": 1}
    init = released(world, tmp_path / "before", "prompt_switch", captions=captions, **PROMPTS)
    caplog.set_level("INFO")
    model = _model(world, "prompt_switch", {"captions": captions, **PROMPTS})
    job, _ = prepare(recipe(world, tmp_path, "prompt_switch", init, model=model))
    expected, found = load_file(init / "model.safetensors"), job.model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    fresh = found.keys() - expected.keys()
    assert fresh and f"{len(fresh)} tensors that only training needs start fresh" in caplog.text


def _model(world: World, kind: str, model: dict) -> dict:
    return {"kind": kind, "clip": {"model": str(world.towers), "freeze_vision": 2}, **model}


def test_another_kind_or_shape_is_refused_before_frames_are_opened(world: World, tmp_path: Path):
    init = released(world, tmp_path / "before", "teachclip", **TEMPORAL)
    nowhere = {"train": "no/frames", "val": "no/frames"}
    with pytest.raises(RecipeError, match=rf"init: {init} holds a teachclip, but model.kind is clip4clip"):
        prepare(recipe(world, tmp_path, "clip4clip", init, data=nowhere))
    deeper = _model(world, "teachclip", {"temporal": {"layers": 2, "init": "normal"}})
    with pytest.raises(RecipeError, match=r"do not fit model: missing: temporal\.blocks\.1\.attn.* and 7 more; conf"):
        prepare(recipe(world, tmp_path, "teachclip", init, data=nowhere, model=deeper))
    shorter = _model(world, "teachclip", {"temporal": {"layers": 1, "init": "normal", "positions": 20}})
    shapes = r"of another shape: temporal\.pos_embed\.weight \[77, 32\] for \[20, 32\];"
    with pytest.raises(RecipeError, match=shapes):
        prepare(recipe(world, tmp_path, "teachclip", init, data=nowhere, model=shorter))
    with pytest.raises(ExpectedError, match="no such folder"):
        prepare(recipe(world, tmp_path, "teachclip", tmp_path / "nothing", data=nowhere))


def test_what_no_shape_shows_is_refused_too(world: World, tmp_path: Path):
    init = released(world, tmp_path / "before", "teachclip", **TEMPORAL)
    towers = tmp_path / "towers"
    towers.mkdir()
    text = (world.towers / "open_clip_config.json").read_text()
    (towers / "open_clip_config.json").write_text(text.replace('"quick_gelu": true', '"quick_gelu": false'))
    (towers / "open_clip_model.safetensors").write_bytes((world.towers / "open_clip_model.safetensors").read_bytes())
    model = _model(world, "teachclip", TEMPORAL)
    plain = {**model, "clip": {**model["clip"], "model": str(towers)}}
    with pytest.raises(RecipeError, match=rf"the towers of {init} differ from .* in quick_gelu; name the towers"):
        prepare(recipe(world, tmp_path, "teachclip", init, model=plain))
    pruned = released(world, tmp_path / "pruned", "teachclip", vocabulary=prune(["a cat"]), **TEMPORAL)
    with pytest.raises(RecipeError, match="trained with another vocabulary"):
        prepare(recipe(world, tmp_path, "teachclip", pruned, model=model))


def test_settings_that_may_be_chosen_anew_are_named(world: World, tmp_path: Path, caplog):
    init = released(world, tmp_path / "before", "teachclip", **TEMPORAL)
    prepare(recipe(world, tmp_path, "teachclip", init))
    assert "was trained with another" not in caplog.text
    prepare(recipe(world, tmp_path, "teachclip", init, model={"temporal": {**TEMPORAL["temporal"], "heads": 4}}))
    assert f"{init} was trained with another model.temporal.heads; trained on as the recipe says" in caplog.text


def test_an_unfinished_run_of_a_version_without_the_key_is_continued(world: World, tmp_path: Path):
    fresh = read_recipe(world.recipe("teachclip", "teachclip", tmp_path), [], Recipe)
    run = tmp_path / "run"
    run.mkdir()
    (run / RECIPE).write_text(dump_recipe(fresh).replace("init: null\n", "", 1))
    assert "init" not in yaml.safe_load((run / RECIPE).read_text())
    assert choose_folder(run, fresh) == run
