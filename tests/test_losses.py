"""The losses equal a NumPy oracle and ignore what they should (the authors' numbers: test_parity, test_golden)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.losses.coarse import coarse
from distill.losses.contrastive import contrastive
from distill.losses.fine import fine
from distill.losses.pearson import pearson_distance


def det(*shape, seed, scale=1.0):
    return torch.from_numpy((np.random.RandomState(seed).randn(*shape) * scale).astype(np.float32)).double()


def softmax(scores):
    exp = np.exp(scores - scores.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


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
