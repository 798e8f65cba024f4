"""Pages of single patients, checklists and a model card from an output folder; or a check of its trace.

FOLDER is the output_dir of an inference or explanation: report/<patient>.html and report/index.html are written. Of a
study or an evaluation (study.json, metrics.json): report.html, checklists/ and MODEL_CARD.md.

    python scripts/report.py bundles/ircl_mvi/eval/inference --dataset_dir data/hcc
    python scripts/report.py bundles/ircl_mvi/eval/inference --check-trace data/hcc
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from shared.errors import DataError


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", metavar="FOLDER", type=Path, help="output_dir of an inference, explanation, evaluation or study")
    add("--patients", nargs="+", metavar="P", help="whose pages are written (default: all patients)")
    add("--pseudonyms", action="store_true", help="numbers in place of patients' ids; without pictures that show them")
    add("--dataset_dir", type=Path, help="where the images are, for the viewer (default: where trace.json says)")
    add("--niivue", metavar="FILE", type=Path, help="niivue.umd.js (default: that of the installed nilearn)")
    add("--check-trace", metavar="DATASET_DIR", type=Path, help="say what has changed since; write nothing")
    add("--ckpt_dir", type=Path, help="the model's folder: compared with --check-trace, told in the model card")
    add("--bundle", help="of MODEL_CARD.md (default: the study's)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages, or check the trace; 1 where something has changed."""
    args = arguments(argv)
    if not args.folder.is_dir():
        raise DataError(f"{args.folder} is no folder: give the output_dir of a run")
    if args.check_trace:
        from shared.reports.trace import check_trace

        problems = check_trace(args.folder, args.check_trace, args.ckpt_dir)
        print("\n".join(problems) or "Nothing has changed since the prediction.")
        return int(bool(problems))
    evaluated = any((args.folder / name).is_file() for name in ("study.json", "metrics.json", "results.json"))
    if evaluated:
        from shared.apps.study.report import write_report

        print(f"Report: {write_report(args.folder, pseudonyms=args.pseudonyms)}")
        _card(args)
    if evaluated and not any((args.folder / name).exists() for name in ("predictions.csv", "explanations.csv")):
        return 0
    from shared.apps.report.patients import write_patient_pages

    given = {"patients": args.patients, "pseudonyms": args.pseudonyms}
    pages = write_patient_pages(args.folder, **given, dataset_dir=args.dataset_dir, niivue=args.niivue)
    print(f"Patients: {pages[-1]} ({len(pages) - 1} pages)")
    return 0


def _card(args: argparse.Namespace) -> None:
    """The model card, where the bundle is known."""
    from shared.apps.report.blocks import read_object

    name = args.bundle or (read_object(args.folder / "study.json") or {}).get("bundle")
    if name is None:
        print("No model card: give --bundle.")
        return
    from shared.apps import ROOT
    from shared.apps.report.model_card import write_model_card
    from shared.bundle.configs import find_bundle

    bundle = find_bundle(name, ROOT, "metadata.json")
    print(f"Model card: {write_model_card(args.folder, bundle, args.ckpt_dir)}")
