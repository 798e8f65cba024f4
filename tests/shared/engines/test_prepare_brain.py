"""Batches of regions and tracts: what is reconstructed, and which pairs are no negatives."""

import torch

from shared.engines import PrepareRegions, PrepareTracts


def test_regions_are_to_become_themselves():
    rows = torch.rand(3, 8)
    given, target = PrepareRegions()({"rows": rows, "unit": torch.arange(3)})
    assert torch.equal(given, rows) and torch.equal(target, rows)


def test_the_same_tract_of_another_patient_is_no_negative():
    batch = {"rows": torch.rand(4, 8), "fa_rows": torch.rand(4, 2), "unit": torch.tensor([2, 0, 2, 5])}
    rows, exclude, (fa,), more = PrepareTracts()(batch)
    expected = [[i == j for j in batch["unit"].tolist()] for i in batch["unit"].tolist()]
    assert exclude.dtype == torch.bool and exclude.tolist() == expected and exclude[0, 2] and not exclude[0, 1]
    assert torch.equal(rows, batch["rows"]) and torch.equal(fa, batch["fa_rows"]) and more == {}
