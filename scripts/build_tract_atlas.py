#!/usr/bin/env python3
"""Build a tract atlas (.npz) from a tractogram and a parcellation: which regions are joined, and through which
voxels."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.preparation.tract_atlas import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
