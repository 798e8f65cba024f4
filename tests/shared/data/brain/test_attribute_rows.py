import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import nn
from torch.utils.data import DataLoader

from shared.data import AttributeRows, collate_patches
from shared.engines import PrepareRegions, PrepareTracts
from shared.errors import DataError
from shared.losses import EdgeContrastiveLoss, InfoNCELoss
from shared.networks import EdgeContrast, EdgeEncoder, NodeAutoencoder
from shared.transforms import BrainRowsd, RegionSampler, TractSampler
from tests.support.tiny_brain import tiny_atlas, tiny_cases


@pytest.fixture(scope="module")
def atlas():
    return tiny_atlas()


def prepared(cases, atlas, num_voxels=7):
    """The patients as they are kept for the whole training."""
    made = BrainRowsd(RegionSampler(atlas, num_voxels=num_voxels), TractSampler(atlas, num_voxels=num_voxels))
    return [made(case) for case in cases]


def test_rows_are_those_of_the_sampler_patient_by_patient(atlas):
    cases, sampler = tiny_cases(3), TractSampler(atlas, num_voxels=7)
    rows = AttributeRows(prepared(cases, atlas), "tract_rows", fa=True)
    assert len(rows) == 15 and rows.patients == ["P0", "P1", "P2"] and rows.num_units == 5
    batch = rows.__getitems__(range(15))
    assert batch["patient"].tolist() == [0] * 5 + [1] * 5 + [2] * 5 and batch["unit"].tolist() == [0, 1, 2, 3, 4] * 3
    assert torch.equal(batch["rows"], torch.cat([sampler(case["image"]) for case in cases]))
    assert torch.equal(batch["fa_rows"], torch.cat([sampler(case["fa"]) for case in cases]))


def test_a_batch_equals_each_row_alone_in_any_order(atlas):
    rows = AttributeRows(prepared(tiny_cases(2, fa=False), atlas, 11), "region_rows")
    picked = [7, 0, 7, 3]
    batch = rows.__getitems__(picked)
    assert set(batch) == {"rows", "patient", "unit"} and batch["rows"].shape == (4, 44)
    for k, index in enumerate(picked):
        assert all(torch.equal(rows[index][key], batch[key][k]) for key in batch)


def test_the_patients_voxels_are_neither_read_nor_copied_again(atlas):
    cases = prepared(tiny_cases(3), atlas)
    rows = AttributeRows(cases, "region_rows", patients=["P2", "P0"])
    assert rows.patients == ["P2", "P0"]
    kept = [voxels.data_ptr() for voxels in rows._voxels["rows"]]
    assert kept == [cases[k]["region_rows"].voxels.data_ptr() for k in (2, 0)]
    assert torch.equal(rows.__getitems__(range(5))["rows"], torch.as_tensor(cases[2]["region_rows"]))


def test_problems_of_all_patients_are_told_at_once(atlas):
    cases = tiny_cases(5)
    cases[0].pop("fa")
    cases[2]["image"] = cases[2]["image"][:3]
    cases[3].pop("fa")
    with pytest.raises(DataError) as error:
        AttributeRows(prepared(cases, atlas), "tract_rows", fa=True)
    problems = sorted(error.value.problems)
    assert problems[0].startswith("P0: has no 'fa'; leave the patient out of this stage")
    assert "P2: every patient has 4 volumes under 'tract_rows', this one 3" in problems[1]
    assert problems[2].startswith("P3: has no 'fa'")
    with pytest.raises(DataError, match="there is no patient to take rows from"):
        AttributeRows([], "tract_rows")
    with pytest.raises(DataError, match="P9: not among the prepared patients"):
        AttributeRows(prepared(tiny_cases(1), atlas), "tract_rows", patients=["P0", "P9"])


def test_an_fa_map_of_another_grid_is_refused(atlas):
    cases = tiny_cases(1)
    cases[0]["fa"] = torch.zeros(1, 5, 5, 5)
    with pytest.raises(DataError, match="P0, FA map, must lie on the atlas's grid"):
        prepared(cases, atlas)


def test_the_same_tract_of_other_patients_is_excluded(atlas):
    rows = AttributeRows(prepared(tiny_cases(3), atlas), "tract_rows", fa=True)
    picked = [0, 5, 1, 11, 4]  # tracts 0, 0, 1, 1, 4
    mri, exclude, (fa,), more = PrepareTracts()(rows.__getitems__(picked))
    assert mri.shape == (5, 28) and fa.shape == (5, 7) and more == {} and exclude.dtype == torch.bool
    assert exclude.tolist() == [[(a % 5) == (b % 5) for b in picked] for a in picked]


def trained(dataset, network, loss, prepare, optimiser, epochs):
    """Losses of a SupervisedTrainer as the bundle builds it."""
    losses = []
    loader = DataLoader(
        dataset, 10, shuffle=True, collate_fn=collate_patches, generator=torch.Generator().manual_seed(0)
    )
    trainer = SupervisedTrainer("cpu", epochs, loader, network, optimiser, loss, prepare_batch=prepare, decollate=False)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(float(engine.state.output["loss"].detach()))
    )
    trainer.run()
    per_epoch = len(loader)
    return [sum(losses[i : i + per_epoch]) / per_epoch for i in range(0, len(losses), per_epoch)]


def smooth(cases):
    """Volumes of a few planted patterns instead of noise, so that there is something to learn."""
    generator = torch.Generator().manual_seed(5)
    patterns = torch.randn(3, *cases[0]["image"].shape, generator=generator)
    for case in cases:
        weight = torch.randn(3, generator=generator)
        case["image"] = torch.einsum("k,kcxyz->cxyz", weight, patterns)
        case["fa"] = case["image"].mean(0, keepdim=True).sigmoid()
    return cases


def test_a_trainer_trains_the_node_autoencoder(atlas):
    rows = AttributeRows(prepared(smooth(tiny_cases(8)), atlas, 10), "region_rows")
    torch.manual_seed(0)
    network = NodeAutoencoder(40, widths=(32, 8))
    optimiser = torch.optim.Adam(network.parameters(), 3e-3, weight_decay=5e-4)
    losses = trained(rows, network, nn.MSELoss(), PrepareRegions(), optimiser, 25)
    assert losses[-1] < 0.4 * losses[0]


def test_a_trainer_trains_the_edge_encoders(atlas):
    rows = AttributeRows(prepared(smooth(tiny_cases(8)), atlas, 10), "tract_rows", fa=True)
    torch.manual_seed(0)
    network = EdgeContrast(EdgeEncoder(40, widths=(32, 8), head=(8, 8)), EdgeEncoder(10, widths=(16, 8), head=(8, 8)))
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    losses = trained(rows, network, EdgeContrastiveLoss(InfoNCELoss(0.1)), PrepareTracts(), optimiser, 25)
    assert losses[-1] < losses[0] - 1.0
    # the MRI of a tract finds its own FA among those of the other tracts
    network.eval()
    batch = rows.__getitems__(range(5))
    with torch.no_grad():
        z, z_fa = network(batch["rows"], batch["fa_rows"])
    nearest = nn.functional.cosine_similarity(z[:, None], z_fa[None], dim=2).argmax(dim=1)
    assert (nearest == torch.arange(5)).float().mean() >= 0.8
