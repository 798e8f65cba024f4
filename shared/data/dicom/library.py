"""The libraries of the extra ``dicom``, imported where they are used."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

from shared.errors import DataError

INSTALL = "pip install -r requirements-dicom.txt"


def dicom_library(name: str) -> Any:
    """A module of the extra ``dicom``: pydicom, highdicom, dcm2niix.

    Args:
        name: of the module.

    Raises:
        DataError: it is not installed.
    """
    # what pydicom says of a header may quote it: names, birth dates
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="pydicom")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(f"DICOM needs {name.partition('.')[0]}, which is not installed ({error}): {INSTALL}") from error


def converter() -> str:
    """Path of the program ``dcm2niix`` that the wheel of that name brings.

    Raises:
        DataError: it is not installed.
    """
    path = Path(dicom_library("dcm2niix").__file__).parent / ("dcm2niix.exe" if sys.platform == "win32" else "dcm2niix")
    if not path.is_file():
        raise DataError(f"the package dcm2niix lacks its program {path.name}: {INSTALL}")
    return str(path)
