#!/usr/bin/env python3
"""What pretraining is worth when few labels are known: train a patch bundle on draws of labelled patients."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.experiments.label_efficiency_run import main

if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
