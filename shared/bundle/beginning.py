"""What every command of a bundle does first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shared.bundle.contents import check_vendored
from shared.bundle.overrides import check_overrides
from shared.errors import plain_errors
from shared.io import check_folder
from shared.progress import bars_as_lines

if TYPE_CHECKING:
    from monai.bundle import ConfigWorkflow


def begin(bundle_root: str | os.PathLike, workflows: Sequence[ConfigWorkflow] = (), seed: int | None = None) -> None:
    """Check whose code runs and what the command line sets, track all stages, seed; once in a workflow.

    From here on errors of our own are shown without a traceback, and progress in a log file as lines. Without a
    workflow, as where MONAI builds a network alone, only the code is checked.

    Args:
        bundle_root: the bundle's folder.
        workflows: the one being initialised, first.
        seed: of all random numbers; None: they stay as they are.

    Raises:
        DataError: a packaged bundle would run on other code than its own; a key that does not exist, or a value of
            another kind; a package that ``--tracking`` needs is missing; results cannot be written to ``output_dir``.
    """
    check_vendored(bundle_root)
    if not workflows or getattr(workflows[0], "begun", False):
        return
    workflows[0].begun = True
    from monai.utils import set_determinism

    from shared.bundle.tracking import track_stages

    plain_errors()
    bars_as_lines()
    check_overrides(workflows)
    if "output_dir" in (parser := workflows[0].parser):
        check_folder(parser.get_parsed_content("output_dir"))
    track_stages(workflows)
    if seed is not None:
        set_determinism(seed)
