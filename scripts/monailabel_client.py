#!/usr/bin/env python3
"""Ask a MONAI Label server for the biomarkers of one image, check the answer, and keep it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.monailabel.client import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
