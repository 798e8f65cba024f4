#!/usr/bin/env python3
"""Write docs/reference/configs.md from the bundles' JSON and the docstrings of what it names."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.reference.page import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
