"""Which DICOM series of a patient is which modality: by rules on the header, or by common names; never a guess."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.apps.preparation.matching import Lacking, has_words, other_sequences, spaced
from shared.data.dicom.headers import Instance, scrubbed
from shared.data.dicom.rules import Rule, passes
from shared.data.dicom.stack import LEAST_SLICES

IMAGES = {  # SOP classes of cross-sectional images
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "enhanced CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "legacy converted enhanced CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "enhanced MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "legacy converted enhanced MR",
    "1.2.840.10008.5.1.4.1.1.128": "PET",
    "1.2.840.10008.5.1.4.1.1.130": "enhanced PET",
}
# a contrast phase of the liver on T1: names of the modality, then words of a description
PHASES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("t1", "t1pre", "pre", "native"), ("t1", "t1w", "pre", "pre contrast", "precontrast", "native", "unenhanced")),
    (("t1a", "ap", "hap", "art", "arterial"), ("t1a", "arterial", "late arterial", "early arterial", "art", "hap")),
    (
        ("t1v", "t1p", "pv", "pvp", "vp", "portal", "venous"),
        ("t1v", "portal", "portal venous", "portalvenous", "venous", "pv", "pvp"),
    ),
    (
        ("t1d", "dp", "delayed", "late", "equilibrium"),
        ("t1d", "delayed", "delay", "late", "equilibrium", "delayed venous", "late venous", "late portal venous"),
    ),
    (("hbp", "t1h", "hepatobiliary"), ("hbp", "hepatobiliary", "hepatobiliary phase")),
)
# words of a contrast agent beside those of matching.RANKS: a series that has one is not native
AGENTS = (
    *("c", "km", "gadolinium", "gado", "gadovist", "dotarem", "primovist", "eovist", "multihance", "magnevist"),
    *("kontrast", "kontrastmittel", "dyn", "dynamic", "dynamics"),
)
_DELAY = re.compile(r"\b\d+ ?(s|sec|min)\b")  # after the contrast agent
SCOUTS = ("localizer", "localiser", "scout", "survey", "surview", "topogram", "scanogram")
MADE = ("DERIVED", "SECONDARY", "LOCALIZER", "MIP", "MIN IP", "MPR", "PROJECTION IMAGE", "MOSAIC", "SUBTRACTION", "SUB")


@dataclass(frozen=True)
class Series:
    """Images of one series, or those that a rule takes of it."""

    uid: str
    instances: tuple[Instance, ...]

    @property
    def values(self) -> Mapping[str, Any]:
        """The first image's header."""
        return self.instances[0].values

    @property
    def frames(self) -> int:
        """Number of frames of all images."""
        return sum(len(one.frames) for one in self.instances)

    @property
    def description(self) -> str:
        """SeriesDescription, or, where there is none, ProtocolName."""
        return str(self.values.get("SeriesDescription") or self.values.get("ProtocolName") or "")

    def shown(self) -> str:
        """One line that helps to write a rule, without words that name somebody."""
        values = self.values
        hidden = {word for one in self.instances for word in one.hidden} | _words(self.instances[0].patient)
        kind = "\\".join(map(str, values.get("ImageType") or ["no ImageType"]))
        numbers = "".join(
            f", {short} {values[key]:g}"
            for key, short in (("EchoTime", "TE"), ("RepetitionTime", "TR"))
            if isinstance(values.get(key), float | int)
        )
        described = f"series {values.get('SeriesNumber')} {scrubbed(self.description, hidden)!r}"
        return f"{described} ({self.frames} images, {scrubbed(kind, hidden)}{numbers})"


def group_series(instances: Iterable[Instance]) -> list[Series]:
    """Images by Series Instance UID, in the order of their numbers."""
    found: dict[str, list[Instance]] = {}
    for one in instances:
        found.setdefault(str(one.values.get("SeriesInstanceUID")), []).append(one)
    made = [Series(uid, tuple(sorted(many, key=_instance_number))) for uid, many in found.items()]
    return sorted(made, key=lambda one: (_number(one.values.get("SeriesNumber")), one.uid))


def unfit(series: Series) -> str | None:
    """Why a series is taken only where a rule names its ImageType: derived, a scout; None: an original one."""
    kind = [str(part).strip().upper() for part in _listed(series.values.get("ImageType"))]
    if made := [word for word in MADE if word in kind]:
        return f"ImageType holds {made[0]}"
    if scout := [word for word in SCOUTS if has_words(series.description, word)]:
        return f"a scout ({scout[0]})"
    if series.frames < LEAST_SLICES:
        return f"{series.frames} images only"
    return None


def no_image(series: Series) -> bool:
    """Whether it is something else than a CT, MR or PET image: a report, a screen shot, a presentation state."""
    return series.values.get("SOPClassUID") not in IMAGES


def by_default(series: Series, modality: str, words: Sequence[str] | None) -> str | None:
    """Why a series is not that modality by its description, "" where no word of it is there; None: it is.

    Args:
        series: the series.
        modality: its name.
        words: that stand for it; None: those of a liver's phase, or the name itself.
    """
    text = series.description
    phase = None if words else next((many for names, many in PHASES if modality.casefold() in names), None)
    there = sorted((w for w in words or phase or (modality,) if has_words(text, w)), key=len, reverse=True)
    if not there:
        return ""
    if phase:
        rest = spaced(text).replace(spaced(there[0]), " ", 1)
        others = other_sequences(rest, "T1")
    else:
        others = min((other_sequences(text, word) for word in there), key=len)
    if others:
        return f"its name holds {', '.join(others)}, too"
    if modality.casefold() in PHASES[0][0]:
        if agents := [word for word in AGENTS if has_words(text, word)]:
            return f"its name holds {agents[0]}, as of a contrast agent"
        if delay := _DELAY.search(spaced(text)):
            return f"its name holds {delay[0]}, as of a delay after a contrast agent"
        if series.values.get("ContrastBolusAgent"):
            return "its header names a contrast agent"
    return None


def choose_series(
    patient: str,
    series: Sequence[Series],
    modality: str,
    rules: Sequence[Rule] | None,
    words: Sequence[str] | None,
) -> tuple[Series | None, list[str]]:
    """The one series that is a modality, or what is wrong: none (:class:`Lacking`), or several.

    Args:
        patient: its name.
        series: of the patient.
        modality: its name.
        rules: of the command line; None: by common names.
        words: that stand for the modality; see :func:`by_default`.
    """
    images = [one for one in series if not no_image(one)]
    found, aside = list[Series](), list[str]()
    for one in images:
        if rules:
            taken = tuple(i for i in one.instances if passes(rules, i.values))
            reason = None if taken else ""
            asked = any(test.keyword == "ImageType" for rule in rules for test in rule)
        else:
            taken, reason, asked = one.instances, by_default(one, modality, words), False
        if reason is None and not asked:
            reason = unfit(Series(one.uid, taken))
        if reason is None:
            found.append(Series(one.uid, taken))
        elif reason:
            aside.append(f"{one.shown()}: {reason}")
    how = "--series" if rules else "its common names"
    if len(found) == 1:
        return found[0], []
    if found:
        shown = "; ".join(one.shown() for one in found)
        return None, [
            f"{patient}: {len(found)} series are {modality} by {how}: {shown}. Choose one: --series "
            f"{modality}='SeriesDescription~WORD & ...' (any field of the header, as SeriesNumber, EchoTime, StudyDate)"
        ]
    there = "; ".join(one.shown() for one in images) or "none"
    kinds = sorted({str(one.values.get("Modality")) for one in series if no_image(one)})
    there += f" (and {', '.join(kinds)}: no CT, MR or PET images)" if kinds else ""
    lines = f"; left aside: {'; '.join(aside)}" if aside else ""
    remedy = "correct the rule" if rules else f"give --series {modality}='SeriesDescription~WORD'"
    allow = "; a derived series is taken where the rule names its ImageType" if aside else ""
    return None, [
        Lacking(f"{patient}: no series is {modality} by {how}{lines}. Its series are: {there}. {remedy}{allow}")
    ]


def choose_all(
    patient: str,
    series: Sequence[Series],
    modalities: Sequence[str],
    rules: Mapping[str, Sequence[Rule]],
    words: Mapping[str, Sequence[str]],
) -> tuple[dict[str, Series], list[str], list[str]]:
    """A series for every modality; what is wrong, and what a person should look at.

    Returns:
        series by modality, problems (:class:`Lacking`: there is none), flags.
    """
    chosen, problems, flags = dict[str, Series](), list[str](), list[str]()
    for modality in modalities:
        one, wrong = choose_series(patient, series, modality, rules.get(modality), words.get(modality))
        problems += wrong
        if one is not None:
            chosen[modality] = one
            whole = next(other for other in series if other.uid == one.uid)
            if len(one.instances) < len(whole.instances):
                flags.append(
                    f"{patient}: {modality}: the rule takes {one.frames} of {whole.frames} images of one series"
                )
    owners: dict[tuple, list[str]] = {}
    for modality, one in chosen.items():
        owners.setdefault(tuple(i.uid for i in one.instances), []).append(modality)
    problems += [
        f"{patient}: one series is {' and '.join(names)}; make their rules differ"
        for names in owners.values()
        if names[1:]
    ]
    studies = {str(one.values.get("StudyInstanceUID")) for one in chosen.values()}
    if len(studies) > 1:
        shown = "; ".join(f"{modality}: {one.shown()}" for modality, one in chosen.items())
        problems.append(
            f"{patient}: its series are of {len(studies)} studies ({shown}); choose one study, as by "
            "StudyDate=YYYYMMDD in each rule"
        )
    frames = {str(one.values.get("FrameOfReferenceUID")) for one in chosen.values()}
    if len(frames) > 1:
        flags.append(f"{patient}: its series have {len(frames)} frames of reference: they may not be aligned")
    return chosen, problems, flags


def _listed(value: Any) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, float | int) else float("inf")


def _instance_number(one: Instance) -> tuple[float, str]:
    return _number(one.values.get("InstanceNumber")), one.uid


def _words(text: str) -> set[str]:
    return {word for word in spaced(text).split() if len(word) > 1}
