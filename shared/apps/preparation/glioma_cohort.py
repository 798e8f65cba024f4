"""Many patients prepared in parallel, each on its own: what fails is told at the end and stops nobody else."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from shared.apps.preparation.glioma_patient import (
    PatientFiles,
    Steps,
    fingerprint,
    kept_row,
    load_tools,
    patient_landmarks,
    prepare_patient,
    read_patient,
)
from shared.apps.preparation.intensity import check_reference, write_reference
from shared.data.brain.preparation import REFERENCE
from shared.digests import Digests
from shared.errors import DataError


def cohort_reference(
    patients: Sequence[PatientFiles],
    steps: Steps,
    output: Path,
    *,
    file: Path | None,
    patient: str | None,
    digests: Digests,
) -> dict[str, list[float]] | None:
    """Landmarks to which all patients are matched: from ``file``, from an earlier run, or made of one patient.

    Args:
        patients: the cohort.
        steps: what is done.
        output: the prepared folder; the reference is kept there for new patients.
        file: reference of another cohort.
        patient: whose brightness is the standard; None: the first patient who can be read.
        digests: of files.

    Raises:
        DataError: the file does not fit, or no patient can be read.
    """
    if not steps.histogram:
        return None
    target, names = output / REFERENCE, list(steps.sequences)
    if file is not None:
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: is no readable histogram reference ({error})") from error
        marks = check_reference(content, names, file)
        if Path(file).resolve() != target.resolve():
            write_reference(target, content.get("patient", "another cohort's"), marks)
        return marks
    if patient is not None and patient not in [files.patient for files in patients]:
        raise DataError(f"--reference-patient {patient!r} is none of the {len(patients)} patients")
    candidates = [files for files in patients if patient in (None, files.patient)]
    try:
        content = json.loads(target.read_text(encoding="utf-8"))
        source = next(files for files in candidates if files.patient == content["patient"])
        if content.get("fingerprint") == fingerprint(source, steps, None, digests):
            return check_reference(content, names, target)
    except (OSError, ValueError, KeyError, StopIteration):
        pass
    problems: list[str] = []
    for files in candidates:
        try:
            found = patient_landmarks(read_patient(files, steps, load_tools(steps)))
        except DataError as error:
            problems += [f"{files.patient}: {line}" for line in error.problems]
            continue
        mark = fingerprint(files, steps, None, digests)
        return check_reference(write_reference(target, files.patient, found, fingerprint=mark), names, target)
    raise DataError(problems)


_stopped = False  # of a worker process that was told to end


def _begin_worker() -> None:
    """Ctrl-C is the parent's: it ends the workers by SIGTERM, and they tidy up (half-written and temporary files)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)


def _stop(*_: Any) -> None:
    global _stopped
    if not _stopped:  # a second signal would cut the tidying up short
        _stopped = True
        raise SystemExit(130)


def _work(files: PatientFiles, *rest: Any) -> dict[str, Any]:
    if _stopped:  # the pool hands the next patient on although this one was interrupted
        raise SystemExit(130)
    return prepare_patient(files, *rest)


def prepare_cohort(
    patients: Sequence[PatientFiles],
    steps: Steps,
    output: Path,
    reference: Mapping[str, list[float]] | None,
    *,
    digests: Digests,
    jobs: int = 1,
) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Prepare all patients whose files, settings or results changed; one line each, and a progress bar.

    Args:
        patients: where their images lie.
        steps: what is done.
        output: the prepared folder.
        reference: landmarks by sequence, or None.
        digests: of files.
        jobs: patients at a time; each takes its share of the processors.

    Returns:
        rows of registration.csv in the patients' order, and the problems of those who failed, by name.
    """
    from tqdm import tqdm

    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", threads)
    rows: dict[str, dict[str, Any]] = {}
    failed: dict[str, list[str]] = {}
    with tqdm(total=len(patients), desc="preparing", unit="patient") as bar:

        def told(name: str, call: Any) -> None:
            try:
                if (row := call()) is None:
                    return
                rows[name], line = row, describe(row)
            except DataError as error:
                failed[name] = error.problems
                line = f"{name}: failed: {'; '.join(error.problems)}"
            except Exception as error:  # one patient's failure inside a library does not stop the others
                failed[name] = [f"{type(error).__name__}: {error}"]
                line = f"{name}: failed: {failed[name][0]}"
            bar.write(line)
            bar.update()

        marks: dict[str, str] = {}

        def kept(files: PatientFiles) -> dict[str, Any] | None:
            mark = marks[files.patient] = fingerprint(files, steps, reference, digests)
            return kept_row(files.patient, output, mark, digests)

        for files in patients:
            told(files.patient, lambda files=files: kept(files))
        digests.save()
        ended = {*rows, *failed}
        waiting = [(f, steps, output, reference, marks[f.patient]) for f in patients if f.patient not in ended]
        if jobs == 1:
            for given in waiting:
                told(given[0].patient, lambda given=given: prepare_patient(*given))
        else:
            # spawned, not forked: the libraries' threads do not survive a fork
            with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_begin_worker) as pool:
                running = {pool.submit(_work, *given): given[0].patient for given in waiting}
                try:
                    for future in as_completed(running):
                        told(running[future], future.result)
                except KeyboardInterrupt:
                    bar.write("stopping: each process ends with the step it is at")
                    pool.shutdown(wait=False, cancel_futures=True)
                    for process in active_children():
                        process.terminate()
                    raise
    ordered = [files.patient for files in patients]
    return [rows[name] for name in ordered if name in rows], {name: failed[name] for name in ordered if name in failed}


def describe(row: Mapping[str, Any]) -> str:
    """One line on a prepared patient.

    Example:
        >>> row = {"patient": "P1", "method": "ANTs SyN", "dice": 0.98, "tumour_ml": 10.0, "tumour_ml_mni": 12.0}
        >>> describe({**row, "tumour_ratio_to_brain": 1.02, "seconds": 8.0, "flags": "", "kept": True})
        "P1: kept (ANTs SyN, 8 s), brain Dice 0.980, tumour 10.0 -> 12.0 ml (1.02 of the brain's growth)"
    """
    how = (
        f"kept ({row['method']}, {row['seconds']:.0f} s)"
        if row.get("kept")
        else f"{row['method']}, {row['seconds']:.0f} s"
    )
    line = (
        f"{row['patient']}: {how}, brain Dice {row['dice']:.3f}, tumour {row['tumour_ml']:.1f} -> "
        f"{row['tumour_ml_mni']:.1f} ml ({row['tumour_ratio_to_brain']:.2f} of the brain's growth)"
    )
    return f"{line}; LOOK AT IT: {row['flags']}" if row["flags"] else line


def flag_outliers(rows: Sequence[dict[str, Any]], least: int = 10) -> list[dict[str, Any]]:
    """Rows with a further flag where Dice or tumour ratio lies far from the cohort's (3.5 robust deviations).

    Args:
        rows: of registration.csv.
        least: patients below which a cohort has no usual values.

    Example:
        >>> rows = [{"dice": 0.97 + 0.001 * i, "tumour_ratio_to_brain": 1.0, "flags": ""} for i in range(11)]
        >>> [row["flags"] for row in flag_outliers([*rows, {**rows[0], "dice": 0.91}])][-2:]
        ['', "Dice unlike the cohort's"]
    """
    import numpy as np

    flagged = [dict(row) for row in rows]
    if len(rows) < least:
        return flagged
    for key, text in (("dice", "Dice unlike the cohort's"), ("tumour_ratio_to_brain", "ratio unlike the cohort's")):
        values = np.log([max(row[key], 1e-3) for row in rows])
        away = values - np.median(values)
        spread = max(1.4826 * float(np.median(np.abs(away))), 0.005)
        for row, distance in zip(flagged, away, strict=True):
            if (distance < 0 if key == "dice" else True) and abs(distance) > 3.5 * spread:
                row["flags"] = "; ".join([*filter(None, [row["flags"]]), text])
    return flagged
