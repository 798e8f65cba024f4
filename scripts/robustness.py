#!/usr/bin/env python3
"""Robustness of a trained model: what small changes of images and masks do to its probabilities and explanations."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.apps.audit.robustness import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
