#!/usr/bin/env python3
"""Cross-validate the population graph on a table of features, beside what it has to beat, in the same folds."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.baselines.population_graph import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
