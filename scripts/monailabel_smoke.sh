#!/usr/bin/env bash
# MONAI Label for real: serve ircl_mvi on this machine alone, ask for one inference over HTTP, check the answer, stop.
#   bash scripts/monailabel_smoke.sh [DATA MODELS]
# DATA: a prepared folder; MODELS: the folder of a model.pt and model.json trained on such data. Without them a few
# phantom patients are made and a model is trained for a minute: enough to try the path, not to predict anything.
# The environment is .venv-monailabel, made when it is not there (7 GB), or the one that MONAILABEL_VENV names.
source "$(dirname "${BASH_SOURCE[0]}")/_bootstrap.sh"

[ $# -eq 0 ] || [ $# -eq 2 ] || die "give both or none: bash scripts/monailabel_smoke.sh [DATA MODELS]"
data="" models=""
if [ $# -eq 2 ]; then
    data="$(cd "$1" 2>/dev/null && pwd)" && [ -f "$data/datalist.json" ] || die "$1 is no prepared folder: it has no datalist.json"
    models="$(cd "$2" 2>/dev/null && pwd)" && [ -f "$models/model.pt" ] || die "there is no $2/model.pt: train first"
    [ -f "$models/model.json" ] || die "there is no $2/model.json beside model.pt: it says what the model is made of"
fi

# an answer that does not come is a failure, not a reason to wait: seconds for a step, for the server's start, for an answer
STEP=900 START=600 ANSWER=600
if [ -n "${MONAILABEL_VENV:-}" ]; then
    # somebody's own environment: used as it is
    VENV="$(cd "$MONAILABEL_VENV" 2>/dev/null && pwd)" || die "there is no folder $MONAILABEL_VENV (MONAILABEL_VENV)"
else
    VENV="$ROOT/.venv-monailabel"
    PYTHON="${PYTHON:-python3.11}"
    install requirements-monailabel.txt
    "$VENV/bin/python" -c 'import monailabel' 2>/dev/null ||
        "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input --no-deps monailabel==0.8.5 \
            >>"$VENV/install.log" 2>&1 || die "pip cannot install monailabel 0.8.5 (.venv-monailabel/install.log)"
fi
python="$VENV/bin/python"
"$python" -c 'import sys; from importlib.metadata import version; sys.exit(version("monailabel") != "0.8.5")' 2>/dev/null ||
    die "$VENV does not hold monailabel 0.8.5: see requirements-monailabel.txt"

source "$ROOT/scripts/_smoke.sh"

if [ -z "$data" ]; then
    data="$work/phantom" models="$work/models"
    step "phantom patients" "$python" scripts/make_phantom_cohort.py --output "$data" --patients 16 --test-patients 2 --folds 2
    c=bundles/ircl_mvi/configs
    step "a model of a minute" "$python" -m monai.bundle run --config_file "['$c/train.json','$c/cpu.json','$c/phantom.json']" \
        --dataset_dir "$data" --ckpt_dir "$models" --output_dir "$work/eval" --network_def#num_biomarkers 2 \
        --network_def#views 2 --pretrain#epochs 3 --pretrain#max_epochs 3 --train#epochs 5 --val_interval 5
fi

# the zip one would hand on, with the model and shared/ inside: the server finds nothing else of this repository
mkdir -p "$work/ircl_mvi/models"
cp -r bundles/ircl_mvi/LICENSE bundles/ircl_mvi/configs bundles/ircl_mvi/docs "$work/ircl_mvi/"
cp "$models/model.pt" "$models/model.json" "$work/ircl_mvi/models/"
step "the package" "$python" scripts/package_bundle.py "$work/ircl_mvi" --output "$work/dist"
step "the sample app" "$python" -m monailabel.main apps --download --name monaibundle --output "$work"
step "the package in the app" "$python" -m zipfile -e "$work"/dist/ircl_mvi_v*.zip "$work/monaibundle/model"
step "the studies folder" "$python" scripts/monailabel_studies.py "$data" "$work/studies"
image="$(cd "$work/studies" && ls | head -n 1)"
image="${image%%.nii*}"

port="$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
printf 'the server, on 127.0.0.1:%s\n' "$port"
cd "$work"
env -u PYTHONPATH "$python" -m monailabel.main start_server --app "$work/monaibundle" --studies "$work/studies" \
    --host 127.0.0.1 --port "$port" --conf models ircl_mvi --conf zoo_source local --conf sam2 false \
    --conf skip_trainers true >"$work/server.log" 2>&1 &
# in the background, too: a signal then ends the wait at once
no_proxy=127.0.0.1 timeout --foreground $((START + ANSWER)) "$python" "$ROOT/scripts/monailabel_client.py" "$image" \
    --server "http://127.0.0.1:$port" --studies "$work/studies" --output "$work/answer" --start "$START" --answer "$ANSWER" &
wait $! || die "stopped: the server's answer does not pass; its log follows"
printf 'passed\n'
