"""Make a cohort of synthetic liver patients in whom planted patterns drive the label: demo data, and the tests' truth.

Each tumour (irregular, 28-56 mm, its size independent of the label) may carry three patterns that the literature ties
to microvascular invasion. Where a pattern was painted is kept as an integer map, ``planted.nii.gz``:

    1  interrupted capsule: the thin bright rim has a gap and, beside it, a thick irregular arc   T1V, weaker in T1D
       (otherwise the thin rim is closed: an intact capsule)
    2  mosaic interior: an off-centre cluster of nodules, bright and dark, parted by septa        T1 and T1D
       (otherwise the interior is homogeneous)
    3  halo: an off-centre crescent outside the edge of the tumour                                T1D, weaker in T1V

Half of the tumours are "aggressive": they carry each pattern with probability 0.8, the others with 0.2. The label is
then drawn from the patterns alone: log-odds(label = 1) = effect * (number of patterns - 1.5). The AUC of the best
possible reader of the patterns follows exactly; it is printed and kept in manifest.json. Brightness scale, bias field,
noise, vessels, a dark core, spacing and orientation (oblique, LPS, sagittal or coronal storage) differ from patient to
patient and say nothing about the label.
"""

from __future__ import annotations

import math
from pathlib import Path

from shared.apps.phantoms import liver
from shared.apps.phantoms.liver import CONTRAST, PATTERNS, bayes_auc, draw_labels, paint_patient, visible_codes
from shared.apps.preparation.files import (
    phantom_is_there,
    positive_int,
    run_script,
    save_nifti,
    script_parser,
    seal_phantom,
    write_datalist,
    write_manifest,
)
from shared.data.splits import assign_folds
from shared.digests import sha256
from shared.io import DATALIST, write_csv

MODALITIES = {1: ("T1D",), 2: ("T1D", "T1V"), 3: ("T1", "T1D", "T1V")}
ORIENTATIONS = ("RAS", "RAS", "LPS", "LPS", "LAS", "PSR", "SPL", "LSA")


def write_patient(folder: Path, patient: dict, orientation: str) -> None:
    """Save the images, mask and planted map of one patient, their axes stored in the order ``orientation`` names."""
    import nibabel as nib
    import numpy as np

    change = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(orientation)
    )
    volumes = {name.lower(): array for name, array in patient["images"].items()}
    volumes |= {"mask": patient["mask"], "planted": patient["planted"]}
    for name, array in volumes.items():
        affine = patient["affine"] @ nib.orientations.inv_ornt_aff(change, array.shape)
        stored = np.ascontiguousarray(nib.orientations.apply_orientation(array, change))
        save_nifti(folder / f"{name}.nii.gz", stored, affine, description="synthetic phantom, not a patient")


def make_cohort(
    output: Path, *, patients: int, test_patients: int, modalities: int, seed: int, effect: float, folds: int
) -> dict:
    """Write the cohort into ``output``; the same arguments give the same files. Returns the manifest."""
    names = MODALITIES[modalities]
    recipe = {
        "patients": patients,
        "test_patients": test_patients,
        "modalities": list(names),
        "seed": seed,
        "effect": effect,
        "folds": folds,
        "generator": [sha256(path)[:16] for path in (liver.__file__, __file__)],
    }
    if phantom_is_there(output, recipe):
        print(f"{output}: this cohort is there already")
        return {}
    import numpy as np
    from sklearn.metrics import roc_auc_score
    from tqdm import tqdm

    rng = np.random.default_rng([seed, 0])
    rows = []
    for section, count in (("training", patients), ("testing", test_patients)):
        rows += [{"section": section, **drawn} for drawn in draw_labels(count, effect, rng)]
    rows = [{"patient": f"P{number:03d}", **row} for number, row in enumerate(rows, 1)]
    cases = [
        {
            "patient": row["patient"],
            "image": [f"{row['patient']}/{name.lower()}.nii.gz" for name in names],
            "mask": f"{row['patient']}/mask.nii.gz",
            "planted": f"{row['patient']}/planted.nii.gz",
            "label": row["label"],
            "covariates": {"age": float(rng.integers(35, 81))},
        }
        for row in rows
    ]
    training = assign_folds(cases[:patients], folds, seed)

    # A marker first, the datalist last: an interrupted run is seen to be one and can be run again.
    (output / DATALIST).unlink(missing_ok=True)
    write_manifest(output, phantom={"unfinished": True})
    for number, row in enumerate(tqdm(rows, desc="phantom patients", unit="patient"), 1):
        rng = np.random.default_rng([seed, number])
        orientation = ORIENTATIONS[rng.integers(len(ORIENTATIONS))]
        patient = paint_patient(row, row["diameter_mm"], names, rng)
        write_patient(output / row["patient"], patient, orientation)
        row["orientation"] = orientation
    write_csv(output / "patterns.csv", rows)

    def auc_of(section: str, column: str) -> float | None:
        chosen = [row for row in rows if row["section"] == section]
        labels = [row["label"] for row in chosen]
        return round(float(roc_auc_score(labels, [r[column] for r in chosen])), 3) if len(set(labels)) == 2 else None

    write_manifest(
        output,
        phantom=recipe,
        pattern_codes=PATTERNS,
        label="log-odds(label = 1) = effect * (number of patterns - 1.5)",
        visible={name: CONTRAST[name] for name in names},
        auc_best_reader=round(bayes_auc(effect), 4),
        auc_best_reader_drawn={section: auc_of(section, "probability") for section in ("training", "testing")},
        auc_tumour_diameter={section: auc_of(section, "diameter_mm") for section in ("training", "testing")},
    )
    write_datalist(
        output,
        name="phantom liver tumours",
        modalities=names,
        classes=["pattern-poor", "pattern-rich"],
        training=training,
        testing=cases[patients:],
        planted_visible={name: visible_codes(name) for name in names},
    )
    return seal_phantom(output)


def report(manifest: dict, options: dict) -> None:
    """Print what was made and how hard it is."""
    if manifest:
        print(f"{options['output']}: {options['patients']} + {options['test_patients']} patients")
        drawn, size = manifest["auc_best_reader_drawn"], manifest["auc_tumour_diameter"]
        print(
            f"AUC of the best reader of the patterns {manifest['auc_best_reader']:.3f}; with the labels drawn: {drawn}"
        )
        print(f"AUC of tumour diameter: {size}")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and make the cohort."""
    parser = script_parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="new or empty folder, or one this script made")
    parser.add_argument("--patients", type=positive_int, default=60, help="for training and cross-validation (60)")
    parser.add_argument("--test-patients", type=int, default=24, help="in the testing section (24)")
    parser.add_argument("--modalities", type=int, choices=sorted(MODALITIES), default=3, help="3: T1, T1D, T1V; 1: T1D")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn (0)")
    parser.add_argument("--effect", type=float, default=4.5, help="log-odds of label 1 per pattern (4.5); 0: none")
    parser.add_argument("--folds", type=int, default=5, help="stratified folds of the training patients (5)")
    options = vars(parser.parse_args(arguments))
    if options["test_patients"] < 0:
        parser.error("--test-patients must be at least 0")
    if not math.isfinite(options["effect"]):
        parser.error("--effect must be finite")
    if options["seed"] < 0:
        parser.error("--seed must be at least 0")
    return run_script(lambda: report(make_cohort(**options), options))
