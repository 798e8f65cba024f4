#!/usr/bin/env bash
# Install into .venv, check style, run the tests: bash scripts/test.sh [pytest's arguments]
source "$(dirname "${BASH_SOURCE[0]}")/_bootstrap.sh"

install requirements.txt requirements-dev.txt
"$VENV/bin/python" -m ruff check .
"$VENV/bin/python" -m ruff format --check .
exec "$VENV/bin/python" -m pytest "$@"
