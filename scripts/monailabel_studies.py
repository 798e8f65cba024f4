#!/usr/bin/env python3
"""Make a studies folder for MONAI Label of a prepared folder: a link to every image, masks left out, in one level."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.monailabel.studies import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
