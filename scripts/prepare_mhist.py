#!/usr/bin/env python3
"""Turn MHIST (Wei et al. 2021: hyperplastic polyp or sessile serrated adenoma) into a datalist."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.preparation.mhist import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
