"""How each image was acquired: what may leak the label or the site; no name, birth date or free text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from shared.apps.preparation.dicom_series import IMAGES, Series
from shared.data.dicom.stack import Stack

NUMBERS = {  # column, keyword of DICOM
    "field_strength_t": "MagneticFieldStrength",
    "echo_time_ms": "EchoTime",
    "repetition_time_ms": "RepetitionTime",
    "inversion_time_ms": "InversionTime",
    "flip_angle_deg": "FlipAngle",
    "kvp": "KVP",
    "slice_thickness_mm": "SliceThickness",
}
CODES = {
    "scanning_sequence": "ScanningSequence",
    "sequence_variant": "SequenceVariant",
    "acquisition_type": "MRAcquisitionType",
    "kernel": "ConvolutionKernel",
}
COLUMNS = (
    *("patient", "modality", "kind", "manufacturer", "model", "site", "scanner", "year", *NUMBERS, *CODES, "contrast"),
    *("plane", "pixel_row_mm", "pixel_column_mm", "slice_step_mm", "rows", "columns", "slices", "compressed"),
)


class Codes:
    """Numbers for names that are not written: the first name is 1."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], int] = {}

    def __call__(self, kind: str, name: str) -> int | str:
        """Number of a name among those of its kind; "" where there is none."""
        if not name:
            return ""
        count = sum(one == kind for one, _ in self._found)
        return self._found.setdefault((kind, name), count + 1)


def acquisition_row(patient: str, modality: str, series: Series, stack: Stack, codes: Codes) -> dict[str, Any]:
    """One row of acquisition.csv.

    Args:
        patient: its name, or pseudonym.
        modality: which image.
        series: whose header is read, the first image's.
        stack: its grid.
        codes: numbers of sites and scanners.
    """
    values = series.values
    steps = np.linalg.norm(np.asarray(stack.affine)[:3, :3], axis=0)
    normal = np.abs(np.asarray(stack.affine)[:3, 2] / steps[2])
    scanner = "\\".join(
        str(values.get(key) or "") for key in ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber")
    )
    return {
        "patient": patient,
        "modality": modality,
        "kind": IMAGES.get(str(values.get("SOPClassUID")), ""),
        "manufacturer": _code(values, "Manufacturer"),
        "model": _code(values, "ManufacturerModelName"),
        "site": codes("site", str(values.get("site") or "")),
        "scanner": codes("scanner", scanner.strip("\\")),
        "year": str(values.get("StudyDate") or "")[:4],
        **{column: _number(values.get(key)) for column, key in NUMBERS.items()},
        **{column: _code(values, key) for column, key in CODES.items()},
        "contrast": int(bool(values.get("ContrastBolusAgent"))),
        "plane": ("sagittal", "coronal", "axial")[int(normal.argmax())] if normal.max() > 0.95 else "oblique",
        "pixel_row_mm": round(float(steps[1]), 4),
        "pixel_column_mm": round(float(steps[0]), 4),
        "slice_step_mm": round(float(steps[2]), 4),
        "rows": stack.shape[1],
        "columns": stack.shape[0],
        "slices": stack.shape[2],
        "compressed": int(
            any(one.syntax.startswith(("1.2.840.10008.1.2.4", "1.2.840.10008.1.2.5")) for one in series.instances)
        ),
    }


def _number(value: Any) -> Any:
    found = value[0] if isinstance(value, list) and value else value
    return round(float(found), 4) if isinstance(found, float | int) else ""


def _code(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    return "\\".join(map(str, value)) if isinstance(value, list) else str(value or "")
