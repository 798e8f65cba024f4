#!/usr/bin/env python3
"""Bring glioma patients from a hospital's or BraTS's folders to MNI152 2 mm, as the glioma bundle reads them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.preparation.glioma import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
