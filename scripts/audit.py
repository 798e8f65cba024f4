#!/usr/bin/env python3
"""Audit a cohort for leakage: patients, near-duplicates, names, files, dates and acquisition that tell the label."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.audit.audit import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
