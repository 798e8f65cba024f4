#!/usr/bin/env python3
"""The controls a network for patches has to beat: a forest on colour and texture, linear probes of frozen encoders."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.baselines.patches import main

if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
