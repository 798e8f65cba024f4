import pytest
import torch

from shared.data import ContrastiveRows, MixupTable
from shared.losses import MemoryBank


@pytest.fixture
def images():
    return torch.rand(5, 6, 4, 4, generator=torch.Generator().manual_seed(0))


def parents_of(table, entry):
    first, second = table.parents[entry].tolist()
    return first, second, float(table.weight[entry])


# --- the table ----------------------------------------------------------------------------------------------------


def test_originals_come_first_and_unmixed():
    table = MixupTable(5, ratio=3)
    assert len(table) == 20
    assert table.parents[:5].tolist() == [[i, i] for i in range(5)] and table.weight[:5].tolist() == [1.0] * 5


def test_mixtures_are_of_two_cases_with_beta_weights():
    table = MixupTable(5, ratio=400)
    first, second = table.parents[5:].T
    assert (first != second).all()
    assert first.unique().tolist() == second.unique().tolist() == [0, 1, 2, 3, 4]
    # every ordered pair about equally often
    assert torch.bincount(first * 5 + second, minlength=25)[[1, 5, 7, 23]].float().std() < 20
    weight = table.weight[5:]
    assert weight.min() >= 0 and weight.max() <= 1
    assert weight.mean() == pytest.approx(0.5, abs=0.03) and weight.var() == pytest.approx(1 / 12, abs=0.01)
    assert MixupTable(5, ratio=400, alpha=0.2).weight[5:].var() > 0.15  # Beta(0.2, 0.2): near 0 or 1


def test_a_seed_repeats_the_table():
    tables = [MixupTable(7, ratio=4, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(tables[0].parents, tables[1].parents) and torch.equal(tables[0].weight, tables[1].weight)
    assert not torch.equal(tables[0].parents, tables[2].parents)


def test_one_case_has_nobody_to_mix_with():
    assert len(MixupTable(1, ratio=30)) == 1


def test_a_negative_ratio_is_refused():
    with pytest.raises(ValueError, match=r"mixup ratio must be 0 \(none\) or more, got -1"):
        MixupTable(3, ratio=-1)


def test_mix_is_the_weighted_sum(images):
    table = MixupTable(5, ratio=3, seed=1)
    labels = torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 0, 1]), 2).double()
    entries = torch.tensor([0, 4, 5, 19, 12, 5])
    mixed, soft = table.mix(images, entries), table.mix(labels, entries)
    for row, entry in enumerate(entries.tolist()):
        i, j, weight = parents_of(table, entry)
        torch.testing.assert_close(mixed[row], weight * images[i] + (1 - weight) * images[j])
        torch.testing.assert_close(soft[row], weight * labels[i] + (1 - weight) * labels[j])
    assert torch.equal(mixed[:2], images[[0, 4]]) and soft.sum(dim=1).allclose(torch.ones(6, dtype=torch.float64))


# --- rows of the bank ---------------------------------------------------------------------------------------------


def test_rows_are_image_k_of_case_c(images):
    table = MixupTable(5, ratio=2, seed=3)
    rows = ContrastiveRows(images, table, num_modalities=3)
    assert len(rows) == 15 * 6 and rows[17] == {"row": 17}
    picked = torch.tensor([0, 29, 30, 64, 89, 64])
    batch = rows.batch(picked)
    assert batch.shape == (6, 1, 4, 4)
    for place, row in enumerate(picked.tolist()):
        case, k = divmod(row, 6)
        i, j, weight = parents_of(table, case)
        torch.testing.assert_close(batch[place, 0], weight * images[i, k] + (1 - weight) * images[j, k])
    torch.testing.assert_close(rows.batch(torch.arange(30))[:, 0], images.flatten(0, 1), atol=0, rtol=0)


@pytest.mark.parametrize(("kind", "modalities"), [("patient", 3), ("modality", 3), ("modality", 1), ("none", 3)])
def test_intra_positives_are_the_cases_images(images, kind, modalities):
    rows = ContrastiveRows(images, MixupTable(5, ratio=1), num_modalities=modalities, intra_positives=kind)
    found = rows.intra_positives(torch.arange(len(rows)))
    slices = 6 // modalities
    for row in range(len(rows)):
        expected = []
        for other in range(len(rows)):
            case, k = divmod(other, 6)
            same_modality = k // slices == row % 6 // slices
            if case == row // 6 and (kind == "patient" or (same_modality and kind == "modality") or other == row):
                expected.append(other)
        assert found[row].tolist() == expected


def test_groups_are_the_parents_of_every_row(images):
    table = MixupTable(5, ratio=2)
    groups = ContrastiveRows(images, table).groups
    assert groups.tolist() == [table.parents[row // 6].tolist() for row in range(15 * 6)]


def test_no_inter_patient_positive_shares_patient_or_parent(images):
    table = MixupTable(5, ratio=2)
    rows = ContrastiveRows(images, table)
    bank = MemoryBank(len(rows), 8)
    generator = torch.Generator().manual_seed(0)
    # embeddings that know the patient: without groups, every neighbour would be of the same patient
    centre = torch.eye(5, 8)
    z = table.weight[:, None] * centre[table.parents[:, 0]] + (1 - table.weight[:, None]) * centre[table.parents[:, 1]]
    z = z.repeat_interleave(6, 0) + 0.05 * torch.randn(len(rows), 8, generator=generator)
    bank.seed(torch.arange(len(rows)), z)

    def shared(positives):
        pairs = [(i, j) for i, listed in enumerate(positives.tolist()) for j in listed if j >= 0]
        own = [set(table.parents[row // 6].tolist()) for row in range(len(rows))]
        return len(pairs), sum(bool(own[i] & own[j]) for i, j in pairs)

    count, wrong = shared(bank.positives(80, 80, 2, groups=rows.groups))
    assert count > len(rows) and wrong == 0
    assert shared(bank.positives(80, 80, 2))[1] > 0.9 * len(rows)


def test_an_unknown_kind_of_positives_is_refused(images):
    with pytest.raises(ValueError, match='intra_positives must be "patient", "modality" or "none", got \'slice\''):
        ContrastiveRows(images, MixupTable(5), intra_positives="slice")
