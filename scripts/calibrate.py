#!/usr/bin/env python3
"""Sets of plausible classes and the limit of the distance, from predictions of patients left out."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.experiments.calibrate import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
