#!/usr/bin/env python3
"""Hospitals that may not pool their data: one stage of a bundle trained alone, in a federation, and on pooled data."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.fl.demo import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
