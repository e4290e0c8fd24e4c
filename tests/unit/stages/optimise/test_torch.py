"""Pruning, distillation and quantisation-aware training."""

from __future__ import annotations

from itertools import pairwise

import pytest

pytest.importorskip("torch")

import torch

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.stages.optimise import torch as kit


def perceptron(*widths, seed=0):
    torch.manual_seed(seed)
    layers = []
    for a, b in pairwise(widths):
        layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def rows(count=512, columns=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(count, columns, generator=generator)
    return matrix, (matrix[:, 0] - matrix[:, 1] * matrix[:, 2] > 0).float()


def fit(model, steps=60, loss=None):
    matrix, labels = rows()
    loss = loss or (lambda logits: torch.nn.functional.binary_cross_entropy_with_logits(logits, labels))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    model.train()
    for _ in range(steps):
        value = loss(model(matrix).squeeze(1))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return float(value.detach())


class TestMagnitude:
    def test_the_smallest_weights_stay_zero_while_training_goes_on(self):
        model = perceptron(6, 32, 1)
        every = torch.cat([layer.weight.detach().abs().flatten() for layer in (model[0], model[2])])
        kit.prune_magnitude(model, 0.5)
        fit(model, 5)
        kit.finish_pruning(model)
        weights = torch.cat([layer.weight.detach().flatten() for layer in (model[0], model[2])])
        assert ((weights == 0) == (every < every.median() + 1e-9)).float().mean() > 0.98
        assert set(model.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}

    def test_a_module_without_layers(self):
        with pytest.raises(SpecError, match="the module has none"):
            kit.prune_magnitude(torch.nn.ReLU(), 0.5)
        with pytest.raises(SpecError, match="give a fraction"):
            kit.prune_magnitude(perceptron(2, 1), 50)


class TestShrink:
    def test_matrices_are_smaller(self):
        small = kit.shrink(perceptron(6, 32, 16, 1), 0.5)
        assert [tuple(p.shape) for p in small.parameters()] == [(16, 6), (16,), (8, 16), (8,), (1, 8), (1,)]

    def test_units_that_do_nothing_go_first_and_nothing_changes(self):
        model = perceptron(6, 8, 1)
        with torch.no_grad():
            model[2].weight[:, [1, 4, 6]] = 0
        matrix, _ = rows()
        small = kit.shrink(model, 3 / 8)
        assert small[0].out_features == 5
        assert torch.allclose(small(matrix), model(matrix), atol=1e-6)
        assert model[0].out_features == 8  # the model itself stays

    def test_what_it_cannot_take(self):
        with pytest.raises(SpecError, match="got 1 linear"):
            kit.shrink(perceptron(6, 1), 0.5)
        with pytest.raises(SpecError, match="BatchNorm1d"):
            kit.shrink(torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)), 0.5)


class TestDistillation:
    def test_loss_is_least_where_student_and_teacher_agree(self):
        teacher = torch.tensor([0.1, 0.5, 0.9])
        agree = torch.logit(teacher).requires_grad_()
        kit.distillation_loss(agree, teacher).backward()
        assert torch.allclose(agree.grad, torch.zeros(3), atol=1e-6)

    def test_of_the_labels_alone_it_is_cross_entropy(self):
        logits, labels = torch.tensor([0.3, -1.0]), torch.tensor([1.0, 0.0])
        found = kit.distillation_loss(logits, torch.tensor([0.2, 0.2]), labels, weight=0.0)
        assert torch.isclose(found, torch.nn.functional.binary_cross_entropy_with_logits(logits, labels))

    def test_a_certain_teacher_gives_finite_numbers(self):
        assert torch.isfinite(kit.distillation_loss(torch.zeros(2), torch.tensor([0.0, 1.0])))

    def test_a_student_learns_its_teacher_without_labels(self):
        teacher, student = perceptron(6, 64, 64, 1), perceptron(6, 16, 1, seed=2)
        fit(teacher)
        matrix, _ = rows()
        with torch.no_grad():
            scores = torch.sigmoid(teacher(matrix).squeeze(1))
        before = (torch.sigmoid(student(matrix).squeeze(1)) - scores).abs().mean()
        fit(student, 150, lambda logits: kit.distillation_loss(logits, scores))
        after = (torch.sigmoid(student(matrix).squeeze(1)) - scores).abs().mean()
        assert after < before / 4


class TestQat:
    def test_the_converted_module_scores_as_the_trained_one(self):
        matrix, _ = rows()
        model = kit.prepare_qat(perceptron(6, 32, 1))
        first, last = fit(model, 1), fit(model, 60)
        assert last < first
        model.eval()
        for layer in (model[0], model[2]):
            layer.of_input.disable_observer()
        with torch.no_grad():
            rounded = model(matrix)
            integers = kit.convert_qat(model)(matrix)
        apart = (rounded - integers).abs()
        assert apart.median() < 1e-4  # but for values that lie half-way between two codes
        assert apart.max() < 0.01 * rounded.abs().max()
        assert model[0].weight.dtype == torch.int8
        assert int(model[0].weight.abs().max()) == 63

    def test_what_cannot_be_done(self):
        with pytest.raises(SpecError, match="the module has none"):
            kit.prepare_qat(torch.nn.Sequential(torch.nn.ReLU()))
        with pytest.raises(SpecError, match="call that first"):
            kit.convert_qat(perceptron(2, 1))
        with pytest.raises(SpecError, match="never saw a row"):
            kit.convert_qat(kit.prepare_qat(perceptron(2, 1)))
