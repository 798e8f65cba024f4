"""Balanced classes in training, probabilities of the population afterwards."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy

from shared.losses import BalancedCrossEntropyLoss, balanced_class_weights


def unbalanced(count=4000, *, seed=0):
    """A logistic model's features and labels, a tenth or so of them positive, in float64."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((count, 2))
    odds = -2.6 + x @ [1.0, -0.5]
    return torch.tensor(x), torch.tensor((random.random(count) < 1 / (1 + np.exp(-odds))).astype(int))


def fitted(loss, x, labels):
    """Probabilities of class 1 after a linear layer has been trained to the end."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 2).double()
    if isinstance(loss, BalancedCrossEntropyLoss):
        loss.start(layer)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(layer(x), labels)
        value.backward()
        return value

    optimizer.step(closure)
    return layer(x).softmax(1)[:, 1].detach().numpy()


def test_probabilities_of_balanced_training_are_those_of_a_regression_without_weights():
    x, labels = unbalanced()
    prevalence = labels.double().mean().item()
    assert 0.08 < prevalence < 0.15
    found = fitted(BalancedCrossEntropyLoss(labels).double(), x, labels)
    assert found.mean() == pytest.approx(prevalence, abs=0.01)  # in the large
    plain = LogisticRegression(C=np.inf, tol=1e-10, max_iter=500).fit(x.numpy(), labels.numpy())
    assert np.abs(found - plain.predict_proba(x.numpy())[:, 1]).max() < 0.05
    # weights alone, as it was: a score at prevalence one half
    weights = balanced_class_weights(labels).double()
    scores = fitted(lambda logits, target: cross_entropy(logits, target, weights), x, labels)
    assert scores.mean() > prevalence + 0.15
    # only the threshold moves: the order of the patients is that of the weights alone
    assert np.array_equal(np.argsort(found), np.argsort(scores))


def test_rows_that_a_sampler_balanced_are_not_weighted_again():
    x, labels = unbalanced()
    index = torch.multinomial(
        1 / labels.bincount()[labels].double(), 6000, True, generator=torch.Generator().manual_seed(0)
    )
    loss = BalancedCrossEntropyLoss(labels, sampled=True).double()
    assert loss.weight is None
    drawn, truth = x[index], labels[index]
    found = fitted(loss, drawn, truth)
    plain = LogisticRegression(C=np.inf, tol=1e-10, max_iter=500).fit(x.numpy(), labels.numpy())
    assert np.abs(found - plain.predict_proba(drawn.numpy())[:, 1]).max() < 0.08
    assert found.mean() < 0.3 < truth.double().mean().item()


def test_training_starts_where_all_classes_are_equal():
    labels = torch.tensor([0, 1, 1, 1, 2, 2])
    loss, layer, x = BalancedCrossEntropyLoss(labels, 3), torch.nn.Linear(4, 3), torch.randn(5, 4)
    target = torch.tensor([0, 1, 2, 2, 1])
    expected = cross_entropy(layer(x), target, balanced_class_weights(labels, 3))
    before = layer.bias.detach().clone()
    loss.start(layer)
    torch.testing.assert_close(loss(layer(x), target), expected)
    frequencies = (layer.bias.detach() - before).softmax(0)
    torch.testing.assert_close(frequencies, torch.tensor([1 / 6, 3 / 6, 2 / 6]))


@pytest.mark.parametrize("target", [torch.tensor([0, 1]), torch.tensor([[0.7, 0.3], [0.2, 0.8]])])
def test_without_balance_it_is_the_plain_cross_entropy(target):
    loss, logits = BalancedCrossEntropyLoss(torch.tensor([0, 1, 1]), balance=False), torch.randn(2, 2)
    assert torch.equal(loss(logits, target), cross_entropy(logits, target)) and not loss.state_dict()
