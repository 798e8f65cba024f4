"""Write the patients of a prepared folder as DICOM, as a PACS exports them, with their masks as segmentations.

    python -m shared.apps.hospital.phantom_series data/phantom data/export --labels data/labels.csv

For phantoms: a series per modality, without endings, below one folder. LABELS has the columns patient, label and test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shared.apps.phantoms.dicom import make_segmentation, make_series, write_series
from shared.apps.preparation.files import run_script, script_parser
from shared.errors import DataError
from shared.io import DATALIST, read_json_object, write_csv

DESCRIPTIONS = {"T1D": "T1 delayed", "T1V": "T1 portal venous", "T1A": "T1 arterial"}
LEVELS = 4000  # stored values of a volume


def as_stored(volume: Any) -> tuple[np.ndarray, float, float]:
    """Whole numbers of 16 bits with slope and intercept.

    Example:
        >>> stored, slope, intercept = as_stored(np.array([-1.0, 0.0, 3.0]))
        >>> (stored * slope + intercept).round(3).tolist()
        [-1.0, 0.0, 3.0]
    """
    low, high = float(np.min(volume)), float(np.max(volume))
    slope = float(f"{(high - low) / LEVELS or 1.0:.9g}")  # a decimal string of DICOM has 16 letters
    return np.round((np.asarray(volume, float) - low) / slope).astype(np.uint16), slope, float(f"{low:.9g}")


def write_patients(data: Path, output: Path) -> list[dict[str, Any]]:
    """Write all patients; their rows of the label table.

    Raises:
        DataError: the output holds something, or there is no prepared folder.
    """
    import nibabel as nib

    if output.exists() and any(output.iterdir()):
        raise DataError(f"{output} is not empty; name a new folder")
    datalist = read_json_object(data / DATALIST, "datalist")
    rows = []
    for section in ("training", "testing"):
        for case in datalist[section]:
            patient = case["patient"]
            for number, (modality, path) in enumerate(zip(datalist["modalities"], case["image"], strict=True), 1):
                image = nib.load(data / path)
                stored, slope, intercept = as_stored(image.get_fdata())
                slices = make_series(
                    stored,
                    image.affine,
                    patient=patient,
                    description=DESCRIPTIONS.get(modality, modality),
                    number=number,
                    slope=slope,
                    intercept=intercept,
                )
                write_series(output / patient / f"S{number}", slices)
                if number == 1 and case.get("mask"):
                    mask = np.asarray(nib.load(data / case["mask"]).dataobj) > 0
                    make_segmentation(slices, {"tumour": mask}).save_as(output / patient / "SEG")
            rows.append({"patient": patient, "label": case.get("label", ""), "test": int(section == "testing")})
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = script_parser(__doc__ or "")
    parser.add_argument("data", type=Path, help="prepared folder of phantoms")
    parser.add_argument("output", type=Path, help="new folder for the DICOM files")
    parser.add_argument("--labels", type=Path, required=True, help="label table to write")
    options = parser.parse_args(arguments)
    return run_script(lambda: write_csv(options.labels, write_patients(options.data, options.output)))


if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
