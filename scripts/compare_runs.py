#!/usr/bin/env python3
"""Put runs side by side that were tested on one common part: means over seeds, intervals over patients, differences."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.experiments.compare_runs import main

if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
