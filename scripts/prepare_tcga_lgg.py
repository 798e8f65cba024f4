#!/usr/bin/env python3
"""Turn the published TCGA-LGG segmentation set (Buda et al. 2019, TIFF slices) into NIfTI and a datalist."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.preparation.tcga_lgg import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
