#!/usr/bin/env python3
"""Verify bundles, see shared/bundle/verify.py: python scripts/verify_bundles.py [NAME ...] [--schema FILE]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.bundle.verify import main
from shared.errors import run_main

if __name__ == "__main__":
    run_main(main)
