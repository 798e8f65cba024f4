#!/usr/bin/env bash
# A hospital's way on phantoms: DICOM series -> preparation -> a model of a minute -> inference in DICOM -> dciodvfy ->
# Orthanc by DICOMweb, read back and compared. On this machine alone (127.0.0.1); it ends by itself and leaves nothing.
#   bash scripts/hospital_smoke.sh [MODELS]
# MODELS: the folder of a model.pt and model.json of ircl_mvi trained on T1, T1D, T1V; without it one is trained.
# Needs Debian's orthanc, orthanc-dicomweb and dicom3tools: what is not installed is left out, and said.
# HOSPITAL_OHIF names a folder of the viewer's files (monailabel/endpoints/static/ohif in MONAI Label's wheel, unpacked):
# then Debian's chromium takes pictures of the segmentation and the page, into bundles/ircl_mvi/eval/hospital.
# HOSPITAL_VENV names an environment to use as it is instead of .venv.
source "$(dirname "${BASH_SOURCE[0]}")/_bootstrap.sh"

models="${1:-}"
[ -z "$models" ] || { models="$(cd "$models" 2>/dev/null && pwd)" && [ -f "$models/model.pt" ]; } || die "there is no $1/model.pt: train first"
[ -z "${HOSPITAL_OHIF:-}" ] || [ -f "$HOSPITAL_OHIF/index.html" ] || die "there is no $HOSPITAL_OHIF/index.html (HOSPITAL_OHIF)"
STEP=1800 START=60
if [ -n "${HOSPITAL_VENV:-}" ]; then
    VENV="$(cd "$HOSPITAL_VENV" 2>/dev/null && pwd)" || die "there is no folder $HOSPITAL_VENV (HOSPITAL_VENV)"
else
    install requirements.txt requirements-dicom.txt
fi
python="$VENV/bin/python"

source "$ROOT/scripts/_smoke.sh"

c=bundles/ircl_mvi/configs
step "phantom patients" "$python" scripts/make_phantom_cohort.py --output "$work/phantom" --patients 16 --test-patients 2 --folds 2
step "their DICOM series" "$python" -m shared.apps.hospital.phantom_series "$work/phantom" "$work/export" --labels "$work/labels.csv"
step "preparation from DICOM" "$python" scripts/prepare_patients.py "$work/export" "$work/labels.csv" --output "$work/data" \
    --modalities T1,T1D,T1V --test-column test --folds 2
if [ -z "$models" ]; then
    models="$work/models"
    step "a model of a minute" "$python" -m monai.bundle run --config_file "['$c/train.json','$c/cpu.json','$c/phantom.json']" \
        --dataset_dir "$work/data" --ckpt_dir "$models" --output_dir "$work/eval" --network_def#num_biomarkers 2 \
        --network_def#views 2 --pretrain#epochs 3 --pretrain#max_epochs 3 --train#epochs 5 --val_interval 5
fi
step "inference, answered in DICOM" "$python" -m monai.bundle run --config_file "$c/inference.json" --dataset_dir "$work/data" \
    --ckpt_dir "$models" --output_dir "$work/inference" --dicom_out "$work/results"
count="$(find "$work/results" -name '*.dcm' | wc -l)"
[ "$count" -ge 6 ] || die "stopped: $count DICOM objects of 2 patients were written"
printf '%s DICOM objects\n' "$count"

if command -v dciodvfy >/dev/null; then
    find "$work/results" -name '*.dcm' -print0 | while IFS= read -r -d '' file; do
        if dciodvfy "$file" 2>&1 | grep '^Error'; then die "stopped: dciodvfy finds errors in ${file#"$work/results/"}"; fi
    done
    printf 'dciodvfy: no error\n'
else
    printf 'dciodvfy: left out (apt install dicom3tools)\n'
fi

orthanc="$(PATH="$PATH:/usr/sbin" command -v Orthanc || true)"
plugin="$(find /usr/share/orthanc/plugins /usr/lib/orthanc -name 'libOrthancDicomWeb.so*' 2>/dev/null | head -n 1 || true)"
if [ -z "$orthanc" ] || [ -z "$plugin" ]; then
    printf 'Orthanc: left out (apt install orthanc orthanc-dicomweb)\npassed\n'
    exit 0
fi
port="$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
mkdir "$work/store" "$work/ohif"
[ -z "${HOSPITAL_OHIF:-}" ] || cp -r "$HOSPITAL_OHIF/." "$work/ohif"
cp scripts/_ohif.js "$work/ohif/app-config.js"
folders="$(find /usr/share/orthanc/plugins -name 'libServeFolders.so' 2>/dev/null | head -n 1 || true)"
cat >"$work/orthanc.json" <<JSON
{"Name": "smoke", "StorageDirectory": "$work/store", "IndexDirectory": "$work/store", "HttpPort": $port,
 "RemoteAccessAllowed": false, "HttpBindAddresses": ["127.0.0.1"], "AuthenticationEnabled": false, "DicomServerEnabled": false,
 "Plugins": ["$plugin"${folders:+, \"$folders\"}], "DicomWeb": {"Enable": true, "Root": "/dicom-web/"},
 "ServeFolders": {"/ohif": "$work/ohif"}}
JSON
printf 'Orthanc, on 127.0.0.1:%s\n' "$port"
"$orthanc" "$work/orthanc.json" >"$work/server.log" 2>&1 &
patient="$(cd "$work/results" && ls | head -n 1)"
timeout --foreground "$STEP" "$python" -m shared.apps.hospital.dicomweb "http://127.0.0.1:$port/dicom-web" \
    "$work/export/$patient/S1" "$work/results/$patient" --wait "$START" &
wait $! || die "stopped: what Orthanc keeps is not what was sent"
if [ -n "${HOSPITAL_OHIF:-}" ] && [ -n "$folders" ] && command -v chromium >/dev/null; then
    pictures="$ROOT/bundles/ircl_mvi/eval/hospital"
    mkdir -p "$pictures"
    study="$("$python" -c 'import pydicom, sys; print(pydicom.dcmread(sys.argv[1]).StudyInstanceUID)' "$work/results/$patient/page.dcm")"
    for name in biomarkers page; do
        # the clock runs as fast as the machine can: two minutes of the viewer's time
        step "picture of the $name in OHIF: ${pictures#"$ROOT/"}/ohif_$name.png" chromium --headless=new --no-sandbox --disable-dev-shm-usage \
            --enable-unsafe-swiftshader --use-angle=swiftshader --hide-scrollbars --user-data-dir="$work/browser_$name" \
            --window-size=1400,840 --virtual-time-budget=120000 --screenshot="$pictures/ohif_$name.png" \
            "http://127.0.0.1:$port/ohif/index.html?study=$study&show=$name,"
    done
else
    printf 'OHIF: left out (HOSPITAL_OHIF, apt install chromium)\n'
fi
printf 'passed\n'
