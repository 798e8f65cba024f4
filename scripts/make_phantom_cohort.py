#!/usr/bin/env python3
"""Make a cohort of synthetic liver patients in whom planted patterns drive the label: demo data, and the tests'
truth."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.phantoms.liver_cohort import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
