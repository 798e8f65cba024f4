"""Of what kind the value of a config's key must be: as the bundle's own config has it, or as a table says."""

from __future__ import annotations

import math
import numbers
import os
from typing import Any

import torch

COMPUTED = object()
"""A default that is an expression, a component or null: of any kind, but for the keys below."""

PLACE = "a text, a file's or folder's name"
# keys whose defaults are computed, in some config at least
KINDS: dict[str, Any] = {
    "bundle_root": PLACE,
    "dataset_dir": PLACE,
    "datalist_file": PLACE,
    "atlas_file": PLACE,
    "signs_file": PLACE,
    "ckpt_dir": PLACE,
    "output_dir": PLACE,
    "train_config": PLACE,
    "slides": PLACE,
    "slide_labels": PLACE,
    "device": torch.device,
    "bf16": bool,
    "channels_last": bool,
}
CHOICES = {"split": ("training", "validation", "testing")}
# the last part of a key, and the least whole number it may be
_COUNTS = """epochs max_epochs batch_size num_slices num_modalities num_classes num_biomarkers in_channels size views
val_interval num_layers num_heads num_points num_voxels max_masks max_patients"""
AT_LEAST = {"seed": 0} | dict.fromkeys(_COUNTS.split(), 1)
TEXTS = {"covariates", "use_modalities", "encoders", "classes", "class_names", "sequences"}
"""Lists of texts; those of other keys hold what the bundle's own config has in them."""


def fault_of(key: str, value: Any, default: Any, typed: str | None = None) -> tuple[str | None, Any]:
    """What is wrong with a value, and the value as it is meant.

    Args:
        key: its key, ``a#b``.
        value: what arrived.
        default: the value of the bundle's own config; :data:`COMPUTED`: of any kind.
        typed: how it was written on the command line, where it was.

    Example:
        >>> fault_of("num_slices", "three", 3)[0]
        "it must be a whole number of at least 1, and is the text 'three'. Write --num_slices 3."
        >>> fault_of("dataset_dir", 20240501, COMPUTED)
        (None, '20240501')
    """
    last = key.rpartition("#")[2]
    if (isinstance(value, dict) and "_target_" in value) or (isinstance(value, str) and _is_config(value)):
        return None, value
    kind = KINDS.get(key, type(default))
    if kind is PLACE or isinstance(default, str):
        return _text(key, value, default, typed)
    if kind is torch.device:
        return _device(value)

    def wrong(rule: str, example: Any) -> str:
        return f"it must be {rule}, and is {_said(value)}. Write --{key} {example}."

    if kind is bool:
        if isinstance(value, str) and value.lower() == "true":
            return None, True
        return (None if isinstance(value, bool) else wrong("True or False", "True or False")), value
    least = AT_LEAST.get(last)
    if kind is int or (least is not None and value is not None and not isinstance(value, (dict, list))):
        rule = "a whole number" + (f" of at least {least}" if least is not None else "")
        example = default if isinstance(default, int) else least
        value = int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else value
        sound = isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)
        return (None if sound else wrong(rule, example)), value
    if kind is float:
        sound = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return (None if sound else wrong("a number", default)), value
    if kind is list or last in TEXTS:
        return _list(key, value, default if isinstance(default, list) else [], texts=last in TEXTS)
    if kind is dict and not isinstance(value, dict):
        return (
            f"it must be a dictionary, and is {_said(value)}. Write --{key}#NAME VALUE ({', '.join(default)}).",
            value,
        )
    return None, _unmangled(value, typed)


def _text(key: str, value: Any, default: Any, typed: str | None) -> tuple[str | None, Any]:
    """Texts; what the command line made of a folder called 20240501 is a text again."""
    rule = "a text" if isinstance(default, str) else PLACE
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value) if typed is None else typed
    if value is None and rule == "a text":
        return None, value
    choices = CHOICES.get(key)
    if not isinstance(value, str) or not value or (choices and value not in choices):
        rule, example = (f"one of {', '.join(choices)}", choices[-1]) if choices else (rule, "TEXT")
        return f"it must be {rule}, and is {_said(value)}. Write --{key} {example}.", value
    return None, _unmangled(value, typed)


def _device(value: Any) -> tuple[str | None, Any]:
    """``cuda:0`` as a device of this machine."""
    if isinstance(value, (torch.device, dict)):
        return None, value
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        return f"it must be a device, and is {_said(value)}. Write --device cpu or --device cuda:0.", value
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        return f"this machine has {count} CUDA devices. Write --device cpu{' or cuda:0' if count else ''}.", value
    return None, device


def _list(key: str, value: Any, default: list, *, texts: bool) -> tuple[str | None, Any]:
    """Lists, and of what kind their parts are."""
    kind: Any = str if texts else type(default[0]) if len({type(each) for each in default}) == 1 else None
    kinds, named = {
        str: (str, "texts"),
        int: (int, "whole numbers"),
        float: ((int, float), "numbers"),
    }.get(kind, (object, "values"))
    parts = list(value) if isinstance(value, (list, tuple)) else None
    computed = [isinstance(part, (str, dict)) and (isinstance(part, dict) or _is_config(part)) for part in parts or ()]
    if parts is None or not all(
        known or part is None or (isinstance(part, kinds) and not (isinstance(part, bool) and kind is not bool))
        for part, known in zip(parts, computed, strict=True)
    ):
        example = default or (["age"] if key == "covariates" else [value if isinstance(value, str) else "a"])
        return f'it must be a list of {named}, and is {_said(value)}. Write --{key} "{example}".', value
    return None, parts if isinstance(value, tuple) else value


def _is_config(text: str) -> bool:
    """Whether MONAI puts something else in a text's place."""
    return text.startswith("$") or (text.startswith("@") and text[1:].replace("::", "").replace("#", "").isidentifier())


def _unmangled(value: Any, typed: str | None = None) -> Any:
    """A text in which MONAI has written ``::`` for ``#``, as an expression: in those it can be said otherwise."""
    if not isinstance(value, str) or "::" not in value:
        return value
    meant = value.replace("::", "#") if typed is None else typed
    return "$" + ascii(meant).replace("#", r"\x23").replace("@", r"\x40")


def _said(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        return f"the text {value!r}"
    return f"{show(value)}, {_NAMES.get(type(value), type(value).__name__)}"


_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "a truth value",
    list: "a list",
    tuple: "a list",
    dict: "a dictionary",
}


def show(value: Any) -> str:
    """A value as a message gives it: short.

    Example:
        >>> show("x" * 100)
        'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...'
    """
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
