#!/usr/bin/env python3
"""Turn a plain folder of NIfTI files per patient and a CSV of labels into a datalist."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.preparation.patients import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
