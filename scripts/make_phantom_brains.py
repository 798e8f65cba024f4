#!/usr/bin/env python3
"""Make synthetic glioma patients whose genotype shows in three ways: demo data, and the tests' truth."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.phantoms.brain_cohort import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
