"""The weighed loss: several teachers, named corrections of the published behaviour, captions of one video."""

import numpy as np
import pytest
import torch
import yaml
from conftest import World
from labelling import random_teacher

from distill.config import read_recipe
from distill.data.batch import Batch
from distill.errors import RecipeError
from distill.experiment import prepare
from distill.losses.coarse import coarse
from distill.losses.contrastive import contrastive
from distill.losses.fine import fine, standardised
from distill.model.contract import TrainingScores
from distill.recipe import Recipe
from distill.training.lossconfig import LossConfig
from distill.training.objective import Objective, total_loss
from distill.training.teachers import TeacherScores

torch.manual_seed(0)
LOGITS, TEACHERS = 3 * torch.randn(5, 5).double(), 3 * torch.randn(2, 5, 5).double()
SCORES, RELEVANCE = torch.randn(5, 4).double(), torch.randn(2, 5, 4).double()
REAL = torch.arange(4) < torch.tensor([4, 3, 1, 2, 4])[:, None]


def targets(*weights: float) -> list[TeacherScores]:
    return [
        TeacherScores(logits=logits, relevance=relevance, weight=weight)
        for logits, relevance, weight in zip(TEACHERS, RELEVANCE, weights, strict=True)
    ]


def alone(teacher: int) -> dict[str, torch.Tensor]:
    return total_loss(TrainingScores.of(LOGITS, SCORES), targets(1.0, 1.0)[teacher : teacher + 1], LossConfig())


def test_losses_of_several_teachers_are_averaged_by_weight():
    first, second = alone(0), alone(1)
    equal, three_to_one = (
        total_loss(TrainingScores.of(LOGITS, SCORES), targets(*w), LossConfig()) for w in ((1.0, 1.0), (3.0, 1.0))
    )
    for name in ("coarse", "fine"):
        assert equal[name].item() == pytest.approx(((first[name] + second[name]) / 2).item())
        assert three_to_one[name].item() == pytest.approx(((3 * first[name] + second[name]) / 4).item())
    parts = (0.2 * equal["contrastive"] + equal["coarse"] + 2 * equal["fine"]).item()
    assert equal["total"].item() == pytest.approx(parts)


def test_without_teachers_only_the_contrastive_term_remains():
    found = total_loss(TrainingScores.of(LOGITS), [], LossConfig())
    assert found.keys() == {"total", "contrastive"}
    assert found["total"] == 0.2 * contrastive(LOGITS)


def softmax(scores: np.ndarray) -> np.ndarray:
    exp = np.exp(scores - scores.max())
    return exp / exp.sum()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", ["frame", "pair"])
def test_the_fine_loss_equals_a_numpy_oracle(masked: bool, reduction: str):
    rows = []
    for pair in range(5):
        kept = REAL[pair].numpy() if masked else np.ones(4, bool)
        student, teacher = SCORES[pair].numpy()[kept], RELEVANCE[0, pair].numpy()[kept]
        rows.append(-(softmax(teacher / 0.5) * np.log(softmax(student))))
    expected = np.concatenate(rows).mean() if reduction == "frame" else np.mean([row.sum() for row in rows])
    found = fine(SCORES, RELEVANCE[0], 0.5, REAL if masked else None, reduction=reduction)
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_is_hintons_distance_of_rows_and_columns(temperature: float):
    student, teacher = LOGITS[:, :3], TEACHERS[0][:, :3]  # rows and columns of other numbers
    expected = 0.0
    for own, other in ((student.numpy(), teacher.numpy()), (student.numpy().T, teacher.numpy().T)):
        rows = []
        for one, two in zip(own / temperature, other / temperature, strict=True):
            p, q = softmax(two), softmax(one)
            rows.append((p * np.log(p / q)).sum())
        expected += temperature**2 * np.mean(rows)
    found = coarse(student, teacher, temperature, "kl")
    assert found.item() == pytest.approx(expected) and coarse(teacher, teacher, temperature, "kl").item() < 1e-12


def test_kl_keeps_the_size_of_its_gradient_as_the_temperature_grows():
    """Hinton et al., section 2.1: at high temperatures it is that of half the squared distance of centred logits."""
    student = (0.1 * LOGITS).requires_grad_()
    teacher = 0.1 * TEACHERS[0]
    off = student - teacher
    by_row, by_column = (off - off.mean(axis, keepdim=True) for axis in (1, 0))
    expected = (by_row / 5 + by_column / 5) / 5  # over the number of columns, averaged over rows; and the other way
    (found,) = torch.autograd.grad(coarse(student, teacher, 1e4, "kl"), student)
    torch.testing.assert_close(found, expected.detach(), atol=1e-6, rtol=1e-3)


def test_captions_of_one_video_are_no_negatives_when_masked():
    videos = torch.tensor([7, 3, 7, 1, 3])
    found = contrastive(LOGITS, videos)
    kept = (videos[:, None] != videos) | torch.eye(5, dtype=torch.bool)
    terms = []
    for side in (LOGITS.numpy(), LOGITS.T.numpy()):
        terms.append(np.mean([-np.log(softmax(side[i][kept[i].numpy()])[kept[i][:i].sum()]) for i in range(5)]))
    assert found.item() == pytest.approx(np.mean(terms))
    assert contrastive(LOGITS, torch.arange(5)) == contrastive(LOGITS)
    assert total_loss(TrainingScores.of(LOGITS), [], LossConfig(), videos=videos)["contrastive"] == found


def test_label_sets_are_named_alone_or_with_a_weight(world: World, tmp_path):
    path = world.recipe("student", "teachclip", tmp_path, labels=["a", {"path": "b", "weight": 2.0}])
    recipe = read_recipe(path, [], Recipe)
    assert [(label.path, label.weight) for label in recipe.labels] == [("a", 1.0), ("b", 2.0)]
    assert [label.path for label in read_recipe(path, ["labels=[c]"], Recipe).labels] == ["c"]
    for wrong, words in (
        ({"path": "a", "weight": 0.0}, "labels.0.weight"),
        ({"weight": 1.0}, "labels.0.path: missing"),
    ):
        tree = yaml.safe_load(path.read_text()) | {"labels": [wrong]}
        path.write_text(yaml.safe_dump(tree))
        with pytest.raises(RecipeError, match=words):
            read_recipe(path, [], Recipe)


def test_several_targets_of_one_student_are_averaged_and_named():
    first, second = torch.randn(5, 4).double(), torch.randn(5, 4).double()
    scores = TrainingScores(
        contrasts=[(0.8, LOGITS), (0.2, 2 * LOGITS)],
        rankings={"coarse": LOGITS, "fine": 2 * LOGITS},
        frames={"gate": first, "pooling": second},
        own={"diversity": torch.tensor(0.5).double()},
    )
    found = total_loss(scores, targets(1.0, 1.0), LossConfig())
    gate, pooling, coarse, whole = (
        total_loss(scores, targets(1.0, 1.0), LossConfig.model_validate({section: {"targets": [place]}}))
        for section, place in (("fine", "gate"), ("fine", "pooling"), ("coarse", "coarse"), ("coarse", "fine"))
    )
    assert found["fine"].item() == pytest.approx(((gate["fine"] + pooling["fine"]) / 2).item())
    assert found["coarse"].item() == pytest.approx(((coarse["coarse"] + whole["coarse"]) / 2).item())
    expected = 0.8 * contrastive(LOGITS) + 0.2 * contrastive(2 * LOGITS)
    assert found["contrastive"].item() == pytest.approx(expected.item())
    total = 0.2 * found["contrastive"] + found["coarse"] + 2 * found["fine"] + 0.5
    assert found["total"].item() == pytest.approx(total.item())
    assert found["diversity"].item() == 0.5


def test_standardised_relevance_suits_teachers_of_any_scale():
    config = LossConfig.model_validate({"fine": {"standardise": True}})
    one, other = (
        total_loss(
            TrainingScores.of(LOGITS, SCORES), [TeacherScores(logits=TEACHERS[0], relevance=scaled)], config, real=REAL
        )
        for scaled in (RELEVANCE[0], 50 * RELEVANCE[0] + 7)
    )
    assert one["fine"].item() == pytest.approx(other["fine"].item(), rel=1e-4)
    row, kept = RELEVANCE[0, 1].numpy(), REAL[1].numpy()
    found = standardised(RELEVANCE[0], REAL)[1].numpy()
    np.testing.assert_allclose(found[kept], (row[kept] - row[kept].mean()) / row[kept].std(), rtol=1e-4)
    assert (found[~kept] == 0).all() and (standardised(RELEVANCE[0], REAL)[2] == 0).all()  # one frame has no spread


def test_labels_without_a_target_are_refused_with_the_targets_there_are(world: World, tmp_path):
    path = world.recipe("student", "teachclip", tmp_path, labels=["a"])
    with pytest.raises(
        RecipeError, match=r"fine\.targets: teachclip, as configured, has no .* called 'gate'; it has: pooling"
    ):
        read_recipe(path, ["losses.fine.targets=[gate]"], Recipe)
    plain = world.recipe("plain", "clip4clip", tmp_path, labels=["a"])
    with pytest.raises(RecipeError, match="fine: clip4clip has no frame scores to teach"):
        read_recipe(plain, [], Recipe)
    assert read_recipe(plain, ["losses.fine.weight=0.0", "losses.coarse.targets=[logits]"], Recipe).labels


def test_a_teacher_to_whom_all_are_equal_is_named_where_the_loss_is_no_number(world: World, tmp_path):
    recipe = read_recipe(world.recipe("student", "teachclip", tmp_path), [], Recipe)
    job, _ = prepare(recipe)
    head = random_teacher(world, "xpool").interaction
    objective = Objective(job.model, [(head, 1.0)], LossConfig(), bf16=False)
    rows = {"vector": torch.randn(4, 32), "frames": torch.randn(4, 12, 32), "real": torch.ones(4, 12)}
    for sentence, found in (
        (torch.randn(4, 32), None),
        (torch.randn(1, 32).expand(4, -1), "for 4 of 4 videos, all captions"),
    ):
        batch = Batch(
            videos=torch.arange(4),
            ids=torch.zeros(4, 24, dtype=torch.int64),
            frames=None,
            real=torch.ones(4, 12, dtype=torch.bool),
            labels=[{**rows, "sentence": sentence.contiguous(), "relevance": torch.randn(4, 12)}],
        )
        said = objective.why(batch)
        assert said == found or (said is not None and found is not None and said.startswith(found))
