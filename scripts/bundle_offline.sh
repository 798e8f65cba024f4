#!/usr/bin/env bash
# Pack a bundle for a machine without network, and install it there.
#   bash scripts/bundle_offline.sh pack BUNDLE FOLDER [EXTRA...]   with network: wheels, the bundle's zip, checksums
#   bash FOLDER/bundle_offline.sh install FOLDER TARGET            without: check, install into TARGET/.venv, unpack
# Both machines need the same system, processor and Python x.y; PYTHON=... chooses the interpreter. EXTRA: glioma,
# slides, ... as in requirements-EXTRA.txt. FOLDER holds no patients; a model in the bundle goes along, without the list
# of those it was trained on.
set -euo pipefail
SCRIPT="${0##*/}"

die() { # MESSAGE: one line, and the end
    printf '%s: %s\n' "$SCRIPT" "$1" >&2
    exit 1
}

kind() { # what wheels depend on
    "$python" -c 'import platform, sys
print("Python %d.%d" % sys.version_info[:2], platform.system(), platform.machine())'
}

pack() { # BUNDLE FOLDER [EXTRA...]
    local bundle="$1" folder="$2" root extra zip
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    python="${PYTHON:-$root/.venv/bin/python}"
    "$python" -c 'import pip' 2>/dev/null || die "$python does not run, or has no pip: run scripts/test.sh once, or set PYTHON"
    if [ -e "$folder" ] && [ -n "$(ls -A "$folder" 2>/dev/null)" ]; then
        die "$folder is not empty: give a new folder"
    fi
    for extra in "${@:3}"; do
        [ -f "$root/requirements-$extra.txt" ] || die "no extra '$extra': there is no requirements-$extra.txt"
    done
    mkdir -p "$folder"
    "$python" "$root/scripts/package_bundle.py" "$bundle" --output "$folder" || die "$bundle cannot be packed"
    zip="$(find "$folder" -maxdepth 1 -name '*.zip')"
    "$python" -c 'import sys, zipfile
archive = zipfile.ZipFile(sys.argv[1])
name = next(name for name in archive.namelist() if name.endswith("requirements.txt"))
sys.stdout.write(archive.read(name).decode())' "$zip" >"$folder/requirements.txt"
    for extra in "${@:3}"; do cp "$root/requirements-$extra.txt" "$folder/"; done
    # pip wheel, not download: what comes as source is built here, where there are compilers and a network
    for file in "$folder"/requirements*.txt; do
        "$python" -m pip wheel --quiet --disable-pip-version-check --wheel-dir "$folder/wheels" -r "$file" ||
            die "pip cannot get all of ${file##*/}"
    done
    kind >"$folder/python.txt"
    cp "${BASH_SOURCE[0]}" "$folder/"
    (cd "$folder" && find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum >SHA256SUMS)
    printf '%s: %s files for %s; on the other machine: bash %s/%s install %s TARGET\n' "$folder" \
        "$(wc -l <"$folder/SHA256SUMS")" "$(cat "$folder/python.txt")" "$folder" "$SCRIPT" "$folder"
}

install() { # FOLDER TARGET
    local folder target="$2" options=() file
    folder="$(cd "$1" 2>/dev/null && pwd)" || die "$1: no such folder"
    python="${PYTHON:-python3}"
    [ -f "$folder/SHA256SUMS" ] || die "$folder was not made by 'pack': it has no SHA256SUMS"
    (cd "$folder" && sha256sum --check --quiet --strict SHA256SUMS >&2) || die "$folder is damaged: copy it again"
    file="$(cd "$folder" && find . -type f ! -name SHA256SUMS | sort | comm -23 - <(cut -c 67- SHA256SUMS | sort) | head -n 1)"
    [ -z "$file" ] || die "$file is not in SHA256SUMS: somebody added it; copy the folder again"
    [ "$(kind)" = "$(cat "$folder/python.txt")" ] ||
        die "the wheels are for $(cat "$folder/python.txt"), this is $(kind): set PYTHON, or pack on such a machine"
    if [ -e "$target" ] && [ -n "$(ls -A "$target" 2>/dev/null)" ]; then
        die "$target is not empty: give a new folder; data and results belong elsewhere"
    fi
    mkdir -p "$target"
    "$python" -m venv "$target/.venv" || die "$python -m venv cannot make $target/.venv"
    for file in "$folder"/requirements*.txt; do options+=(-r "$file"); done
    "$target/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-index \
        --find-links "$folder/wheels" "${options[@]}" || die "pip cannot install from $folder/wheels"
    "$python" -m zipfile -e "$folder"/*.zip "$target"
    printf '%s: installed. Check: cd %s/NAME && ../.venv/bin/python -m shared.bundle.verify --no-schema\n' "$target" "$target"
}

case "${1:-}" in
pack) [ $# -ge 3 ] || die "pack BUNDLE FOLDER [EXTRA...]" && pack "${@:2}" ;;
install) [ $# -eq 3 ] || die "install FOLDER TARGET" && install "${@:2}" ;;
*) die "pack BUNDLE FOLDER [EXTRA...], or install FOLDER TARGET" ;;
esac
