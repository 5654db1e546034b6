"""The losses equal the authors' values and gradients, a NumPy oracle, and ignore what they should ignore."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from distill.losses.contrastive import contrastive
from distill.losses.coarse import coarse
from distill.losses.fine import fine
from distill.losses.pearson import pearson_distance

FIXTURES = Path(__file__).parent / "fixtures"


def det(*shape, seed, scale=1.0):
    return torch.from_numpy((np.random.RandomState(seed).randn(*shape) * scale).astype(np.float32)).double()


def softmax(scores):
    exp = np.exp(scores - scores.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def parts(logits, relevance, teachers, weights=(0.2, 1.0, 2.0)):
    """InfoNCE, coarse, fine and their weighted total over several teachers, as TeachCLIP trains."""
    found = {"infonce": contrastive(logits)}
    found["coarse"] = torch.stack([coarse(logits, label) for label, _ in teachers]).mean()
    found["fine"] = torch.stack([fine(relevance, label) for _, label in teachers]).mean()
    found["total"] = sum(weight * found[name] for weight, name in zip(weights, found, strict=True))
    return found


@pytest.mark.parametrize("num_teachers", [1, 2])
def test_losses_and_gradients_equal_the_authors(num_teachers):
    name = f"m13_teachclip_loss_{num_teachers}teacher"
    hyper = json.loads((FIXTURES / f"{name}.json").read_text())["hyper"]
    tensors = load_file(FIXTURES / f"{name}.safetensors")
    logits = tensors["input.student_logits"].double().requires_grad_()
    relevance = tensors["input.afa_scores"].double().requires_grad_()
    teachers = [
        # the stored relevance is already a softmax; its logarithm is a raw score with the same softmax
        (tensors[f"input.teacher{k}_logits"].double(), tensors[f"input.teacher{k}_relevance"].double().log())
        for k in range(1, hyper["teachers"] + 1)
    ]
    found = parts(logits, relevance, teachers, hyper["weights"])
    stored = {"infonce": 1e-9, "coarse": 1e-9, "fine": 1e-7, "total": 1e-7}  # relevance is stored in float32
    for part, value in found.items():
        assert value.item() == pytest.approx(tensors[f"output.{part}"].item(), abs=stored[part])
    inputs = {"student_logits": logits, "afa_scores": relevance}
    gradients = [key for key in tensors if key.startswith("output.grad.")]
    assert gradients
    for key in gradients:
        part, given_to = key.removeprefix("output.grad.").split(".")
        (gradient,) = torch.autograd.grad(found[part], inputs[given_to], retain_graph=True)
        assert (gradient - tensors[key]).abs().max() < (1e-9 if given_to == "student_logits" else 1e-7)


def test_contrastive_golden():
    logits = det(5, 5, seed=1, scale=3.0)
    columns = -np.log(np.diag(softmax(logits.numpy().T))).mean()
    assert contrastive(logits).item() == pytest.approx((1.8344908 + columns) / 2, abs=1e-6)


def test_teachclip_losses_golden():
    logits = (det(4, 4, seed=60, scale=3) + 4 * torch.eye(4)).requires_grad_()
    relevance = det(4, 5, seed=63).requires_grad_()
    one, two = (
        (det(4, 4, seed=logits_seed, scale=3) + 5 * torch.eye(4), det(4, 5, seed=relevance_seed, scale=0.2))
        for logits_seed, relevance_seed in ((61, 64), (62, 65))
    )
    found = parts(logits, relevance, [one])
    values = {"infonce": 1.6573750, "coarse": 1.2329063, "fine": 0.3921625, "total": 2.3487062}
    assert {part: value.item() for part, value in found.items()} == pytest.approx(values, abs=1e-6)
    found = parts(logits, relevance, [one, two])
    values = {"infonce": 1.6573750, "coarse": 1.5093255, "fine": 0.3860290, "total": 2.6128585}
    assert {part: value.item() for part, value in found.items()} == pytest.approx(values, abs=1e-6)
    found["total"].backward()
    row = torch.tensor([-0.0701503, 0.0009512, 0.0556170, 0.0000154], dtype=torch.float64)
    assert torch.allclose(logits.grad[0], row, atol=1e-6)
    row = torch.tensor([-0.0195138, 0.0367760, 0.0011383, -0.0159644, -0.0024362], dtype=torch.float64)
    assert torch.allclose(relevance.grad[0], row, atol=1e-6)


def test_losses_equal_a_numpy_oracle():
    student, teacher = det(5, 5, seed=7, scale=2), det(5, 5, seed=8, scale=2)
    expected = 0.0
    for s, t in ((student.numpy(), teacher.numpy()), (student.numpy().T, teacher.numpy().T)):
        expected += np.mean([1 - np.corrcoef(softmax(s)[i], softmax(t)[i])[0, 1] for i in range(5)])
    assert coarse(student, teacher).item() == pytest.approx(expected, abs=1e-12)
    scores, label = det(5, 4, seed=9), det(5, 4, seed=10)
    expected = -(softmax(label.numpy() / 0.5) * np.log(softmax(scores.numpy()))).mean()
    assert fine(scores, label, temperature=0.5).item() == pytest.approx(expected, abs=1e-12)
    rows, columns = (-np.log(np.diag(softmax(m))).mean() for m in (student.numpy(), student.numpy().T))
    assert contrastive(student).item() == pytest.approx((rows + columns) / 2, abs=1e-12)


@given(st.floats(0.1, 10), st.floats(-5, 5), st.integers(0, 99))
def test_pearson_distance_ignores_scale_and_offset(scale, offset, seed):
    teacher = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert pearson_distance(scale * teacher + offset, teacher).abs() < 1e-9


def test_pearson_distance_of_opposites_is_two_and_of_a_constant_row_is_nan():
    teacher = det(3, 6, seed=0)
    assert pearson_distance(-teacher, teacher).item() == pytest.approx(2)
    assert pearson_distance(torch.zeros(3, 6, dtype=torch.float64), teacher).isnan()


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(0, 99))
def test_fine_loss_with_a_mask_ignores_padding(num_padded, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    garbage = 1e3 * torch.randn(2, 3, num_padded, generator=generator, dtype=torch.float64)
    real = torch.ones(3, 5 + num_padded, dtype=torch.bool)
    real[:, 5:] = False
    padded = [torch.cat([x, g], dim=1) for x, g in zip((student, teacher), garbage, strict=True)]
    assert abs(fine(*padded, real=real) - fine(student, teacher)) < 1e-12


def test_fine_loss_of_a_video_of_padding_alone_is_finite():
    student = torch.randn(2, 4, requires_grad=True)
    real = torch.tensor([[True, True, False, False], [False] * 4])
    fine(student, torch.randn(2, 4), real=real).backward()
    assert student.grad.isfinite().all()


def test_fine_loss_is_least_when_student_equals_teacher():
    teacher = det(3, 5, seed=1)
    least = fine(teacher, teacher)
    assert all(fine(teacher + det(3, 5, seed=seed, scale=0.3), teacher) > least for seed in range(2, 12))


def test_half_precision_is_refused():
    half = torch.randn(3, 3).bfloat16()
    for loss in (lambda: contrastive(half), lambda: coarse(half, half), lambda: fine(half, half)):
        with pytest.raises(AssertionError):
            loss()
