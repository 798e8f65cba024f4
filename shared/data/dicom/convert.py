"""A series to NIfTI by dcm2niix, compared with its headers and, where they can be read here, its voxels.

dcm2niix: Li et al., The first step for neuroimaging data analysis: DICOM to NIfTI conversion (2016).
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.data.dicom.headers import Instance, scrubbed
from shared.data.dicom.library import converter, dicom_library
from shared.data.dicom.stack import Stack
from shared.data.grids import canonical, same_grid
from shared.errors import DataError
from shared.io import atomic_path, write_json

SYNTAXES = {  # that dcm2niix reads, built with CharLS and OpenJPEG as the wheel is
    "1.2.840.10008.1.2": "implicit little endian",
    "1.2.840.10008.1.2.1": "explicit little endian",
    "1.2.840.10008.1.2.2": "explicit big endian",
    "1.2.840.10008.1.2.5": "RLE",
    "1.2.840.10008.1.2.4.50": "JPEG baseline",
    "1.2.840.10008.1.2.4.57": "JPEG lossless",
    "1.2.840.10008.1.2.4.70": "JPEG lossless, first order",
    "1.2.840.10008.1.2.4.80": "JPEG-LS lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS near-lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
}
# of the sidecar: numbers and codes, neither text that people type nor times
KEPT = (
    *("Modality", "MagneticFieldStrength", "ImagingFrequency", "BodyPart", "PatientPosition", "MRAcquisitionType"),
    *(
        "ScanningSequence",
        "SequenceVariant",
        "ScanOptions",
        "ImageType",
        "NonlinearGradientCorrection",
        "SliceThickness",
    ),
    *("SpacingBetweenSlices", "SAR", "EchoNumber", "EchoTime", "RepetitionTime", "InversionTime", "FlipAngle"),
    *("PartialFourier", "BaseResolution", "PercentPhaseFOV", "PercentSampling", "EchoTrainLength", "PixelBandwidth"),
    *("AcquisitionMatrixPE", "ReconMatrixPE", "ParallelReductionFactorInPlane", "DwellTime", "PhaseEncodingAxis"),
    *("InPlanePhaseEncodingDirectionDICOM", "ImageOrientationPatientDICOM", "XRayTubeCurrent", "XRayExposure", "KVP"),
    *("ConvolutionKernel", "ConversionSoftware", "ConversionSoftwareVersion"),
)
# beside the volume dcm2niix writes overlays, and copies that it resampled where steps vary or a header names a tilt
COMPANION = re.compile(r"_(ROI|Eq_|Tilt_)\d+$")
OPTIONS = (
    *("-g", "i"),  # whatever somebody's own defaults are
    *("-b", "y", "-ba", "y", "-c", ""),  # a sidecar without names, no comment in the header
    *("-p", "n"),  # Philips: RescaleSlope as DICOM says, like everybody else's
    *("-x", "i", "-l", "o", "-m", "1", "-z", "n", "-w", "0", "-f", "volume"),  # neither cropped nor turned nor rescaled
)


def check_syntaxes(instances: Sequence[Instance]) -> None:
    """Refuse transfer syntaxes that dcm2niix does not read.

    Raises:
        DataError: naming them.
    """
    unknown = sorted({one.syntax or "none" for one in instances} - SYNTAXES.keys())
    if unknown:
        raise DataError(
            f"its transfer syntax {', '.join(map(_syntax_name, unknown))} is none that dcm2niix reads; export it "
            "uncompressed (explicit little endian)"
        )


def convert_series(
    instances: Sequence[Instance], stack: Stack, target: Path, sidecar: Path, *, most_seconds: float = 600
) -> bool:
    """Write one series as NIfTI, and dcm2niix's sidecar with nothing but numbers and codes.

    Args:
        instances: of the series.
        stack: their order and grid.
        target: ``.nii.gz`` to write.
        sidecar: ``.json`` to write.
        most_seconds: for dcm2niix.

    Returns:
        whether the voxels were compared with the DICOM's (they are unless pydicom cannot decompress them here).

    Raises:
        DataError: dcm2niix fails, or makes something else than the headers say.
    """
    import nibabel as nib

    stored = read_voxels(instances, stack)
    with tempfile.TemporaryDirectory() as temporary:
        given, made = Path(temporary) / "in", Path(temporary) / "out"
        given.mkdir()
        made.mkdir()
        for number, one in enumerate(instances):
            (given / f"{number:06d}").symlink_to(one.path.resolve())
        command = [converter(), *OPTIONS, "-o", str(made), str(given)]
        try:
            ended = subprocess.run(command, capture_output=True, timeout=most_seconds, check=False)
        except subprocess.TimeoutExpired as error:
            raise DataError(f"dcm2niix did not end within {most_seconds:g} s") from error
        volumes = [path for path in sorted(made.glob("*.nii")) if not COMPANION.search(path.stem)]
        if len(volumes) != 1:
            raise DataError(
                f"dcm2niix made {len(volumes)} volumes of it, one is expected (status {ended.returncode}"
                f"{_said(ended.stdout + ended.stderr, instances[0].hidden)}); export the original series"
            )
        image = nib.load(volumes[0])
        shape, affine = canonical(image.shape[:3], image.affine)
        wanted = canonical(stack.shape, stack.affine)
        if len(image.shape) > 3 or not same_grid((shape, affine), wanted):
            raise DataError(
                f"dcm2niix made a volume of {' x '.join(map(str, image.shape))} voxels that is not where its headers "
                f"say ({' x '.join(map(str, stack.shape))}); export the original series"
            )
        turn = nib.orientations.ornt_transform(nib.io_orientation(stack.affine), nib.io_orientation(image.affine))
        exact = stack.affine @ nib.orientations.inv_ornt_aff(turn, stack.shape)
        scales = np.array([(instances[i].frames[f].slope, instances[i].frames[f].intercept) for i, f in stack.order])
        uniform = bool((scales == scales[0]).all())
        if stored is None and not uniform:
            raise DataError("its slices have several rescale slopes and are compressed; export it uncompressed")
        raw = np.asarray(image.dataobj.get_unscaled())
        if stored is None or (uniform and np.array_equal(raw, nib.orientations.apply_orientation(stored, turn))):
            _save(raw, exact, target, *map(float, scales[0]))
        else:
            wanted_values = nib.orientations.apply_orientation(stored * scales[:, 0] + scales[:, 1], turn)
            same = np.isclose(np.asarray(image.dataobj, np.float64), wanted_values, rtol=1e-5, atol=1e-6)
            if not same.all():
                raise DataError(
                    f"dcm2niix changed {1 - same.mean():.1%} of its voxels; export it uncompressed, and report this"
                )
            _save(raw, exact, target, image.dataobj.slope, image.dataobj.inter)
        said = volumes[0].with_suffix(".json")
        content = json.loads(said.read_text(encoding="utf-8", errors="replace")) if said.is_file() else {}
        write_json(sidecar, {key: content[key] for key in KEPT if key in content})
    return stored is not None


def read_voxels(instances: Sequence[Instance], stack: Stack) -> Any | None:
    """Stored values of a series in the order of its positions, float64; None where they cannot be decompressed here.

    Shape:
        - returns: ``[X, Y, Z]``, columns, rows, slices of :attr:`Stack.order`

    Raises:
        DataError: an image is cut off or cannot be read.
    """
    pixels, pydicom = dicom_library("pydicom.pixels"), dicom_library("pydicom")
    try:
        if not all(
            pixels.get_decoder(syntax).is_available for syntax in {one.syntax for one in instances if _packed(one)}
        ):
            return None
    except NotImplementedError:
        return None
    out = np.empty(stack.shape, np.float64)
    read: dict[int, Any] = {}
    for k, (i, f) in enumerate(stack.order):
        if i not in read:
            try:
                array = np.asarray(pydicom.dcmread(instances[i].path, force=True).pixel_array)
            except Exception as error:  # as many kinds as ways to be broken
                raise DataError(
                    f"the voxels of image {instances[i].values.get('InstanceNumber')} cannot be read "
                    f"({type(error).__name__}: cut off or damaged); export it again"
                ) from error
            read = {i: array if array.ndim == 3 else array[None]}
        out[:, :, k] = read[i][f].T
    return out


def _packed(one: Instance) -> bool:
    return one.syntax not in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "")


def _save(raw: Any, affine: Any, target: Path, slope: float, intercept: float) -> None:
    """Voxels and grid in a header of its own: dcm2niix's has times and free text."""
    import nibabel as nib

    clean = nib.Nifti1Image(raw, affine, dtype=raw.dtype)
    clean.header.set_xyzt_units("mm")
    clean.header.set_slope_inter(slope, intercept)
    with atomic_path(target) as temporary:
        temporary.write_bytes(gzip.compress(clean.to_bytes(), 6, mtime=0))


def _said(output: bytes, hidden: Iterable[str]) -> str:
    """Errors of dcm2niix, whose input has names without meaning, without words that name somebody."""
    lines = [line for line in output.decode(errors="replace").splitlines() if line.startswith("Error")]
    return "; " + scrubbed(re.sub(r"/\S+", "...", lines[0]), hidden) if lines else ""


def _syntax_name(syntax: str) -> str:
    name = getattr(dicom_library("pydicom.uid").UID(syntax), "name", syntax)
    return f"{name} ({syntax})" if name != syntax else syntax
