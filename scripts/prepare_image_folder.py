#!/usr/bin/env python3
"""Turn a folder of image patches, one sub-folder a class, into a datalist."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.preparation.patches import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
