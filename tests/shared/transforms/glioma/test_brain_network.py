import logging

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from shared.data import pad_incidence
from shared.errors import DataError
from shared.transforms import BrainRowsd, RegionSampler, TractIncidence, TractSampler
from tests.references.brain_network import rows_of, tracts_at
from tests.support.tiny_brain import AFFINE, SHAPE, centre, tiny_atlas, tiny_volume


@pytest.fixture(scope="module")
def atlas():
    return tiny_atlas(source="tiny.npz")


# --- voxels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RegionSampler, TractSampler])
@pytest.mark.parametrize("channels", [1, 4])
def test_rows_are_the_voxels_of_the_lists_channel_by_channel(atlas, kind, channels):
    sampler, image = kind(atlas, num_voxels=30), tiny_volume(channels)
    assert sampler(image).tolist() == rows_of(image, sampler.index)
    # a second number of channels does not disturb the first
    sampler(tiny_volume(2))
    assert sampler(image).tolist() == rows_of(image, sampler.index)


@pytest.mark.parametrize("kind", [RegionSampler, TractSampler])
def test_a_batch_equals_each_patient_alone(atlas, kind):
    sampler, images = kind(atlas, num_voxels=20), torch.stack([tiny_volume(3, seed=i) for i in range(4)])
    together = sampler(images)
    assert together.shape == (4, 5, 60)
    for image, rows in zip(images, together, strict=True):
        assert torch.equal(sampler(image), rows)
    turned = images.permute(0, 1, 4, 3, 2).contiguous().permute(0, 1, 4, 3, 2)  # other strides, same values
    assert torch.equal(sampler(turned), together)


def test_every_voxel_of_a_part_is_drawn_equally_often_up_to_one(atlas):
    inside = [set(np.flatnonzero(atlas.regions == r + 1).tolist()) for r in range(5)]
    tracts = [set(atlas.tract(edge)[0].tolist()) for edge in range(5)]
    for kind, parts in ((RegionSampler, inside), (TractSampler, tracts)):
        for count in (7, 50, 1000):
            for row, part in zip(kind(atlas, num_voxels=count).index.tolist(), parts, strict=True):
                values, times = np.unique(row, return_counts=True)
                assert set(values.tolist()) <= part and len(row) == count and row == sorted(row)
                assert set(times.tolist()) <= {count // len(part), count // len(part) + 1}


def test_the_lists_are_fixed_by_the_seed_and_differ_with_it(atlas):
    first, again, other = (TractSampler(atlas, num_voxels=20, seed=seed).index for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_only_voxels_above_the_threshold_are_drawn(atlas):
    sampler = TractSampler(atlas, num_voxels=40, threshold=0.3)
    for edge, row in enumerate(sampler.index):
        voxels, probabilities = atlas.tract(edge)
        kept = voxels[probabilities > 0.3]
        assert 0 < len(kept) < len(voxels) and set(row.tolist()) <= set(kept.tolist())
        assert len(set(row.tolist())) == min(40, len(kept))
    with pytest.raises(DataError, match=r"tiny\.npz: tract 0, .* has no voxel to sample; lower the threshold"):
        TractSampler(atlas, threshold=1.0)


def test_parts_smaller_than_the_sample_are_said_once(atlas, caplog):
    with caplog.at_level(logging.INFO, "shared.transforms.glioma.brain_network"):
        sampler = RegionSampler(atlas, num_voxels=50)
    assert (
        sampler.small == 1 and "1 of 5 regions have fewer than the 50 voxels sampled (the smallest: 12)" in caplog.text
    )
    caplog.clear()
    with caplog.at_level(logging.INFO, "shared.transforms.glioma.brain_network"):
        assert RegionSampler(atlas, num_voxels=12).small == 0 and not caplog.text


def test_volumes_of_another_grid_are_refused(atlas):
    sampler = RegionSampler(atlas, num_voxels=9)
    with pytest.raises(
        DataError, match=r"P3 must lie on the atlas's grid 14 x 16 x 12 \(tiny\.npz\), but has 8 x 8 x 8"
    ):
        sampler(torch.zeros(4, 8, 8, 8), patient="P3")
    elsewhere = MetaTensor(tiny_volume(), affine=torch.eye(4))
    with pytest.raises(DataError, match="P3 must lie on the atlas's grid, but its voxels lie elsewhere"):
        sampler(elsewhere, patient="P3")
    right = MetaTensor(tiny_volume(), affine=torch.from_numpy(AFFINE))
    assert torch.equal(sampler(right), sampler(tiny_volume())) and type(sampler(right)) is torch.Tensor
    with pytest.raises(DataError, match=r"a volume is \[C, X, Y, Z\] or \[B, C, X, Y, Z\], got \[14, 16, 12\]"):
        sampler(torch.zeros(SHAPE))
    with pytest.raises(DataError, match="num_voxels must be at least 1"):
        RegionSampler(atlas, num_voxels=0)


# --- incidence ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dilation", [0, 1, 2])
@pytest.mark.parametrize("threshold", [0.05, 0.4])
def test_tracts_at_points_equal_those_found_one_by_one(atlas, threshold, dilation):
    # some of them outside the grid
    points = np.random.default_rng(0).uniform(-24, 24, (150, 3))
    found = TractIncidence(atlas, threshold=threshold, dilation=dilation)(points)
    wanted = [tracts_at(point, atlas, threshold, dilation) for point in points]
    assert [[t for t in row if t >= 0] for row in found.tolist()] == wanted
    assert found.shape[1] == max(map(len, wanted)) and any(wanted) and not all(wanted)
    assert all(row == [*sorted(t for t in row if t >= 0), *(t for t in row if t < 0)] for row in found.tolist())


def test_tracts_at_the_edge_of_the_grid_do_not_grow_round_it():
    """A tract along the last voxels of every axis: flat indices of neighbours would lie on the other side."""
    from shared.data import TractAtlas

    regions = np.zeros((3, 3, 3), dtype=int)
    regions[0, 0, 0], regions[2, 2, 2] = 1, 2
    atlas = TractAtlas(
        pairs=[[0, 1]],
        counts=[5],
        starts=[0, 1],
        voxels=[26],
        probabilities=[1.0],
        regions=regions,
        affine=np.eye(4),
        names=["a", "b"],
    )
    points = np.argwhere(np.ones((3, 3, 3))).astype(float)
    found = TractIncidence(atlas)(points)[:, 0].reshape(3, 3, 3)
    assert [tuple(i) for i in np.argwhere(found.numpy() == 0)] == [(1, 2, 2), (2, 1, 2), (2, 2, 1), (2, 2, 2)]


def test_points_in_the_middle_of_a_tract_lie_on_it_and_far_ones_on_none(atlas):
    incidence = TractIncidence(atlas)
    middle = (centre(0) + centre(1)) / 2
    assert 0 in incidence(middle[None])[0].tolist()
    assert incidence(np.array([[500.0, 0, 0]])).tolist() == [[-1]]
    with pytest.raises(DataError, match=r"points must be \[P, 3\] in mm, got \[4, 2\]"):
        incidence(np.zeros((4, 2)))


def test_a_few_streamlines_leave_the_threshold_nothing_to_filter(atlas):
    """12 lines: the rarest voxel has a probability of 1 / 12."""
    assert atlas.counts.max() == 12 and atlas.probabilities.min() == pytest.approx(1 / 12)
    points = np.random.default_rng(1).uniform(-14, 10, (80, 3))
    assert torch.equal(TractIncidence(atlas)(points), TractIncidence(atlas, threshold=0.0)(points))


def test_patients_with_different_numbers_of_tracts_are_padded():
    a, b = torch.tensor([[0, 1, 2], [1, -1, -1]]), torch.tensor([[4], [-1]])
    assert pad_incidence([a, b]).tolist() == [a.tolist(), [[4, -1, -1], [-1, -1, -1]]]


# --- one patient --------------------------------------------------------------------------------------------------


def test_one_patients_rows_and_incidence(atlas):
    regions, tracts, incidence = (
        RegionSampler(atlas, num_voxels=8),
        TractSampler(atlas, num_voxels=6),
        TractIncidence(atlas),
    )
    image, points = tiny_volume(), torch.randn(10, 3)
    case = {"image": image, "affine": AFFINE, "points": points, "centroid": torch.tensor(centre(4)), "patient": "P1"}
    out = BrainRowsd(regions, tracts, incidence)(case)
    for rows, sampler in ((out["region_rows"], regions), (out["tract_rows"], tracts)):
        assert torch.equal(torch.as_tensor(rows), sampler(image)) and rows.shape == sampler(image).shape
    assert torch.equal(out["incidence"], incidence(points.double() + torch.tensor(centre(4))))
    alone = BrainRowsd(regions, tracts)({"image": image, "patient": "P1"})
    assert torch.equal(*(torch.as_tensor(x["region_rows"]) for x in (alone, out))) and "incidence" not in alone


def test_of_a_patient_each_voxel_is_kept_once_however_many_rows_read_it(atlas):
    regions, tracts = RegionSampler(atlas, num_voxels=500), TractSampler(atlas, num_voxels=500)
    image = tiny_volume(3)
    out = BrainRowsd(regions, tracts)({"image": image, "affine": AFFINE})
    kept = {rows.voxels.untyped_storage().data_ptr(): rows.voxels for rows in (out["region_rows"], out["tract_rows"])}
    read = len({*regions.index.flatten().tolist(), *tracts.index.flatten().tolist()})
    assert [voxels.shape for voxels in kept.values()] == [(3, read)]
    # as rows these would be 10 x 1,500 numbers, and the volume itself does not stay alive
    assert sum(x.untyped_storage().nbytes() for x in kept.values()) == 12 * read < 4 * image.numel() < 60_000


def test_a_patient_that_cannot_be_used_is_named(atlas):
    transform = BrainRowsd(RegionSampler(atlas, num_voxels=8), TractSampler(atlas, num_voxels=6))
    with pytest.raises(DataError, match="P9 must lie on the atlas's grid, but its voxels lie elsewhere"):
        transform({"image": tiny_volume(), "affine": np.eye(4), "patient": "P9"})
    with pytest.raises(DataError, match="P9: the images hold NaN or Inf"):
        transform({"image": tiny_volume() * float("nan"), "affine": AFFINE, "patient": "P9"})
