#!/usr/bin/env bash
# Install into .venv, check style and types, build the pages, run the tests: bash scripts/test.sh [OPTIONS] [pytest's arguments]
#   --all        the slow tests, too (before a release)
#   --coverage   measure which lines of shared/ the tests run; too few are an error (fail_under in pyproject.toml)
# Plant small errors in a copy, see which the tests notice: bash scripts/test.sh --mutants [NAMES] [--jobs N]
source "$(dirname "${BASH_SOURCE[0]}")/_bootstrap.sh"

# the extras, too: what needs registration, FA, federation or slides is tested, not skipped
install requirements.txt requirements-dev.txt requirements-glioma.txt requirements-federated.txt requirements-explain.txt requirements-dicom.txt requirements-slides.txt requirements-docs.txt
if [ "${1:-}" = --mutants ]; then
    exec "$VENV/bin/python" tests/mutants/run.py "${@:2}"
fi
chosen=(-m "not slow")
while :; do
    case "${1:-}" in
    --all) chosen=(-m "") ;;
    --coverage) measured=(--cov) ;;
    *) break ;;
    esac
    shift
done
"$VENV/bin/python" -m ruff check .
"$VENV/bin/python" -m ruff format --check .
"$VENV/bin/python" -m mypy
NO_MKDOCS_2_WARNING=1 "$VENV/bin/python" -m mkdocs build --strict --quiet
# two processes of one thread each are faster than one of two threads; a module's tests share what they train
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# with several threads two runs of ANTs differ in the last digits, whatever the seed
export ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS="${ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS:-1}"
exec "$VENV/bin/python" -m pytest -n 2 --dist loadfile "${chosen[@]}" ${measured[@]+"${measured[@]}"} "$@"
