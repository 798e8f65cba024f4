#!/usr/bin/env python3
"""Cross-validate a bundle, whatever its method: train and evaluate it in every fold, pool the patients, write a
table."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.experiments.cross_validate import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
