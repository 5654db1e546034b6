"""The weighed loss: several teachers, named corrections of the published behaviour, captions of one video."""

import numpy as np
import pytest
import torch
import yaml
from conftest import World

from distill.config import read_recipe
from distill.errors import RecipeError
from distill.losses.contrastive import contrastive
from distill.losses.fine import fine
from distill.recipe import Recipe
from distill.training.objective import LossConfig, Target, weigh

torch.manual_seed(0)
LOGITS, TEACHERS = 3 * torch.randn(5, 5).double(), 3 * torch.randn(2, 5, 5).double()
SCORES, RELEVANCE = torch.randn(5, 4).double(), torch.randn(2, 5, 4).double()
REAL = torch.arange(4) < torch.tensor([4, 3, 1, 2, 4])[:, None]


def targets(*weights: float) -> list[Target]:
    return [
        Target(logits=logits, relevance=relevance, weight=weight)
        for logits, relevance, weight in zip(TEACHERS, RELEVANCE, weights, strict=True)
    ]


def alone(teacher: int) -> dict[str, torch.Tensor]:
    return weigh(LOGITS, SCORES, targets(1.0, 1.0)[teacher : teacher + 1], LossConfig())


def test_losses_of_several_teachers_are_averaged_by_weight():
    first, second = alone(0), alone(1)
    equal, three_to_one = (weigh(LOGITS, SCORES, targets(*w), LossConfig()) for w in ((1.0, 1.0), (3.0, 1.0)))
    for name in ("coarse", "fine"):
        assert equal[name].item() == pytest.approx(((first[name] + second[name]) / 2).item())
        assert three_to_one[name].item() == pytest.approx(((3 * first[name] + second[name]) / 4).item())
    parts = (0.2 * equal["contrastive"] + equal["coarse"] + 2 * equal["fine"]).item()
    assert equal["total"].item() == pytest.approx(parts)


def test_without_teachers_only_the_contrastive_term_remains():
    found = weigh(LOGITS, None, [], LossConfig())
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


def test_captions_of_one_video_are_no_negatives_when_masked():
    videos = torch.tensor([7, 3, 7, 1, 3])
    found = contrastive(LOGITS, videos)
    kept = (videos[:, None] != videos) | torch.eye(5, dtype=torch.bool)
    terms = []
    for side in (LOGITS.numpy(), LOGITS.T.numpy()):
        terms.append(np.mean([-np.log(softmax(side[i][kept[i].numpy()])[kept[i][:i].sum()]) for i in range(5)]))
    assert found.item() == pytest.approx(np.mean(terms))
    assert contrastive(LOGITS, torch.arange(5)) == contrastive(LOGITS)
    assert weigh(LOGITS, None, [], LossConfig(), videos=videos)["contrastive"] == found


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
