#!/usr/bin/env python3
"""The most confident errors of an evaluation or a cross-validation, with their explanations."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.audit.failures import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
