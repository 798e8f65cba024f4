"""One glioma patient from the files of a hospital to MNI152 2 mm: the steps of the paper's section 4.2, in its order.

Co-registration to T1c, skull strip, N4, histogram matching, edge-preserving smoothing, registration to the template
with the tumour left out of the metric. ``prepare_cohort`` runs them for many patients; ``scripts/prepare_glioma.py`` is
its command line.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from shared.apps.preparation.brain_mask import brain_of
from shared.apps.preparation.files import save_nifti
from shared.apps.preparation.intensity import landmarks, match_landmarks, smooth
from shared.apps.preparation.matching import file_name
from shared.apps.preparation.registration import Registration, choose_registration, dice
from shared.data.brain.mni import MNI_SPACING, Template, load_template, mni_grid_problem
from shared.data.brain.preparation import KEYS
from shared.data.grids import same_grid, shown
from shared.data.masks import read_mask
from shared.data.volumes import Volume, load_volume, resample
from shared.digests import Digests, sha256
from shared.errors import DataError
from shared.io import write_json

VERSION = 4  # raised whenever prepared voxels change: older ones are then prepared again
DONE = "done.json"
PLACES = "mni_places.nii.gz"
OUTSIDE_MM = 300.0  # a place that no map of MNI152 reaches
MARGIN_MM = 4.0  # around the tumour, which the registration's metric does not see either
LEAST_DICE = 0.90  # of the brain masks
LARGEST_CUT = 0.03  # of the tumour, that the brain mask leaves out
LARGEST_TUMOUR = 1 / 3  # of the brain
TUMOUR_RATIO = (0.7, 1.4)  # of its volume after and before, over the brain's


@dataclass(frozen=True)
class Steps:
    """What is done to every patient; all of it decides whether an earlier result still counts.

    Args:
        sequences: names, in the order of the prepared images.
        coregister: ``auto`` (where grids differ), ``always`` or ``never``.
        strip_command: command that strips the skull, with ``{input}`` and ``{output}``; None: it is stripped.
        n4: correct the bias field.
        histogram: match brightness to the reference's landmarks.
        smoothing: strength of the edge-preserving smoothing, 0: none.
        registration: one of ``shared.apps.preparation.registration.METHODS``.
        template: skull-stripped T1 image in MNI152 space; None: nilearn's.
        already_mni: the images lie on the MNI152 2 mm grid; nothing is registered.
        mask_labels: values of the mask that are tumour; empty: all but 0.
        fa: make FA maps where there are diffusion images.
        seed: of the registration.
    """

    sequences: tuple[str, ...] = ("T1", "T1c", "T2", "FLAIR")
    coregister: str = "auto"
    strip_command: str | None = None
    n4: bool = True
    histogram: bool = True
    smoothing: float = 1.0
    registration: str = "auto"
    template: str | None = None
    already_mni: bool = False
    mask_labels: tuple[int, ...] = ()
    fa: bool = True
    seed: int = 0

    @property
    def anchor(self) -> str:
        """The sequence to which the others are registered."""
        return "T1c" if "T1c" in self.sequences else self.sequences[0]

    @property
    def to_template(self) -> str:
        """The sequence by which the patient is registered to the T1 template."""
        return "T1" if "T1" in self.sequences else self.anchor


@dataclass(frozen=True)
class PatientFiles:
    """Where a patient's images lie; ``dwi`` is image, b-values and directions, ``fa`` a ready FA map."""

    patient: str
    images: Mapping[str, Path]
    mask: Path
    brain: Path | None = None
    dwi: tuple[Path, Path, Path] | None = None
    fa: Path | None = None

    def by_use(self) -> dict[str, Path]:
        """Every file by what it is for."""
        others = {"mask": self.mask, "brain": self.brain, "fa": self.fa}
        others |= dict(zip(("dwi", "bval", "bvec"), self.dwi or (), strict=False))
        images = {f"image {name}": path for name, path in self.images.items()}
        return images | {name: path for name, path in others.items() if path is not None}

    def all(self) -> list[Path]:
        """Every file."""
        return list(self.by_use().values())


@dataclass
class Native:
    """A patient on the grid of one of the images; ``cut``: the tumour's share that the brain mask leaves out."""

    images: dict[str, Volume]
    mask: Volume
    brain: Volume
    cut: float = 0.0


@lru_cache(maxsize=2)
def template_of(file: str | None) -> Template:
    """The template, made once in a process: nilearn's takes long."""
    return load_template(file)


def thinned(volume: Volume) -> Volume:
    """Means of blocks of voxels of about 2 mm, in float32; a grid that is as coarse stays as it is."""
    import numpy as np
    from skimage.transform import downscale_local_mean

    affine = np.array(volume.affine, float)
    step = np.maximum(np.rint(MNI_SPACING / np.linalg.norm(affine[:3, :3], axis=0)), 1).astype(int)
    affine[:3, 3] += affine[:3, :3] @ ((step - 1) / 2)
    affine[:3, :3] *= step
    return Volume(downscale_local_mean(np.asarray(volume.array, np.float32), tuple(step)), affine)


def strip_skull(command: str, volume: Volume) -> Any:
    """Brain mask by a command that reads ``{input}`` and writes the brain, 0 elsewhere, to ``{output}``.

    Raises:
        DataError: the command fails or writes nothing that fits.
    """
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="strip_") as folder:
        source, target = Path(folder, "image.nii.gz"), Path(folder, "brain.nii.gz")
        save_nifti(source, np.asarray(volume.array, np.float32), volume.affine)
        words = [word.replace("{input}", str(source)).replace("{output}", str(target)) for word in shlex.split(command)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        except OSError as error:
            raise DataError(f"--strip-command {command!r} cannot be run: {error}") from error
        if done.returncode or not target.is_file():
            said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it said nothing"]
            raise DataError(f"--strip-command {command!r} ended with {done.returncode} and no brain: {said[0]}")
        found = load_volume(target)
    if not same_grid(found, volume):
        raise DataError(f"--strip-command {command!r} changed the image's grid; it must keep it")
    return brain_of(found, name=f"what --strip-command {command!r} left")


def read_patient(files: PatientFiles, steps: Steps, tools: Registration | None) -> Native:
    """A patient's sequences, tumour mask and brain mask on one grid, bias field corrected.

    Args:
        files: where they lie.
        steps: what is done.
        tools: the registration library; may be None where nothing needs it.

    Raises:
        DataError: what is wrong with the images.
    """
    import numpy as np

    found = {name: load_volume(files.images[name]) for name in steps.sequences}
    given = read_mask(files.mask, steps.mask_labels)
    if steps.already_mni:
        problems = [
            f"{path}: {problem}"
            for path, volume in [*((files.images[name], found[name]) for name in found), (files.mask, given)]
            if (problem := mni_grid_problem(volume.array.shape, volume.affine))
        ]
        if problems:
            raise DataError(problems)
    target = found[steps.anchor]
    shape, affine = target.array.shape, target.affine
    stripped = files.brain is None and steps.strip_command is None
    brains = {name: brain_of(volume, name=name) for name, volume in found.items()} if stripped else {}
    mask, warps = given, {}
    check_mask_place(files, found, mask)
    for name, volume in found.items():
        differs = not same_grid(volume, target)
        if name != steps.anchor and (steps.coregister == "always" or (steps.coregister == "auto" and differs)):
            warps[name] = tools.rigid(target, volume)
            found[name] = tools.apply([warps[name]], volume, target)
            if differs and same_grid(mask, volume):
                mask = tools.apply([warps[name]], mask, target, nearest=True)
        elif differs:
            found[name] = resample(volume, shape, affine)
    mask = resample(mask, shape, affine, nearest=True).array > 0
    if files.brain is not None:
        brain = resample(load_volume(files.brain), shape, affine, nearest=True).array > 0
    else:
        brain = brains[steps.anchor] if stripped else strip_skull(steps.strip_command, target)
    if not mask.any():
        raise DataError(f"{files.mask}: the mask is empty on the grid of {steps.anchor}; check its affine")
    inside = float((mask & brain).sum() / mask.sum())
    if inside < 0.5:
        raise DataError(
            f"{files.mask}: {inside:.0%} of the tumour lies within the brain; check that mask and images fit"
        )
    images = {name: Volume(np.where(brain, volume.array, 0), affine) for name, volume in found.items()}
    if steps.n4:
        images = {name: tools.n4(volume, brain) for name, volume in images.items()}
        images = {name: Volume(np.where(brain, volume.array, 0), affine) for name, volume in images.items()}
    return Native(images, Volume(mask & brain, affine), Volume(brain, affine), 1 - inside)


def check_mask_place(files: PatientFiles, images: Mapping[str, Volume], mask: Volume) -> None:
    """A mask lies on the grid of one of the images whose shape it has, in whichever order.

    Raises:
        DataError: it has the shape of some and the place of none.
    """
    alike = {name: volume for name, volume in images.items() if sorted(volume.array.shape) == sorted(mask.array.shape)}
    if alike and not any(same_grid(volume, mask) for volume in alike.values()):
        name, volume = next(iter(alike.items()))
        exchanged = "" if volume.array.shape == mask.array.shape else " with its axes exchanged"
        copy = f"copy the affine (fslcpgeom {Path(files.images[name]).name} {files.mask.name}) or "
        raise DataError(
            f"{files.mask}: has the shape of {', '.join(alike)}{exchanged} and lies elsewhere: its affine is "
            f"{shown(mask.affine)}, that of {name} {shown(volume.affine)} (both in RAS order); "
            f"{'' if exchanged else copy}export the mask again"
        )


def patient_landmarks(native: Native) -> dict[str, list[float]]:
    """Landmarks of every sequence in the brain outside the tumour."""
    healthy = native.brain.array & ~native.mask.array
    return {name: landmarks(volume.array, healthy) for name, volume in native.images.items()}


def register_patient(
    native: Native, steps: Steps, tools: Registration | None, template: Template | None
) -> tuple[dict[str, Volume], Volume, Volume, list[Any]]:
    """Images, tumour mask and brain mask on the MNI152 2 mm grid, and the warps that led there."""
    import numpy as np
    from scipy.ndimage import distance_transform_edt

    if steps.already_mni:
        return native.images, native.mask, native.brain, []
    affine = native.brain.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    far = distance_transform_edt(~native.mask.array, sampling=spacing) > MARGIN_MM
    # the background counts: the brain's edge against it is what pulls the brain onto the template's
    seen = thinned(Volume(far, affine)).array > 0.5
    warp = tools.to_template(template.image, thinned(native.images[steps.to_template]), seen)

    def moved(volume: Volume, nearest: bool = False) -> Volume:
        return tools.apply([warp], volume, template.image, nearest=nearest)

    masks = (moved(Volume(v.array.astype(np.float32), affine), True) for v in (native.mask, native.brain))
    mask, brain = (Volume(volume.array > 0.5, volume.affine) for volume in masks)
    if not mask.array.any():
        raise DataError("no voxel of the tumour is left at 2 mm; it is too small or registration went astray")
    images = {name: moved(volume) for name, volume in native.images.items()}
    return (
        {name: Volume(np.where(brain.array, v.array, 0), v.affine) for name, v in images.items()},
        mask,
        brain,
        [warp],
    )


def native_places(native: Native, warp: Any, tools: Registration, template: Template) -> Volume:
    """Where a patient's places lie in MNI152, so that maps can be led back: mm (RAS), ``[X, Y, Z, 3]``.

    The grid is the anchor's with voxels of about 2 mm. Places beyond the template's grid lie ``OUTSIDE_MM`` away.
    """
    import numpy as np
    from nibabel.affines import apply_affine

    grid = thinned(native.brain)
    voxels = np.moveaxis(np.indices(template.image.array.shape), 0, -1)
    known = [*np.moveaxis(apply_affine(template.image.affine, voxels), -1, 0), np.ones(voxels.shape[:-1])]
    *places, reached = (
        tools.apply([warp], Volume(one.astype(np.float32), template.image.affine), grid, inverse=True).array
        for one in known
    )
    return Volume(np.where(reached[..., None] > 0.999, np.stack(places, axis=-1), OUTSIDE_MM), grid.affine)


def native_fa(
    files: PatientFiles, steps: Steps, native: Native, tools: Registration | None
) -> tuple[Volume, list[Any]] | None:
    """A patient's FA map and the warps that lead it to the anchor's grid; None where there is none.

    Raises:
        DataError: a ready map on another grid than the anchor's, or with values that are no FA.
    """
    if files.dwi is not None and steps.fa:
        from shared.apps.preparation.diffusion import fractional_anisotropy

        anisotropy, base = fractional_anisotropy(*files.dwi)
        return anisotropy, [tools.rigid(native.images["T2" if "T2" in native.images else steps.anchor], base)]
    if files.fa is None:
        return None
    from shared.apps.preparation.diffusion import ready_fa

    found = ready_fa(files.fa)
    if not same_grid(found, native.brain):
        raise DataError(
            f"{files.fa}: lies on another grid than {steps.anchor}; register and resample it to that, put the "
            "diffusion image with .bval and .bvec in its place, or give --no-fa"
        )
    return found, []


def quality(native: Native, mask: Volume, brain: Volume, template: Template) -> dict[str, Any]:
    """Dice of the brain masks, the tumour's volume before and after, and what is conspicuous in them."""
    import numpy as np

    def ml(volume: Volume) -> float:
        return float(volume.array.sum()) * abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1e3

    before, after = ml(native.mask), ml(mask)
    overlap = dice(brain.array, template.mask.array)
    relative = (after / before) / (ml(brain) / ml(native.brain))
    flags = [f"Dice below {LEAST_DICE:g}"] if overlap < LEAST_DICE else []
    if native.cut > LARGEST_CUT:
        flags.append(f"brain mask cuts {native.cut:.0%} of the tumour off")
    if before > LARGEST_TUMOUR * ml(native.brain):
        flags.append(f"tumour fills {before / ml(native.brain):.0%} of the brain")
    if not TUMOUR_RATIO[0] <= relative <= TUMOUR_RATIO[1]:
        flags.append(f"tumour {'shrunk' if relative < 1 else 'swollen'} against the brain")
    return {
        "dice": round(overlap, 4),
        "tumour_ml": round(before, 2),
        "tumour_outside_brain": round(native.cut, 4),
        "tumour_ml_mni": round(after, 2),
        "tumour_ratio": round(after / before, 4),
        "tumour_ratio_to_brain": round(relative, 4),
        "flags": "; ".join(flags),
    }


def fingerprint(
    files: PatientFiles, steps: Steps, reference: Mapping[str, list[float]] | None, digests: Digests
) -> str:
    """Hash of what a patient's prepared images depend on: settings, reference, content of template and files."""
    seen = {key: digests(path) for key, path in files.by_use().items()}
    settings = {**asdict(steps), "template": steps.template and digests(steps.template)}
    content = [VERSION, settings, choose_method(steps), reference and dict(reference), seen]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def kept_row(patient: str, output: Path, mark: str, digests: Digests) -> dict[str, Any] | None:
    """A patient's row of registration.csv, where an earlier run made just this and its files are as it left them.

    Args:
        patient: the name.
        output: the prepared folder.
        mark: the :func:`fingerprint` now.
        digests: of files.
    """
    try:
        done = json.loads((output / patient / DONE).read_text(encoding="utf-8"))
        if done["fingerprint"] == mark and all(digests(output / name) == seen for name, seen in done["files"].items()):
            return {**done["row"], "kept": True}
    except (OSError, ValueError, KeyError, AttributeError):
        pass
    return None


def preparation_of(steps: Steps, digests: Digests) -> dict[str, Any]:
    """The record of a preparation: :data:`shared.data.brain.preparation.KEYS`."""
    own = {key: value for key, value in asdict(steps).items() if key in KEYS}
    own |= {"version": VERSION, "sequences": list(steps.sequences), "registration": choose_method(steps)}
    return own | {"template": digests(steps.template) if steps.template and not steps.already_mni else None}


def choose_method(steps: Steps) -> str:
    """Which registration ``auto`` is here, without loading it."""
    import importlib.util

    if steps.registration != "auto" or steps.already_mni:
        return "none" if steps.already_mni else steps.registration
    return "syn" if importlib.util.find_spec("ants") else "sitk-affine"


def load_tools(steps: Steps) -> Registration | None:
    """The registration library; None where neither registration nor N4 is asked for.

    Raises:
        DataError: it is needed and not installed.
    """
    if steps.already_mni and not steps.n4 and steps.coregister != "always" and not steps.fa:
        return None
    return choose_registration(steps.registration, steps.seed)


def prepare_patient(
    files: PatientFiles, steps: Steps, output: Path, reference: Mapping[str, list[float]] | None, mark: str
) -> dict[str, Any]:
    """Prepare one patient into ``output / patient``.

    Args:
        files: where the images lie.
        steps: what is done.
        output: the prepared folder.
        reference: landmarks by sequence; None: brightness is not matched.
        mark: the :func:`fingerprint`, left beside the images for :func:`kept_row`.

    Returns:
        a row of registration.csv.

    Raises:
        DataError: what is wrong with the patient.
    """
    import numpy as np

    from shared.apps.preparation.registration_picture import registration_picture

    folder = output / files.patient
    for name in (DONE, PLACES, "fa.nii.gz"):  # a map of an earlier run is none of this one's
        (folder / name).unlink(missing_ok=True)
    start = time.perf_counter()
    tools, template = load_tools(steps), template_of(steps.template)
    native = read_patient(files, steps, tools)
    if reference is not None:
        found, affine = patient_landmarks(native), native.brain.affine
        for name, volume in native.images.items():
            array = match_landmarks(volume.array, native.brain.array, found[name], reference[name])
            native.images[name] = Volume(array, affine)
    if steps.smoothing:
        for name, volume in native.images.items():
            array = smooth(volume.array, native.brain.array, steps.smoothing)
            native.images[name] = Volume(array, volume.affine)
    images, mask, brain, warps = register_patient(native, steps, tools, template)
    written = {}
    for name, volume in images.items():
        array = np.clip(np.rint(volume.array), 0, 32000).astype(np.int16) if reference else volume.array
        written[f"{file_name(name)}.nii.gz"] = (array, None)
    written["mask.nii.gz"] = (mask.array.astype(np.uint8), None)
    if (found := native_fa(files, steps, native, tools)) is not None:
        anisotropy, first = found
        if not steps.already_mni:
            anisotropy = tools.apply([*first, *warps], anisotropy, template.image)
        array = np.where(brain.array, np.clip(anisotropy.array, 0, 1), 0)
        written["fa.nii.gz"] = (np.rint(array * 1e4).astype(np.int16), 1e-4)
    for name, (array, slope) in written.items():
        save_nifti(folder / name, array, template.image.affine, slope=slope)
    if warps:
        places = native_places(native, warps[0], tools, template)
        save_nifti(folder / PLACES, np.rint(places.array * 100).astype(np.int16), places.affine, slope=0.01)
    row = {
        "patient": files.patient,
        "method": "already in MNI152" if steps.already_mni else tools.method,
        **quality(native, mask, brain, template),
    }
    registration_picture(
        template.image.array,
        template.mask.array,
        {name: images[name].array for name in dict.fromkeys((steps.anchor, steps.sequences[-1]))},
        brain.array,
        mask.array,
        output / "qc" / f"{files.patient}.png",
        title=f"{files.patient}: {row['method']}, Dice {row['dice']:.3f}, tumour {row['tumour_ml']:.1f} ml, "
        f"in MNI152 {row['tumour_ml_mni']:.1f} ml",
    )
    row["seconds"] = round(time.perf_counter() - start, 1)
    made = {f"{files.patient}/{name}": sha256(folder / name) for name in [*written, *([PLACES] if warps else [])]}
    write_json(folder / DONE, {"fingerprint": mark, "files": made, "row": row})
    return row
