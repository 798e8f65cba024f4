"""Griffe extension: ``Example:`` in a docstring is Griffe's section ``Examples:``, shown as code."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Renames the section in each docstring."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """An object whose docstring was just read."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
