#!/usr/bin/env python3
"""Write pages of single patients, and the report of an evaluation; or check what a prediction was made from."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.report.command import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
