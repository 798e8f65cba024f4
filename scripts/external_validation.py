#!/usr/bin/env python3
"""External validation: predictions of other patients beside those of the development."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.experiments.external_validation import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
