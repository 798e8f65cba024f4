#!/usr/bin/env python3
"""Pack bundles into NAME_v<version>.zip, each with its own copy of shared/: one file that runs anywhere."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.packaging.package_bundle import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
