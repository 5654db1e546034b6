"""Label sets recommend the temperatures at which they are as soft as a trained teacher's, and `auto` takes them."""

import json
import logging
import math
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from conftest import World
from hypothesis import given
from hypothesis import strategies as st
from labelling import QUERY, TRAINED, label_job, losses_while_learning, pack_shards, write_labels

import tools.labels
from distill import catalogue
from distill.config import read_recipe
from distill.data.frames import FrameSet
from distill.data.labels import LabelSoftness, Softness, StoredLabels
from distill.data.labelset import LabelSet
from distill.errors import RecipeError
from distill.experiment import prepare
from distill.labelling import softness
from distill.labelling.sealing import seal_labels
from distill.labelling.softness import COARSE, FINE, FLAT, entropy, is_flat, measured
from distill.losses.coarse import Distance, coarse
from distill.losses.fine import fine
from distill.manifest import NAME
from distill.model.contract import TrainingScores, teacher_logits
from distill.provenance import provenance
from distill.recipe import Recipe
from distill.records import json_sha256, write_json
from distill.release.card import model_card
from distill.training.lossconfig import LossConfig, Temperatures
from distill.training.objective import total_loss
from distill.training.teachers import TeacherScores


@pytest.fixture(scope="module")
def labels(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """X-CLIP's labels of the training frames, in all tiers."""
    folder = tmp_path_factory.mktemp("labels") / "xclip"
    return write_labels(world, "xclip", folder, tiers=("relevance", "topk", "features"))


def relative(rows: np.ndarray, temperature: float) -> np.ndarray:
    """The entropy of the softmax of rows over that of the uniform distribution, by its definition."""
    exp = np.exp((rows - rows.max(-1, keepdims=True)) / temperature)
    shares = exp / exp.sum(-1, keepdims=True)
    return -(shares * np.log(np.maximum(shares, 1e-300))).sum(-1) / math.log(rows.shape[-1])


def means(path: Path, frames: FrameSet, fine_at: float, coarse_at: float) -> tuple[float, float]:
    """Mean entropies of the sample: a caption of every video, the captions in turn, and one batch of all of them."""
    stored = LabelSet(path, frames)
    pairs = [(video, video % len(about.captions)) for video, about in enumerate(frames.videos)]
    rows = [stored.relevance(*pair)[: len(frames.videos[pair[0]].timestamps)].double().numpy() for pair in pairs]
    logits = teacher_logits(catalogue.scoring_head(stored), stored.batch(pairs)).double().numpy()
    by_frame = [relative(row, fine_at) for row in rows if len(row) > 1]
    return float(np.mean(by_frame)), float(np.mean([relative(side, coarse_at) for side in (logits, logits.T)]))


def test_recommended_temperatures_have_the_entropy_of_a_trained_teacher(world: World, labels: Path):
    """Against NumPy over the whole set, which is smaller than the sample; three digits of a temperature are kept."""
    frames, found = FrameSet(world.frames["train"]), StoredLabels(labels).config.softness
    assert found is not None and found.fine is not None and found.coarse is not None
    assert found.fine.recommended is not None and found.coarse.recommended is not None
    at_recommended = means(labels, frames, found.fine.recommended, found.coarse.recommended)
    assert at_recommended == pytest.approx((FINE, COARSE), abs=5e-3)
    assert means(labels, frames, found.fine.flat, found.coarse.flat) == pytest.approx((FLAT, FLAT), abs=1e-4)
    assert not is_flat(found.fine, found.fine.flat) and is_flat(found.fine, 1.01 * found.fine.flat)


@given(st.integers(0, 99), st.floats(-3, 3))
def test_entropy_never_falls_as_the_temperature_grows(seed: int, digits: float):
    scores = torch.randn(4, 7, generator=torch.Generator().manual_seed(seed))
    low, high = (entropy(scores, 10.0**power) for power in (digits, digits + 0.5))
    assert (low <= high + 1e-12).all() and (high <= 1 + 1e-12).all()
    np.testing.assert_allclose(low.numpy(), relative(scores.double().numpy(), 10.0**digits), atol=1e-9)


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_the_scale_of_labels_is_the_scale_of_their_temperature(factor: float):
    rows = [torch.randn(1, 9, generator=torch.Generator().manual_seed(seed)) for seed in range(20)]
    one, other = (softness._softness([scale * row for row in rows], 0.5) for scale in (1.0, factor))
    assert one is not None and other is not None
    assert other.recommended == pytest.approx(factor * one.recommended, rel=0.01)
    assert other.flat == pytest.approx(factor * one.flat, rel=0.01)


def test_labels_that_say_nothing_recommend_nothing():
    assert softness._softness([torch.ones(3, 5)], FINE) == Softness(recommended=None, flat=0.0)
    half = [torch.ones(1, 5)] * 3 + [torch.arange(5.0)[None]]  # three of four rows are uniform at any temperature
    found = softness._softness(half, 0.5)
    assert found is not None and found.recommended is None and found.flat > 0
    assert softness._softness([], FINE) is None and not is_flat(None, 1.0)


def test_every_number_of_processes_and_every_tier_seals_the_same(world: World, tmp_path: Path):
    frames = pack_shards(world, tmp_path / "frames", 7)
    whole = StoredLabels(write_labels(world, "ts2net", tmp_path / "one", frames=frames))
    for index in (2, 0, 1):
        job = label_job(world, "ts2net", tmp_path / "parts", frames=frames)
        job.begin()
        job.label_part(index, 3)
    assert StoredLabels(tmp_path / "parts").manifest == whole.manifest
    assert whole.config.softness == measured(whole)
    alone = StoredLabels(write_labels(world, "ts2net", tmp_path / "alone", frames=frames, tiers=("relevance",)))
    assert alone.config.softness is not None and whole.config.softness is not None
    assert alone.config.softness == LabelSoftness(fine=whole.config.softness.fine)
    job = label_job(world, "ts2net", tmp_path / "one", frames=frames)
    assert job.begin() == whole.manifest  # a finished set is known again


def test_the_sample_is_a_part_of_a_large_set(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """At equal steps over shards and videos, in batches that are spread over the set."""
    frames = pack_shards(world, tmp_path / "frames", 4)  # eight shards
    stored = StoredLabels(write_labels(world, "ts2net", tmp_path / "labels", frames=frames))
    for name, value in (("SHARDS", 4), ("VIDEOS", 6), ("BATCH", 4)):
        monkeypatch.setattr(softness, name, value)
    pairs = softness._sample(stored)
    keys = [stored.keys.index(key) for key, _ in pairs]
    assert [key // 4 for key in keys] == [0, 0, 2, 4, 4, 6] and keys == [0, 2, 9, 16, 18, 25]
    asked: list[list[tuple[str, int]]] = []
    monkeypatch.setattr(
        stored, "rows", lambda places, tier, rows=stored.rows: asked.append(places) or rows(places, tier)
    )
    softness._coarse(stored, pairs)
    assert asked == [pairs[0::2], pairs[1::2]]


torch.manual_seed(0)
LOGITS, TEACHER, SCORES, RELEVANCE = (torch.randn(*shape).double() for shape in ((5, 5), (5, 5), (5, 4), (5, 4)))


@pytest.mark.parametrize("distance", ["pearson", "kl", "cross_entropy"])
def test_auto_divides_the_teachers_logits_by_their_own_temperature(distance: Distance):
    """Each side by its own: the student's by 4; where the set recommends 4, that is `temperature: 4`."""
    auto = LossConfig.model_validate({"coarse": {"temperature": "auto", "distance": distance}, "fine": {"weight": 0.0}})

    def found(config: LossConfig, logits: torch.Tensor, own: float | None) -> float:
        said = TeacherScores(logits=logits, relevance=None, temperatures=Temperatures(coarse=own))
        return total_loss(TrainingScores.of(LOGITS), [said], config)["coarse"].item()

    written = auto.model_copy(update={"coarse": auto.coarse.model_copy(update={"temperature": 4.0})})
    assert found(auto, TEACHER, 4.0) == pytest.approx(found(written, TEACHER, None))
    assert found(auto, TEACHER / 100, 0.04) == pytest.approx(found(auto, TEACHER, 4.0))
    expected = coarse(LOGITS / 4, TEACHER / 0.3, 1.0, distance) * (16 if distance == "kl" else 1)
    assert found(auto, TEACHER, 0.3) == pytest.approx(expected.item())


def test_auto_is_the_temperature_of_the_teachers_relevance_by_label_set():
    auto = LossConfig.model_validate({"fine": {"temperature": "auto"}, "coarse": {"weight": 0.0}})
    said = [
        TeacherScores(logits=None, relevance=scale * RELEVANCE, temperatures=Temperatures(fine=own))
        for scale, own in ((1.0, 0.2), (10.0, 3.0))
    ]
    found = total_loss(TrainingScores.of(LOGITS, SCORES), said, auto)["fine"].item()
    expected = (fine(SCORES, RELEVANCE, 0.2) + fine(SCORES, 10 * RELEVANCE, 3.0)) / 2
    assert found == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("losses.coarse={temperature: auto, distance: l1}", "distance: l1 compares logits without a softmax"),
        ("losses.fine={temperature: auto, standardise: true}", "which standardise: true changes"),
        ("losses.fine.temperature=automatic", r"losses\.fine\.temperature.*'automatic'"),
        ("losses.coarse.temperature=0.0", r"losses\.coarse\.temperature.*greater than 0"),
    ],
)
def test_what_auto_cannot_mean_is_refused(world: World, tmp_path: Path, given: str, words: str):
    with pytest.raises(RecipeError, match=words):
        read_recipe(world.recipe("student", "teachclip", tmp_path), [given], Recipe)


def older(labels: Path, folder: Path) -> Path:
    """The set as a version sealed it that measured no softness."""
    copytree(labels, folder)
    manifest = json.loads((folder / NAME).read_text())
    del manifest["config"]["softness"]
    write_json(folder / NAME, manifest | {"version": 1})
    return folder


def test_a_run_takes_logs_and_releases_the_temperatures(
    world: World, labels: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(logging.getLogger(), "handlers", [caplog.handler])
    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)
    sets, auto = [labels, older(labels, tmp_path / "older")], "{temperature: auto}"
    path = world.recipe("student", "teachclip", tmp_path, labels=[str(one) for one in sets])
    recipe = read_recipe(path, [f"losses.fine={auto}", f"losses.coarse={auto}"], Recipe)
    job, _ = prepare(recipe)
    known = StoredLabels(labels).config.softness
    assert known is not None and known.fine is not None and known.coarse is not None
    used = {"fine": known.fine.recommended, "coarse": known.coarse.recommended}
    assert [source.temperatures for source in job.sources] == [Temperatures(**used)] * 2
    for one in sets:
        assert f"{one}: losses.fine.temperature: auto is {known.fine.recommended:g}" in caplog.text
    assert f"{sets[1]}: sealed without temperatures; measured now" in caplog.text
    told = provenance(recipe, job, TRAINED, QUERY, None, {})
    assert told["temperatures"] == {"labels xclip": used, "labels older": used}
    card = model_card("teachclip", told, None, parameters=1)
    assert f"| temperatures of labels xclip (auto) | fine {used['fine']:g}, coarse {used['coarse']:g} |" in card
    plain = provenance(recipe, prepare(read_recipe(path, [], Recipe))[0], TRAINED, QUERY, None, {})
    assert plain["temperatures"] == {}


def test_flat_labels_are_named_in_one_line(
    world: World, labels: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch, capsys
):
    monkeypatch.setattr(logging.getLogger(), "handlers", [caplog.handler])
    known = StoredLabels(labels).config.softness
    assert known is not None and known.fine is not None and known.coarse is not None
    path = world.recipe("student", "teachclip", tmp_path, labels=[str(labels)])
    high = [f"losses.fine.temperature={1.1 * known.fine.flat}", f"losses.coarse.temperature={1.1 * known.coarse.flat}"]
    low = [f"losses.fine.temperature={0.9 * known.fine.flat}", f"losses.coarse.temperature={0.9 * known.coarse.flat}"]
    for changes, kinds in ((high, ["fine", "coarse"]), (low, []), ([high[0], low[1], "losses.fine.weight=0.0"], [])):
        caplog.clear()
        prepare(read_recipe(path, changes, Recipe))
        said = [message for message in caplog.messages if "labels are flat" in message]
        assert [message.partition(" labels are flat")[0] for message in said] == [f"{labels}: {kind}" for kind in kinds]
    tools.labels.main(["stats", str(labels)])
    shown = capsys.readouterr().out
    assert shown.count("at temperature 1") == 2
    for soft in (known.fine, known.coarse):
        assert f"{soft.recommended:.3g}" in shown and f"{soft.flat:.3g}" in shown
    assert ("flat" if known.fine.flat < 1 else "not flat") in shown


def test_a_set_that_recommends_nothing_is_refused_where_auto_asks(world: World, labels: Path, tmp_path: Path):
    folder = copytree(labels, tmp_path / "still")
    manifest = json.loads((folder / NAME).read_text())
    manifest["config"]["softness"]["fine"] = {"recommended": None, "flat": 0.0}
    write_json(folder / NAME, manifest)
    path = world.recipe("student", "teachclip", tmp_path, labels=[str(folder)])
    with pytest.raises(RecipeError, match=r"losses\.fine\.temperature: auto, but .*still recommends none"):
        prepare(read_recipe(path, ["losses.fine.temperature=auto"], Recipe))
    assert losses_while_learning(read_recipe(path, ["losses.fine.temperature=0.1"], Recipe), 1)


def test_sealing_again_gives_the_same_manifest(world: World, tmp_path: Path):
    folder = write_labels(world, "xpool", tmp_path / "labels")
    first = (folder / NAME).read_bytes()
    (folder / NAME).unlink()
    manifest = seal_labels(folder)
    assert manifest is not None and (folder / NAME).read_bytes() == first
    assert manifest.id == json_sha256(json.loads(first))
