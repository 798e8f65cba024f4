"""Options on DICOM of the preparation scripts; the step itself is imported where a folder holds DICOM."""

from __future__ import annotations

import argparse

from shared.apps.preparation.cohort import comma_list
from shared.apps.preparation.matching import is_mask_file
from shared.data.dicom.headers import find_files
from shared.data.dicom.library import dicom_library
from shared.data.tables import some
from shared.errors import DataError


def add_dicom_options(parser: argparse.ArgumentParser) -> None:
    """Options on DICOM."""
    dicom = parser.add_argument_group("DICOM (FOLDER holds DICOM files, any depth and names; patients by PatientID)")
    add = dicom.add_argument
    add(
        "--series",
        action="append",
        default=[],
        metavar="T1V='SeriesDescription~portal'",
        help="rule on the header that chooses a modality's series (~, =, !=, <, >; & joins); of the mask: mask=RULE",
    )
    add("--segments", type=comma_list, default=[], help="names of the segments or structures that are the tumour")
    add(
        "--pseudonyms",
        nargs="?",
        const="",
        metavar="KEY.csv",
        help="new names for the patients; the key goes into this file, for its owner alone (beside OUTPUT)",
    )


def take_dicom(options: argparse.Namespace) -> None:
    """Where ``options.folder`` holds DICOM, convert it, and let the options name the folder of NIfTI that was made.

    Sets ``options.dicom_lines`` (what to print), ``dicom_manifest`` and ``dicom_datalist`` (what these files get).

    NIfTI files that are no masks beside DICOM: ``--series``, ``--segments`` or ``--pseudonyms`` says that the DICOM are
    the patients, ``--pattern`` that the NIfTI are; else both are named, and neither is taken.

    Raises:
        DataError: with every problem found, before anything is converted; or those of the conversion.
    """
    options.dicom_lines, options.dicom_manifest, options.dicom_datalist = [], {}, {}
    given = [name for name in ("series", "segments", "pseudonyms") if getattr(options, name) not in ([], None)]
    files, nifti, packed = find_files(options.folder)
    if packed and (files or not nifti):
        kinds = some(sorted({path.suffix.lower() for path in packed}))  # names may tell who somebody is
        raise DataError(
            f"{options.folder} holds {len(packed)} packed files or archives ({kinds}), in which DICOM is not looked "
            "for: unpack them, or take them away"
        )
    images = [path for path in nifti if not is_mask_file(path, options.mask_pattern, ("tumour", "organ"))]
    if files and images and not given and not options.pattern:
        few, many = sorted((files, images), key=len)
        names = some((path.relative_to(options.folder).as_posix() for path in few), 3)
        raise DataError(
            f"{options.folder} holds {len(files)} DICOM files and {len(images)} NIfTI files that are no masks; which "
            f"are the patients? Take the others away ({names} {'is' if len(few) == 1 else 'are'} fewer than the "
            f"{len(many)}), or say so: --pattern MODALITY=NAME reads the NIfTI, --series MODALITY=RULE the DICOM"
        )
    if not files or (images and options.pattern):
        if given:
            why = "--pattern reads the NIfTI; give one of them" if files else f"{options.folder} holds no DICOM file"
            raise DataError(f"--{', --'.join(given)}: of DICOM; {why}")
        return
    dicom_library("pydicom")
    if options.pattern:
        raise DataError("--pattern is of NIfTI; of DICOM --series MODALITY='SeriesDescription~WORD' chooses a series")
    for option in ("image_column", "pixel_size", "pixel_size_column"):
        if getattr(options, option, None):
            raise DataError(f"--{option.replace('_', '-')} is of 2D images, the folder holds DICOM")
    if options.output.resolve().is_relative_to(options.folder.resolve()):
        raise DataError(f"--output {options.output} must lie outside the patients' own folder")
    from shared.apps.preparation.dicom_step import DicomStep

    DicomStep(options).run()
