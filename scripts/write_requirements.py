#!/usr/bin/env python3
"""Write the requirement files from ``pyproject.toml``, where dependencies and extras stand once."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.requirement_files import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
