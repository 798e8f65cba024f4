"""Overrides as texts: how they were typed, and what MONAI would make of them."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Sequence
from typing import Any

from monai.bundle import ConfigWorkflow
from monai.bundle.reference_resolver import ReferenceResolver

_INSTEAD = "put null into a small JSON file and list that last in --config_file."
# values of the command line that arrive as something else, or not at all
MISREAD = {
    "false": "it would arrive as a text, which counts as true; write False.",
    "null": f"it would arrive as a text; {_INSTEAD}",
    "None": f"it would be ignored without a word; {_INSTEAD}",
}


def expression_fault(text: str, parser: Any, known: set[str]) -> str | None:
    """Why MONAI would not get a value from a text that begins with ``$`` or is a reference."""
    if text[:1] not in ("$", "@"):
        return None
    plain = (
        f"A text that begins so is written ./{text}" if text[0] == "$" else f"A text of that name is written ./{text}"
    )
    for ref in ReferenceResolver.match_refs_pattern(text):
        if ref not in parser:
            return f"it refers to @{ref}, which is no key here. {plain}"
    if text[0] == "@" or text.startswith(("$import ", "$from ")):
        return None
    try:
        tree = ast.parse(ReferenceResolver.id_matcher.sub("_", text[1:]).strip(), mode="eval")
    except SyntaxError:
        return f"a value that begins with $ is a Python expression, and this is none. {plain}"
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    bound = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    bound |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)} | {"_"}
    for node in names:
        if node.id not in bound | known:
            return f"a value that begins with $ is a Python expression, and {node.id} is no name there. {plain}"
    return None


def typed_options(arguments: Sequence[str]) -> dict[str, str]:
    """Options of ``python -m monai.bundle run`` as they were typed, by one dash or two, without MONAI's own."""
    if len(arguments) < 2 or arguments[1] not in ("run", "run_workflow") or "monai" not in arguments[0]:
        return {}
    given = {}
    for i, argument in enumerate(arguments):
        if re.match(r"--?[A-Za-z_]", argument):
            name, equals, value = argument.lstrip("-").partition("=")
            name = name.replace("-", "_").replace("::", "#")
            given[name] = value if equals else next(iter(arguments[i + 1 : i + 2]), "")
    own = {*inspect.signature(ConfigWorkflow).parameters, "args_file", "workflow_name"}
    return {name: value for name, value in given.items() if name not in own}


def misread(value: str) -> str | None:
    """Why a value of the command line would not arrive as it reads, None where it does."""
    words = {value}
    if value[:1] in ("[", "{", "("):
        # within brackets a quoted word is a text, and None arrives
        words = set(re.findall(r"\w+", re.sub(r"'[^']*'|\"[^\"]*\"", "", value))) - {"None"}
    found = (MISREAD.get(word) or MISREAD.get(word.lower()) for word in words - {"False"})
    return next(filter(None, found), None)
