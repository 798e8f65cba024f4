"""A bundle for patches that needs no training: it writes checkpoints and predictions from the datalist alone."""

import json

# Stands in for `python -m monai.bundle run`, which takes seconds to start; the options are the same.
METHOD = """
import csv, hashlib, json, os, sys, time
from pathlib import Path

values = dict(argument[2:].split("=", 1) for argument in sys.argv if argument.startswith("--") and "=" in argument)
run_id = sys.argv[sys.argv.index("--run_id") + 1] if "--run_id" in sys.argv else "run"
config_file = sys.argv[sys.argv.index("--config_file") + 1]
scratch = "scratch.json" in config_file
seed, fold = int(values["seed"]), int(values["fold"])
ckpt_dir, output_dir, root = Path(values["ckpt_dir"]), Path(values["output_dir"]), Path(values["dataset_dir"])
ckpt_dir.mkdir(parents=True, exist_ok=True)
output_dir.mkdir(exist_ok=True)
datalist = json.loads(Path(values["datalist_file"]).read_text())
training = [case for case in datalist["training"] if case.get("fold") != fold]
with (output_dir / "calls.txt").open("a") as file:
    file.write(run_id + "\\n")
if os.environ.get("FAKE_FAIL") == f"{run_id} {output_dir.parent.name}/{output_dir.name}":
    raise ValueError("the network exploded")

if run_id in ("run", "pretrain_run") and not scratch and not (ckpt_dir / "pretrain.pt").exists():
    time.sleep(float(os.environ.get("FAKE_SLOW", 0)))
    pixels = len(training) + len(datalist.get("unlabelled", []))
    (ckpt_dir / "pretrain.pt").write_text(json.dumps({"seed": seed, "pixels": pixels}))
if run_id in ("run", "train_run"):
    start = None if scratch else json.loads((ckpt_dir / "pretrain.pt").read_text())
    trained = {case["image"]: case["label"] for case in training}
    (ckpt_dir / "model.pt").write_text(json.dumps({"trained": trained, "start": start}))
if run_id == "explain":
    left_out = [case for case in datalist["training"] if case.get("fold") == fold]
    assert (ckpt_dir / "model.pt").exists() and left_out and values["split"] == "validation"
    (output_dir / "localisation.json").write_text(json.dumps({"top": values["top"], "images": len(left_out)}))
if run_id == "evaluate":
    model = json.loads((ckpt_dir / "model.pt").read_text())
    split = values.get("split", "testing")
    left_out = [case for case in datalist["training"] if case.get("fold") == fold]
    cases = left_out if split == "validation" and left_out else datalist[split]
    assert not {case["image"] for case in cases} & set(model["trained"])
    patients = len({image.rsplit("_", 1)[0] for image in model["trained"]})
    strength = (0.2 if model["start"] else 0.0) + 0.05 * patients
    with (output_dir / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "label", "probability"])
        for case in cases:
            text = f"{seed}{case['image']}{strength}".encode()
            noise = int(hashlib.sha256(text).hexdigest(), 16) % 1000 / 1000
            share = min(strength, 1)
            path = root / case["image"]
            writer.writerow([path, case["patient"], case["label"], share * case["label"] + (1 - share) * noise])
"""
TRAIN = {
    **dict.fromkeys(("dataset_dir", "datalist_file", "ckpt_dir", "output_dir"), ""),
    **{"fold": 0, "seed": 0, "resume": False, "split": "validation", "epochs": 3},
    **{"run": "$1", "pretrain_run": "$1", "train_run": "$1"},
}


def write_bundle(folder):
    """The bundle's folder, with the overlays scratch.json and small.json; fake_method.py is what runs it."""
    (folder / "configs").mkdir(parents=True)
    (folder / "fake_method.py").write_text(METHOD)
    contents = {"train": TRAIN, "evaluate": {"split": "testing", "evaluate": "$1"}}
    contents |= {"explain": {"top": 1, "split": "testing", "explain": "$1"}}
    contents |= {"scratch": {"pretrained": None}, "small": {"epochs": 1}}
    for name, content in contents.items():
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content))
    return folder
