#!/usr/bin/env bash
# Install into .venv, make patients with a known answer, then train, evaluate, predict and explain: the real commands.
#   bash scripts/demo.sh [BUNDLE]        BUNDLE: ircl_mvi (default), sscl_crc or glioma_idh
source "$(dirname "${BASH_SOURCE[0]}")/_bootstrap.sh"

bundle="${1:-ircl_mvi}"
configs="bundles/$bundle/configs"
models="bundles/$bundle/models/demo"
results="bundles/$bundle/eval/demo"
[ -f "$configs/train.json" ] ||
    die "no bundle '$bundle'; there is: $(cd bundles && ls -d -- */configs/train.json | sed 's,/.*,,' | paste -sd ' ' -)"
[ $# -le 1 ] || die "one bundle at a time: bash scripts/demo.sh [BUNDLE]"

case "$bundle" in
glioma_idh) install requirements.txt requirements-glioma.txt ;; # the phantoms lie on nilearn's template
*) install requirements.txt ;;
esac
export PATH="$VENV/bin:$PATH"
export PYTHONWARNINGS="ignore:parsing config_file" # MONAI warns at every start that configs are code: these are ours

run() { # COMMAND...: say it as one would type it, do it
    local word
    printf '\n$'
    for word in "$@"; do
        case "$word" in
        *[\'\[\ ]*) printf ' "%s"' "$word" ;;
        *) printf ' %s' "$word" ;;
        esac
    done
    printf '\n'
    "$@" || die "stopped: the command above failed"
}

monai() { # CONFIG[,CONFIG...] OPTION...: run the bundle with these configs merged in order
    local name list=""
    for name in ${1//,/ }; do list="$list${list:+,}'$configs/$name.json'"; done
    run python -m monai.bundle run --config_file "[$list]" "${@:2}"
}

study() { # OPTION...: two folds of the method, its explanations and controls, on one page
    run python scripts/study.py "$bundle" --dataset_dir "$data" --output "$results/study" --tables summary --folds 2 \
        --bootstrap 500 --jobs 2 "$@"
}

case "$bundle" in
ircl_mvi)
    data=data/phantom
    run python scripts/make_phantom_cohort.py --output "$data" # says so where they are there already
    places=(--dataset_dir "$data" --ckpt_dir "$models" --output_dir "$results")
    monai train,cpu,phantom "${places[@]}"
    monai train,cpu,phantom,evaluate --run_id evaluate "${places[@]}"
    monai inference --dataset_dir "$data" --ckpt_dir "$models" --output_dir "$results/inference"
    monai train,cpu,phantom,explain --run_id explain --max_masks 8 "${places[@]}"
    study --config cpu phantom
    pictures="additive_biomarkers_*.png, biomarkers.png, roc.png, calibration.png, decision.png, shapley_*.png, patients/*_overlay.png"
    ;;
sscl_crc)
    data=data/phantom_patches
    run python scripts/make_phantom_patches.py --output "$data" # says so where they are there already
    places=(--dataset_dir "$data" --ckpt_dir "$models" --output_dir "$results")
    monai train,cpu,phantom "${places[@]}"
    monai train,cpu,phantom,evaluate --run_id evaluate "${places[@]}"
    monai inference --dataset_dir "$data" --ckpt_dir "$models" --output_dir "$results/inference"
    monai train,cpu,phantom,explain --run_id explain --truth planted "${places[@]}"
    study --config cpu phantom
    pictures="roc.png, calibration.png, decision.png, confusion.png, gallery.png, randomisation.png"
    ;;
glioma_idh)
    data=data/phantom_brains
    run python scripts/make_phantom_brains.py --output "$data" --fa # says so where they are there already
    places=(--dataset_dir "$data" --ckpt_dir "$models" --output_dir "$results")
    monai train,cpu "${places[@]}"
    monai train,cpu,evaluate --run_id evaluate "${places[@]}"
    monai inference --dataset_dir "$data" --ckpt_dir "$models" --output_dir "$results/inference"
    monai train,cpu,explain --run_id explain --max_patients 8 "${places[@]}"
    study --config cpu --set nodes#epochs=10 edges#epochs=10 contrast#epochs=50 train#epochs=100
    pictures="roc.png, calibration.png, decision.png, *_loss.png, patients/"
    ;;
*)
    die "the demo of $bundle is not written yet: see bundles/$bundle/docs/README.md"
    ;;
esac

cat <<END

Done. What came of it:
  checkpoint   $ROOT/$models/model.pt
  table        $ROOT/$results/predictions.csv, metrics.json, localisation.json
  pictures     $ROOT/$results: $pictures
  new patients $ROOT/$results/inference
  one page     $ROOT/$results/study/report.html: a small study of two folds
END
