#!/usr/bin/env bash
# Install into .venv, check style, run the tests: bash scripts/test.sh [pytest's arguments]
source "$(dirname "${BASH_SOURCE[0]}")/_bootstrap.sh"

install requirements.txt requirements-dev.txt
"$VENV/bin/python" -m ruff check .
"$VENV/bin/python" -m ruff format --check .
# two processes of one thread each are faster than one of two threads; a module's tests share what they train
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$VENV/bin/python" -m pytest -n 2 --dist loadfile "$@"
