#!/usr/bin/env python3
"""Run a paper's tables, its ablations and the controls on a cohort: one command, resumable, with a report at the
end."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.study.study import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
