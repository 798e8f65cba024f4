"""Sets of classes and reasons to abstain, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SEPARATOR = "; "
NONE = "none"
"""The text of a set without a class; an empty cell means that no sets were made."""


def set_text(plausible: Sequence[bool], class_names: Sequence[str]) -> str:
    """Names of the plausible classes.

    Example:
        >>> set_text([True, True], ["HP", "SSA"]), set_text([False, True], ["HP", "SSA"]), set_text([False, False], [])
        ('HP; SSA', 'SSA', 'none')
    """
    return SEPARATOR.join(name for name, inside in zip(class_names, plausible, strict=False) if inside) or NONE


def set_of(text: str, class_names: Sequence[str]) -> list[bool]:
    """Which classes a set's text names.

    Example:
        >>> set_of("HP; SSA", ["HP", "SSA"]), set_of("none", ["HP", "SSA"])
        ([True, True], [False, False])
    """
    named = text.split(SEPARATOR)
    return [name in named for name in class_names]


def reason_text(
    plausible: Sequence[bool] | None,
    coverage: float,
    distance: float | None = None,
    limit: float | None = None,
    exchanged: Sequence[str] = (),
    covariates: Mapping[str, float] | None = None,
    *,
    sure: bool = True,
) -> str:
    """Why a prediction should not be used as it is; nothing where one class is plausible and the patient is known.

    Args:
        plausible: which classes are; None: not known.
        coverage: of the sets.
        distance: of the patient from the training patients.
        limit: from which distance on a patient is unlike them.
        exchanged: names of two modalities that look exchanged.
        covariates: those that seem to be in another unit, and how many SD they are from the training patients' mean.
        sure: the exchange explains all that is odd about the two.

    Example:
        >>> reason_text([True, True], 0.9, 3.14, 2.2)
        'both classes are plausible at 90 %; unlike the training patients: distance 3.14, limit 2.20'
    """
    reasons = []
    if plausible is not None and sum(plausible) != 1:
        reasons.append(f"{'both classes are' if all(plausible) else 'no class is'} plausible at {100 * coverage:g} %")
    if distance is not None and limit is not None and not distance <= limit:
        reasons.append(f"unlike the training patients: distance {distance:.2f}, limit {limit:.2f}")
    if exchanged:
        text = "look exchanged" if sure else "differ otherwise than in the training patients"
        reasons.append(f"{' and '.join(exchanged)} {text}")
    for name, far in (covariates or {}).items():
        reasons.append(f"{name} is {abs(far):.0f} SD from the training patients' mean: another unit?")
    return SEPARATOR.join(reasons)


def shift_text(found: Mapping[str, Any]) -> str:
    """That patients together are unlike those of the training, or have two modalities exchanged.

    Example:
        >>> shift_text({"patients": 24, "sd": 1.51, "p": 2e-7})
        'the 24 patients together are unlike the training patients: shifted by 1.5 SD, p < 0.001'
    """
    together = f"the {found['patients']} patients together"
    if found.get("exchanged"):
        return f"in {together}, {' and '.join(found['exchanged'])} look exchanged"
    return f"{together} are unlike the training patients: shifted by {found['sd']:.1f} SD, p < 0.001"
