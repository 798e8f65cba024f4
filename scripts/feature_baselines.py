#!/usr/bin/env python3
"""The controls that need no network, in the same folds: covariates, tumour size, a forest on ROI features,
radiomics."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.baselines.features import main

if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
