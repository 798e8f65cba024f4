#!/usr/bin/env python3
"""Cut whole slides into patches of one physical size, labelled by slide or annotation; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.preparation.slides import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
