#!/usr/bin/env python3
"""What each part of glioma_idh is worth: cross-validate it without the part, on the same folds, and write tables."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.experiments.glioma_ablation import main

if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
