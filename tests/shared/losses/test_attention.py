"""The losses of the attention networks against loops in float64."""

import math

import pytest
import torch

from shared.losses import AttentionConsistencyLoss, BalancedCrossEntropyLoss, LossAttentionLoss

LABELS = torch.tensor([0, 1, 1, 1])


def balanced(balance=True):
    return BalancedCrossEntropyLoss(LABELS, balance=balance).double()


def outputs(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    logits, instances = (
        torch.randn(len(rows), 2, generator=generator),
        torch.randn(len(rows), 3, 2, generator=generator),
    )
    attention = torch.rand(len(rows), 3, generator=generator).softmax(dim=1)
    return tuple(value.double().requires_grad_() for value in (logits, instances, attention))


def cross_entropy(logits, label, classes):
    shifted = [value + math.log(weight) for value, weight in zip(logits, classes, strict=True)]
    return math.log(sum(math.exp(value) for value in shifted)) - shifted[label]


@pytest.mark.parametrize("balance", [True, False])
def test_three_terms_over_epochs_equal_a_loop(balance):
    given = {"instance_weight": 0.7, "consistency_weight": 5.0, "ramp_epochs": 2, "momentum": 0.6}
    loss = LossAttentionLoss(balanced(balance), 4, 3, **given).double()
    classes = [4 / (2 * 1), 4 / (2 * 3)] if balance else [1.0, 1.0]
    remembered, seen = {row: [0.0] * 3 for row in range(4)}, dict.fromkeys(range(4), 0)
    # four epochs of two batches, in another order each
    for step, rows in enumerate([[0, 1], [3, 2], [2, 0], [1, 3], [3, 0], [1, 2], [0, 1], [2, 3]]):
        logits, instances, attention = outputs(rows, step)
        label = LABELS[rows]
        found = loss((logits, instances, attention), {"label": label, "row": torch.tensor(rows)})
        weights = [classes[y] for y in label.tolist()]
        bag = sum(w * cross_entropy(x, y, classes) for x, y, w in zip(logits.tolist(), label, weights, strict=True))
        instance = consistency = 0.0
        for b, row in enumerate(rows):
            alpha = attention[b].tolist()
            for i in range(3):
                instance += weights[b] * alpha[i] * cross_entropy(instances[b, i].tolist(), label[b], classes) / 3
            if seen[row]:
                ramp = math.exp(-5 * (1 - min(seen[row] / 2, 1)) ** 2)
                target = [value / (1 - 0.6 ** seen[row]) for value in remembered[row]]
                consistency += ramp * sum((a - t) ** 2 for a, t in zip(alpha, target, strict=True)) / 3 / len(rows)
            remembered[row] = [0.6 * z + 0.4 * a for z, a in zip(remembered[row], alpha, strict=True)]
            seen[row] += 1
        terms = {"bag": bag / sum(weights), "instance": instance / sum(weights), "consistency": consistency}
        # the classes' weights are those of a float32
        assert {name: value.item() for name, value in loss.terms().items()} == pytest.approx(terms, rel=1e-7, abs=1e-15)
        expected = terms["bag"] + 0.7 * terms["instance"] + 5.0 * terms["consistency"]
        assert found.item() == pytest.approx(expected, rel=1e-7)
        found.backward()
        assert (attention.grad != 0).all() and not loss.average.requires_grad
    assert consistency > 1e-4


def test_only_training_is_remembered_and_a_copy_goes_on_alike():
    loss = LossAttentionLoss(balanced(), 4, 3).double()
    target = {"label": LABELS[:2], "row": torch.tensor([0, 1])}
    loss.eval()(outputs([0, 1], 0), target)
    assert loss.seen.sum() == 0
    loss.train()(outputs([0, 1], 0), target)
    other = LossAttentionLoss(balanced(), 4, 3).double()
    other.load_state_dict(loss.state_dict())
    assert other(outputs([0, 1], 1), target) == loss(outputs([0, 1], 1), target) and loss.seen.tolist() == [2, 2, 0, 0]


def test_the_branches_attention_is_brought_together():
    loss, (logits, _, one), (_, _, other) = (
        AttentionConsistencyLoss(balanced(), consistency_weight=0.3),
        *(outputs([0, 1], seed) for seed in (0, 1)),
    )
    found = loss((logits, one, other), LABELS[:2])
    distance = sum((a - b) ** 2 for a, b in zip(one.flatten().tolist(), other.flatten().tolist(), strict=True)) / 2
    assert found.item() == pytest.approx(balanced()(logits, LABELS[:2]).item() + 0.3 * distance, abs=1e-12)
    assert loss.terms()["consistency"].item() == pytest.approx(distance, abs=1e-12)
    found.backward()
    torch.testing.assert_close(one.grad, 0.3 * (one - other).detach())
    torch.testing.assert_close(other.grad, -one.grad)
