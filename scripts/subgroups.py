#!/usr/bin/env python3
"""Subgroups of an evaluation or a cross-validation, with cuts of your own."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.audit.subgroups import main

if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
