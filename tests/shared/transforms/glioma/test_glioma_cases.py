import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, NormalizeIntensity
from scipy.ndimage import distance_transform_edt

from shared.data import GliomaCases, GliomaRows, collate_glioma
from shared.data.brain.atlas import TractAtlas
from shared.errors import DataError
from shared.transforms import LoadGliomad, PrepareGliomad, TractSampler
from shared.transforms.glioma.cases import standardised
from tests.support.tiny_brain import AFFINE, SHAPE, tiny_atlas
from tests.support.tiny_glioma import write_case

SETTINGS = {"size": 16, "num_points": 32, "radii": (8.0, 14.0), "num_voxels": 8}


@pytest.fixture(scope="module")
def atlas():
    return tiny_atlas()


def absolute(folder, case):
    """The entry as a datalist gives it."""
    images = [str(folder / path) for path in case["image"]]
    return {**case, "image": images, "mask": str(folder / case["mask"]), "fa": str(folder / case["fa"])}


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    return [absolute(folder, write_case(folder, f"P{k}", k % 2, 50 + k)) for k in range(3)]


def test_volumes_are_standardised_over_the_healthy_brain_and_fa_is_loaded_where_asked_for(atlas, entries):
    case = LoadGliomad(atlas, fa=True)(entries[0])
    assert case["image"].shape == (4, *SHAPE) and case["mask"].dtype == torch.bool and case["fa"].shape == (1, *SHAPE)
    # naive: the distance to every voxel of the tumour
    places = np.argwhere(np.ones(SHAPE)) * 2.0
    inside = case["mask"][0].numpy()
    distance = np.linalg.norm(places[:, None] - places[inside.ravel()][None], axis=-1).min(axis=1).reshape(SHAPE)
    for path, volume in zip(entries[0]["image"], case["image"].numpy(), strict=True):
        stored = nib.load(path).get_fdata()
        healthy = stored[(stored != 0) & (distance > 4)]
        expected = np.where(stored != 0, (stored - healthy.mean()) / healthy.std(), 0)
        np.testing.assert_allclose(volume, expected, atol=1e-5)
        assert abs(volume[(stored != 0) & (distance > 4)].mean()) < 1e-5 < abs(volume[stored != 0].mean())
    assert "fa" not in (LoadGliomad(atlas)(entries[0])).keys() - entries[0].keys()


def test_a_sequence_that_is_lacking_is_0_and_the_others_are_as_they_were(atlas, entries):
    whole = LoadGliomad(atlas)(entries[0])["image"]
    case = {**entries[0], "lacking": {"T2": 1, "FLAIR": 3}}
    cases = GliomaCases([entries[1], case], Compose([LoadGliomad(atlas), PrepareGliomad(atlas, **SETTINGS)]))
    lacking, files = (LoadGliomad(atlas)(case)[key] for key in ("image", "files"))
    assert files["lacking"] == case["lacking"] and "lacking" not in LoadGliomad(atlas)(entries[0])["files"]
    assert torch.equal(lacking[[0, 2]], whole[[0, 2]]) and not lacking[[1, 3]].any() and whole[[1, 3]].any()
    assert cases[0]["lacking"] == "" and cases[1]["lacking"] == "T2, FLAIR"
    rows = torch.as_tensor(cases.items[1]["tract_rows"]).unflatten(1, (4, -1))
    assert rows[:, [0, 2]].any() and not rows[:, [1, 3]].any()


def test_a_model_from_before_the_margin_keeps_its_numbers(atlas, entries):
    loaded = LoadGliomad(atlas, margin=None)(entries[0])["image"]
    stored = torch.stack([torch.from_numpy(nib.load(path).get_fdata()).float() for path in entries[0]["image"]])
    expected = NormalizeIntensity(nonzero=True, channel_wise=True)(stored)
    np.testing.assert_allclose(loaded.numpy(), np.asarray(expected), atol=1e-5)
    assert not torch.allclose(loaded, LoadGliomad(atlas)(entries[0])["image"], atol=1e-2)
    assert PrepareGliomad(atlas, **SETTINGS, margin=4.0)(LoadGliomad(atlas)(entries[0]))["tract_rows"].shape == (5, 32)


def test_a_far_tract_does_not_tell_the_volume_of_the_tumour(tmp_path):
    """200 ml of tumour, and none, 60 mm from a tract: its voxels have the same values."""
    shape, affine = (40, 50, 30), np.diag([4.0, 4, 4, 1])
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) * 4.0
    regions = np.zeros(shape, np.int16)
    regions[4:6, 3:5, 14:16], regions[34:36, 3:5, 14:16] = 1, 2
    line = np.linspace([18.0, 14, 58], [138.0, 14, 58], 30)
    far = TractAtlas.from_streamlines([line] * 3, regions, affine, shape=shape, affine=affine, names=["a", "b"])
    sampler = TractSampler(far, num_voxels=20)
    # alike all over: what is left out does not change mean and SD
    brain = 300 + 20.0 * np.where(places.sum(axis=-1) % 8 < 4, 1, -1)
    away = np.linalg.norm(places - (80, 140, 60), axis=-1)
    radius = (3 * 200e3 / 4 / np.pi) ** (1 / 3)
    assert min(np.linalg.norm(line - (80, 140, 60), axis=1)) - radius > 60

    def rows(radius, brightness):
        mask = away < radius
        assert 0.8 < mask.sum() * 0.064 / (4 / 3 * np.pi * radius**3 / 1e3) < 1.2
        # darker in the tumour, brighter in the oedema about it, which the mask does not hold
        about = distance_transform_edt(~mask, sampling=4.0) <= 4
        volume = brain + np.select([mask, about], [-brightness, brightness], 0)
        nib.save(nib.Nifti1Image(volume.astype(np.float32), affine), tmp_path / "t1.nii.gz")
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), tmp_path / "mask.nii.gz")
        case = {"patient": "P1", "image": [str(tmp_path / "t1.nii.gz")], "mask": str(tmp_path / "mask.nii.gz")}
        return sampler(LoadGliomad(far)(case)["image"]).double()

    none, small, large = rows(radius, 0.0), rows(14.0, 150.0), rows(radius, 150.0)
    expected = torch.from_numpy(np.where(places.sum(axis=-1) % 8 < 4, 1.0, -1.0)).flatten()[sampler.index]
    assert (none - expected).abs().max() < 0.01  # 0.2 z and more were the whole brain the measure
    assert torch.equal(none, large) and (small - large).abs().max() < 0.01


def test_a_patient_becomes_what_the_network_reads(atlas, entries):
    prepare = PrepareGliomad(atlas, **SETTINGS)
    loaded = LoadGliomad(atlas)(entries[0])
    item = prepare(loaded)
    assert item["image"].shape == (4, 16, 16, 16) and item["mask"].shape == (1, 16, 16, 16)
    assert torch.equal(torch.as_tensor(item["image"]), prepare.crop(loaded)["tumour"])
    assert item["mask"].sum() == loaded["mask"].sum()
    assert item["region_rows"].shape == (5, 32) and item["tract_rows"].shape == (5, 32)
    assert torch.equal(torch.as_tensor(item["tract_rows"]), prepare.tracts(loaded["image"]))
    assert item["points"].shape == (32, 3) and item["incidence"].shape[0] == 32 and item["incidence"].max() < 5
    # the crop's own affine brings voxels and points to the same place
    where = np.argwhere(item["mask"][0].numpy()) @ item["crop"]["affine"][:3, :3].T + item["crop"]["affine"][:3, 3]
    np.testing.assert_allclose(where.mean(axis=0), item["centroid"].numpy(), atol=1e-4)
    place = item["centre"] + item["points"] / 2
    nearest = torch.cdist(place, torch.from_numpy(np.argwhere(item["mask"][0].numpy())).float()).min(dim=1).values
    assert nearest.max() < 1


def test_batches_are_stacked_and_their_incidence_padded(atlas, entries):
    cases = GliomaCases(entries, Compose([LoadGliomad(atlas), PrepareGliomad(atlas, **SETTINGS)]), progress=False)
    assert cases[1] == {"row": 1, "patient": "P1", "label": 1, "covariates": cases[1]["covariates"]}
    rows = GliomaRows(cases, ["P2", "P0"])
    assert rows.patients == ["P2", "P0"] and rows.labels.tolist() == [0, 0] and rows[0]["row"] == 0
    batch = collate_glioma(rows.items)
    widest = max(item["incidence"].shape[1] for item in rows.items)
    assert batch["incidence"].shape == (2, 32, widest) and batch["graph"].nearest.shape == (2, 32)
    assert torch.equal(batch["image"][0], torch.as_tensor(cases.items[2]["image"])) and batch["label"].tolist() == [
        0,
        0,
    ]
    with pytest.raises(DataError, match="P9: not among the prepared patients"):
        GliomaRows(cases, ["P9"])


def test_a_mask_outside_the_brain_and_another_grid_are_refused(atlas, entries, tmp_path):
    empty = np.zeros(SHAPE, np.float32)
    empty[:3] = 7 + np.random.default_rng(0).random((3, *SHAPE[1:]))
    paths = []
    for k in range(4):
        nib.save(nib.Nifti1Image(empty, AFFINE), tmp_path / f"{k}.nii.gz")
        paths.append(str(tmp_path / f"{k}.nii.gz"))
    with pytest.raises(DataError, match="only 0% of the tumour mask lie in the brain"):
        LoadGliomad(atlas)({**entries[0], "image": paths})
    larger = np.pad(np.asarray(nib.load(entries[0]["mask"]).dataobj), 1)
    for k in range(4):
        nib.save(nib.Nifti1Image(np.random.default_rng(k).random(larger.shape), AFFINE), paths[k])
    with pytest.raises(DataError, match="P0 must lie on the atlas's grid 14 x 16 x 12"):
        LoadGliomad(atlas)({**entries[0], "image": paths})
    with pytest.raises(DataError, match="P0: a tumour mask is needed"):
        LoadGliomad(atlas)({**entries[0], "mask": None})
    with pytest.raises(DataError, match="P0: has no FA map"):
        LoadGliomad(atlas, fa=True)({**entries[0], "fa": None})


def test_a_brain_that_is_all_tumour_or_flat_outside_is_refused(atlas, entries, tmp_path):
    whole = np.zeros(SHAPE, np.uint8)
    whole[1:-1, 1:-1, 1:-1] = 1  # the margin about it holds the rest
    nib.save(nib.Nifti1Image(whole, AFFINE), tmp_path / "mask.nii.gz")
    with pytest.raises(DataError, match=r"P0: outside the tumour 0 of \d+ voxels of the brain are left to standardise"):
        LoadGliomad(atlas)({**entries[0], "mask": str(tmp_path / "mask.nii.gz")})


def test_the_background_counts_for_neither_mean_nor_spread():
    volume = np.zeros((2, 3, 4), np.float32)
    volume[0, :, :2] = [[10, 20], [30, 40], [50, 500]]
    healthy = volume < 100  # the background is healthy, too, and no brain
    values = np.array([10.0, 20, 30, 40, 50])
    found = standardised(volume, healthy, "P1")
    expected = np.where(volume != 0, (volume - values.mean()) / values.std(), 0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not found[1].any() and found[0, 2, 1] > 30
