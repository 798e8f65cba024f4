import logging

import numpy as np
import pytest
import torch

from shared.networks.glioma.population_edges import VARIANTS, correlation_edges, graph_inputs, graph_report
from tests.references import population_graph as reference


@pytest.mark.parametrize("theta", [-0.2, 0.0, 0.5])
@pytest.mark.parametrize("banked", [False, True])
def test_equation_8_equals_the_naive_loop(banked, theta):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(15, 6, generator=generator, dtype=torch.float64)
    bank = torch.randn(9, 6, generator=generator, dtype=torch.float64) if banked else None
    weight, mask = correlation_edges(features, bank, theta=theta)
    wanted = reference.edge_weights(features.tolist(), bank.tolist() if banked else None, theta)
    torch.testing.assert_close(weight, torch.tensor(wanted, dtype=torch.float64), atol=1e-12, rtol=0)
    assert mask.sum() == np.count_nonzero(wanted) and 0 < mask.sum() < mask.numel()


def test_equation_8_equals_numpy_and_is_symmetric():
    features = torch.randn(30, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight, mask = correlation_edges(features, theta=0.3)
    r = np.corrcoef(features.numpy())
    r[(r < 0.3) | np.eye(30, dtype=bool)] = 0
    np.testing.assert_allclose(weight.numpy(), r, atol=1e-12)
    assert (mask == mask.t()).all() and not mask.diagonal().any()


def test_closed_forms():
    ramp = torch.tensor([[0.0, 1.0, 2.0]])
    assert correlation_edges(ramp, 5 * ramp + 7)[0].item() == pytest.approx(1)  # scale and offset do not matter
    assert correlation_edges(ramp, -ramp)[1].item() is False
    weight, mask = correlation_edges(ramp, torch.tensor([[1.0, 1.0, 2.0]]), theta=3**0.5 / 2 - 1e-6)
    assert mask.item() and weight.item() == pytest.approx(3**0.5 / 2)
    # who does not vary correlates with nobody, also where any correlation would do
    weight, mask = correlation_edges(torch.full((2, 3), 0.1), torch.cat([ramp, ramp]), theta=-1)
    assert not mask.any() and weight.abs().max() == 0


def test_order_of_patients_does_not_matter():
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(2))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    weight, mask = correlation_edges(features)
    again, joined = correlation_edges(features[order])
    torch.testing.assert_close(again, weight[order][:, order])
    assert (joined == mask[order][:, order]).all()


def test_the_five_graphs_of_table_1():
    tumour, brain = torch.zeros(2, 4), torch.ones(2, 3)
    both = torch.cat([tumour, brain], dim=1)
    wanted = {
        "tumour-brain": (tumour, brain),
        "brain-tumour": (brain, tumour),
        "both-brain": (both, brain),
        "both-tumour": (both, tumour),
        "both-both": (both, both),
    }
    assert set(VARIANTS) == set(wanted)
    for name, parts in wanted.items():
        assert all(torch.equal(a, b) for a, b in zip(graph_inputs(tumour, brain, name), parts, strict=True))
    assert graph_inputs(tumour, brain)[1] is brain
    with pytest.raises(ValueError, match=r"one of Table 1, tumour-brain.*got 'brain-brain'"):
        graph_inputs(tumour, brain, "brain-brain")


def test_report_counts_a_path_of_four_and_one_alone():
    mask = torch.zeros(5, 5, dtype=torch.bool)
    for i, j in ((0, 1), (1, 2), (2, 3)):
        mask[i, j] = mask[j, i] = True
    report = graph_report(mask, torch.tensor([1, 1, 0, 0, 0]))
    assert (report.patients, report.edges) == (5, 3)
    assert report.density == pytest.approx(0.3) and report.isolated == pytest.approx(0.2)
    assert report.homophily == pytest.approx(2 / 3) and report.chance == pytest.approx((1 + 3) / 10)
    empty = graph_report(torch.zeros(3, 3, dtype=torch.bool), torch.tensor([0, 1, 0]))
    assert empty.homophily is None and empty.isolated == 1.0


def test_warns_above_30_percent_only(caplog):
    half = torch.zeros(10, 10, dtype=torch.bool)
    half[:6, :6] = True
    half.fill_diagonal_(False)  # 30 of 90
    with caplog.at_level(logging.WARNING):
        graph_report(torch.zeros(10, 10, dtype=torch.bool))
        assert not caplog.records
        graph_report(half, log=False)
        assert not caplog.records
        graph_report(half)
    assert "joins 33 % of all pairs, more than 30 %" in caplog.text
