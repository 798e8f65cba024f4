"""Steps of one patient's preparation, each against what is known of a tiny head."""

import json
import os
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from shared.apps.preparation.files import save_nifti
from shared.apps.preparation.glioma_patient import (
    MARGIN_MM,
    Native,
    PatientFiles,
    Steps,
    fingerprint,
    native_places,
    patient_landmarks,
    prepare_patient,
    quality,
    read_mask,
    read_patient,
    register_patient,
    strip_skull,
    thinned,
)
from shared.apps.preparation.intensity import PERCENTILES
from shared.apps.preparation.registration import dice
from shared.data.brain.mni import load_template, mni_affine
from shared.data.volumes import Volume, resample
from shared.digests import Digests
from shared.errors import DataError
from shared.explain import BrainVolumes
from tests.support.tiny_heads import (
    SPACING,
    HeaderRegistration,
    brain,
    coordinates,
    native_affine,
    on_mni,
    stripped,
    tumour,
    write_patient,
    write_template,
)

STEPS = Steps(n4=False, histogram=False, smoothing=0.0, fa=False)


def files_of(folder, name="P1", **more):
    images = {sequence: folder / name / f"{name}_{sequence.lower()}.nii.gz" for sequence in STEPS.sequences}
    return PatientFiles(name, images, folder / name / f"{name}_seg.nii.gz", **more)


def test_labels_of_a_mask_are_joined_or_chosen(tmp_path):
    array = np.zeros((4, 4, 4), np.uint8)
    array[0], array[1], array[2] = 1, 2, 4
    save_nifti(tmp_path / "m.nii.gz", array, np.eye(4))
    assert read_mask(tmp_path / "m.nii.gz").array.sum() == 48
    assert read_mask(tmp_path / "m.nii.gz", (1, 4)).array.sum() == 32
    with pytest.raises(DataError, match=r"the mask is empty \(none of the labels 3 in it\)"):
        read_mask(tmp_path / "m.nii.gz", (3,))


@pytest.mark.parametrize("values", [[-1, 0, 1], [0, 0.5, 1], np.arange(100)])
def test_what_is_no_mask_is_refused(tmp_path, values):
    array = np.resize(np.asarray(values, np.float32), (5, 5, 4))
    save_nifti(tmp_path / "m.nii.gz", array, np.eye(4))
    with pytest.raises(DataError, match="is no mask: 0 and a few positive whole numbers are needed"):
        read_mask(tmp_path / "m.nii.gz")


def test_a_mask_drawn_on_another_sequence_moves_with_it(tmp_path):
    write_patient(tmp_path, "P1")
    # FLAIR and the mask lie on a grid of their own, where the scanner had the head 8 mm further left
    affine = native_affine()
    affine[:3, 3] += (-8, 0, 0)
    save_nifti(tmp_path / "P1/P1_flair.nii.gz", stripped(3).astype(np.int16), affine)
    save_nifti(tmp_path / "P1/P1_seg.nii.gz", tumour().astype(np.uint8), affine)
    native = read_patient(files_of(tmp_path), STEPS, HeaderRegistration((8.0, 0, 0)))
    assert np.array_equal(native.mask.array, tumour())
    assert np.corrcoef(native.images["FLAIR"].array[brain()], stripped(3)[brain()])[0, 1] > 0.99


def test_a_brain_mask_that_is_given_strips_the_skull(tmp_path):
    head = np.where(brain(), stripped(), 500.0)
    write_patient(tmp_path, "P1", image=head)
    save_nifti(tmp_path / "P1/P1_brainmask.nii.gz", brain().astype(np.uint8), native_affine())
    native = read_patient(files_of(tmp_path, brain=tmp_path / "P1/P1_brainmask.nii.gz"), STEPS, HeaderRegistration())
    assert np.array_equal(native.brain.array, brain())
    assert all(not volume.array[~brain()].any() for volume in native.images.values())


def test_a_command_strips_the_skull_or_says_why_not(tmp_path):
    volume = Volume(stripped(), native_affine())
    copy = tmp_path / "copy.py"
    copy.write_text("import shutil, sys\nshutil.copy(sys.argv[1], sys.argv[2])\n")
    found = strip_skull(f"{sys.executable} {copy} {{input}} {{output}}", volume)
    assert (found ^ brain()).sum() < 0.01 * brain().sum()
    copy.write_text("import sys\nsys.exit('no licence')\n")
    with pytest.raises(DataError, match="ended with 1 and no brain: no licence"):
        strip_skull(f"{sys.executable} {copy} {{input}} {{output}}", volume)
    with pytest.raises(DataError, match="cannot be run"):
        strip_skull("no_such_tool {input} {output}", volume)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return write_template(tmp_path_factory.mktemp("template") / "t1.nii.gz")


def native():
    volumes = {name: Volume(stripped(number), native_affine()) for number, name in enumerate(STEPS.sequences)}
    return Native(volumes, Volume(tumour(), native_affine()), Volume(brain(), native_affine()))


def test_the_registration_does_not_see_the_tumour_nor_its_margin(template):
    tools = HeaderRegistration()
    steps = Steps(template=str(template))
    images, mask, found, warps = register_patient(native(), steps, tools, load_template(template))
    radius = np.linalg.norm(coordinates() - (30, -10, 15), axis=-1)
    assert not tools.metric_mask[radius < 16 + MARGIN_MM - SPACING / 2].any()
    # the rest it does, the edge of the brain against the background, too
    assert tools.metric_mask[radius > 16 + MARGIN_MM + SPACING].all()
    assert np.array_equal(mask.array, on_mni(tumour(), nearest=True).array > 0) and len(warps) == 1
    assert set(images) == set(STEPS.sequences) and not images["T2"].array[~found.array].any()


def test_quality_flags_a_poor_overlap_and_a_tumour_that_lost_its_volume(template):
    where = load_template(template)
    tumour_there, brain_there = (on_mni(part(), nearest=True).array > 0 for part in (tumour, brain))
    good = quality(native(), Volume(tumour_there, mni_affine()), Volume(brain_there, mni_affine()), where)
    assert good["dice"] > 0.95 and good["flags"] == "" and good["tumour_ratio"] == pytest.approx(1, abs=0.05)
    half = brain_there & (np.indices(brain_there.shape)[2] < brain_there.shape[2] // 2)
    swollen = quality(native(), Volume(tumour_there, mni_affine()), Volume(half, mni_affine()), where)
    grown = swollen["tumour_ratio_to_brain"] / good["tumour_ratio_to_brain"]
    assert grown == pytest.approx(brain_there.sum() / half.sum(), rel=1e-3)
    assert swollen["tumour_ratio"] == good["tumour_ratio"] and "tumour swollen against the brain" in swollen["flags"]
    ball = np.linalg.norm(coordinates() - (30, -10, 15), axis=-1) < 13
    small = on_mni(ball, nearest=True).array > 0
    moved = np.roll(brain_there, 9, 0)
    poor = quality(native(), Volume(small, mni_affine()), Volume(moved, mni_affine()), where)
    assert poor["flags"] == "Dice below 0.9; tumour shrunk against the brain"
    expected = 2 * (moved & (where.mask.array > 0)).sum() / (moved.sum() + (where.mask.array > 0).sum())
    assert poor["dice"] == pytest.approx(expected, abs=1e-4)


def test_a_brain_mask_that_cuts_the_tumour_is_told(tmp_path, template):
    write_patient(tmp_path, "P1")
    cut = brain() & (coordinates()[..., 0] < 34)  # a third of the ball about x = 30
    save_nifti(tmp_path / "P1/P1_brainmask.nii.gz", cut.astype(np.uint8), native_affine())
    found = read_patient(files_of(tmp_path, brain=tmp_path / "P1/P1_brainmask.nii.gz"), STEPS, HeaderRegistration())
    lost = (tumour() & ~cut).sum() / tumour().sum()
    assert found.cut == pytest.approx(lost) and 0.2 < lost < 0.45
    assert np.array_equal(found.mask.array, tumour() & cut)
    there = [Volume(on_mni(part, nearest=True).array > 0, mni_affine()) for part in (tumour() & cut, cut)]
    row = quality(found, *there, load_template(template))
    assert row["tumour_outside_brain"] == pytest.approx(lost, abs=1e-4)
    assert f"brain mask cuts {lost:.0%} of the tumour off" in row["flags"].split("; ")
    for share, flagged in ((0.029, False), (0.031, True)):
        row = quality(Native(found.images, found.mask, found.brain, share), *there, load_template(template))
        assert ("brain mask cuts" in row["flags"]) is flagged
    brain_as_tumour = Native(found.images, found.brain, found.brain)
    assert "tumour fills 100% of the brain" in quality(brain_as_tumour, *there, load_template(template))["flags"]


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-1.0, -1, 1, 1]) @ native_affine()])
def test_a_mask_of_the_images_shape_elsewhere_is_refused(tmp_path, affine):
    write_patient(tmp_path, "P1")
    save_nifti(tmp_path / "P1/P1_seg.nii.gz", tumour().astype(np.uint8), affine)
    with pytest.raises(DataError, match=r"P1_seg.nii.gz: has the shape of T1, T1c, T2, FLAIR and lies elsewhere: .*\["):
        read_patient(files_of(tmp_path), STEPS, HeaderRegistration())


def test_a_mask_whose_axes_were_exchanged_is_refused(tmp_path):
    write_patient(tmp_path, "P1")
    save_nifti(tmp_path / "P1/P1_seg.nii.gz", np.moveaxis(tumour(), 0, 2).astype(np.uint8), np.eye(4))
    with pytest.raises(
        DataError, match="has the shape of T1, T1c, T2, FLAIR with its axes exchanged and lies"
    ) as error:
        read_patient(files_of(tmp_path), STEPS, HeaderRegistration())
    assert "fslcpgeom" not in str(error.value)


def test_what_a_result_depends_on_changes_its_fingerprint(tmp_path, template):
    write_patient(tmp_path, "P1")
    files = files_of(tmp_path)

    def mark(steps=STEPS, reference=None, files=files):
        return fingerprint(files, steps, reference, Digests())

    first = mark()
    assert mark() == first and mark(Steps()) != first and mark(reference={"T1": [1.0]}) != first
    exchanged = {**files.images, "T1": files.images["T2"], "T2": files.images["T1"]}
    assert mark(files=replace(files, images=exchanged)) != first
    save_nifti(tmp_path / "P1/P1_seg.nii.gz", (2 * tumour(radius=12)).astype(np.uint8), native_affine())
    assert mark() != first
    # of the template its content counts: not where it lies, nor its size and date
    places = [tmp_path / f"template{number}.nii" for number in range(3)]
    for place, content in zip(places, (b"one", b"one", b"two"), strict=True):
        place.write_bytes(content)
        os.utime(place, ns=(10**18, 10**18))
    one, same, other = (mark(replace(STEPS, template=str(place))) for place in places)
    assert one == same != other


def test_a_bright_tumour_moves_no_landmark():
    plain = native()
    dark, bright = (
        Native(
            {name: Volume(np.where(tumour(), value, v.array), v.affine) for name, v in plain.images.items()},
            plain.mask,
            plain.brain,
        )
        for value in (1.0, 5000.0)
    )
    found = patient_landmarks(bright)
    assert found == patient_landmarks(dark)
    healthy = plain.images["T1"].array[brain() & ~tumour()]
    assert found["T1"] == pytest.approx(np.percentile(healthy, PERCENTILES).tolist())


def test_fa_goes_to_the_patients_images_first_and_then_to_the_template(tmp_path, template, monkeypatch):
    class Told(HeaderRegistration):
        def rigid(self, fixed, moving):
            return "to the patient"

        def to_template(self, where, moving, metric_mask):
            return "to the template"

        def apply(self, warps, moving, fixed, *, nearest=False, inverse=False):
            self.calls.append([*warps, *(["back"] if inverse else [])])
            return resample(moving, fixed.array.shape, fixed.affine, nearest=nearest)

    tools = Told()
    maps = Volume(brain().astype(np.float32) * 0.5, native_affine())
    monkeypatch.setattr("shared.apps.preparation.glioma_patient.load_tools", lambda steps: tools)
    monkeypatch.setattr("shared.apps.preparation.diffusion.fractional_anisotropy", lambda *files: (maps, maps))
    monkeypatch.setattr(
        "shared.apps.preparation.registration_picture.registration_picture", lambda *args, **kwargs: None
    )
    write_patient(tmp_path, "P1")
    dwi = [tmp_path / name for name in ("dwi.nii.gz", "dwi.bval", "dwi.bvec")]
    for path in dwi:
        path.write_bytes(b"0")
    steps = Steps(n4=False, histogram=False, smoothing=0.0, template=str(template))
    prepare_patient(files_of(tmp_path, dwi=tuple(dwi)), steps, tmp_path / "out", None, mark="x")
    assert ["to the patient", "to the template"] in tools.calls
    assert tools.calls[-1] == ["to the template", "back"]


def test_a_fine_volume_is_thinned_to_means_of_about_2_mm_at_their_places():
    x, y, z = np.meshgrid(np.arange(8), np.arange(12), np.arange(4), indexing="ij")
    affine = np.array([[0, -0.5, 0, 7], [1.0, 0, 0, -3], [0, 0, 2.6, 1], [0, 0, 0, 1]])
    given = Volume(2.0 * x + 3 * y - z, affine)  # linear: a block's mean is the value at its middle
    thin = thinned(given)
    assert thin.array.shape == (4, 3, 4) and thin.array.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(thin.affine[:3, :3], axis=0), [2.0, 2.0, 2.6])
    voxel = np.linalg.inv(affine) @ thin.affine @ [1, 2, 3, 1]
    assert thin.array[1, 2, 3] == pytest.approx(2 * voxel[0] + 3 * voxel[1] - voxel[2])
    np.testing.assert_array_equal(thinned(thin).array, thin.array)


def test_the_way_back_to_the_patient_is_kept(tmp_path, template, monkeypatch):
    shift = np.array([6.0, -4.0, 3.0])

    class Shifted(HeaderRegistration):
        def to_template(self, where, moving, metric_mask):
            return shift

    monkeypatch.setattr("shared.apps.preparation.glioma_patient.load_tools", lambda steps: Shifted())
    write_patient(tmp_path, "P1")
    steps = Steps(n4=False, histogram=False, smoothing=0.0, template=str(template))
    prepare_patient(files_of(tmp_path), steps, tmp_path / "out", None, mark="x")
    places = nib.load(tmp_path / "out/P1/mni_places.nii.gz")
    np.testing.assert_allclose(places.affine, native_affine())  # coarser than 2 mm as it is
    own = np.moveaxis(np.indices(places.shape[:3]), 0, -1) @ places.affine[:3, :3].T + places.affine[:3, 3]
    reached = (places.get_fdata() < 299).all(axis=-1)
    assert reached.mean() > 0.5
    np.testing.assert_allclose(places.get_fdata()[reached], (own + shift)[reached], atol=0.006)
    # a map of the template lies on the patient's tumour again
    mask = nib.load(tmp_path / "out/P1/mask.nii.gz")
    images = np.zeros((1, *mask.shape))
    volumes = BrainVolumes(images, mask.get_fdata() > 0, mask.affine, None, places.get_fdata(), places.affine)
    back = volumes.native(volumes.mask) > 0.5
    drawn = nib.load(tmp_path / "P1/P1_seg.nii.gz")
    there = resample(Volume((drawn.get_fdata() > 0) * 1.0, drawn.affine), back.shape, places.affine).array > 0.5
    assert dice(back, there) > 0.9
    thin = Volume(np.zeros((10, 20, 5)), np.diag([1.0, 0.5, 3.0, 1.0]))
    kept = native_places(Native({}, thin, thin), shift, Shifted(), load_template(template, 2.0))
    assert kept.array.shape == (5, 5, 5, 3)
    np.testing.assert_allclose(np.diag(kept.affine), [2.0, 2.0, 3.0, 1.0])
    # the middles of blocks of 2 x 4 x 1 voxels
    np.testing.assert_allclose(kept.array[1, 2, 3], [2.5 + 6, 4.75 - 4, 9 + 3], atol=1e-4)
    done = json.loads((tmp_path / "out/P1/done.json").read_text())
    assert "P1/mni_places.nii.gz" in done["files"]
