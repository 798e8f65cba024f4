# Common part of the shell scripts, to be sourced: the repository's root, its virtual environment, what goes into it.
# Needs python3 and bash only. PYTHON=... chooses the interpreter; pip's variables (PIP_INDEX_URL ...) are honoured.
# shellcheck shell=bash

set -euo pipefail
SCRIPT="${0##*/}"
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
cd "$ROOT"
# threads that wait must not spin: beside another busy process PyTorch would be several times slower
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
trap 'printf "\n%s: stopped\n" "$SCRIPT" >&2; exit 130' INT
trap 'exit 143' TERM

die() { # MESSAGE: one line, and the end
    printf '%s: %s\n' "$SCRIPT" "$1" >&2
    exit 1
}

install() { # FILE...: make .venv hold what the requirement files say; does nothing, offline too, where it does already
    local python="${PYTHON:-python3}" log="$VENV/install.log" name="${VENV#"$ROOT"/}" version file missing="" options=()
    # an environment that was made with a chosen PYTHON stays, without choosing it again
    [ -n "${PYTHON:-}" ] || [ -z "$(version_in_venv)" ] || python="$VENV/bin/python"
    command -v "$python" >/dev/null 2>&1 || die "no $python: install Python 3.11 or newer, or set PYTHON"
    version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" ||
        die "$python does not run: install Python 3.11 or newer, or set PYTHON"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "Python 3.11 or newer is needed, $python is $version: set PYTHON to a newer one, such as PYTHON=python3.11"

    if [ "$(version_in_venv)" != "$version" ]; then
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            die "$python lacks the venv module: install it (Debian, Ubuntu: apt install python3-venv) or set PYTHON"
        "$python" -m venv --clear "$VENV" >/dev/null 2>&1 || die "$python -m venv cannot make $VENV: disk full or read-only?"
    fi
    for file in "$@"; do
        options+=(-r "$file")
        # a copy of the file is left beside what it asked for; an interrupted installation leaves none
        cmp -s "$file" "$VENV/.installed-$file" || missing="$missing $file"
    done
    [ -n "$missing" ] || return 0
    for file in $missing; do rm -f "$VENV/.installed-$file"; done
    : >"$log"
    printf '%s: installing%s into %s (minutes, once; log: %s)\n' "$SCRIPT" "$missing" "$name" "$name/install.log"
    "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input "${options[@]}" 2>&1 | show "$log" ||
        die "pip cannot install$missing: $(grep -E '^ *(ERROR|error):' "$log" | tail -n 1 | cut -c 1-200) ($name/install.log)"
    for file in "$@"; do cp "$file" "$VENV/.installed-$file"; done
}

version_in_venv() { # 3.11, or nothing where there is no sound environment
    "$VENV/bin/python" -c 'import pip, sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

show() { # LOG: keep what comes in, on a terminal as one changing line
    local line
    while IFS= read -r line; do
        printf '%s\n' "$line" >>"$1"
        if [ -t 1 ]; then printf '\r\033[K%.100s' "$line"; fi
    done
    if [ -t 1 ]; then printf '\r\033[K'; fi
}
