#!/usr/bin/env python3
"""Compare explanations of trained models on a cohort: how well each points, what the answer owes to it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.experiments.explanation_comparison import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
