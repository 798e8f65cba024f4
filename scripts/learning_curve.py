#!/usr/bin/env python3
"""Learning curve: how good a bundle is when it is trained on a share of the patients."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.audit.learning_curve import main

if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
