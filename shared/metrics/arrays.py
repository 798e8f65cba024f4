"""One array type for code that needs no torch: tensors, on any device, and lists become NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np


def to_numpy(x: Any) -> np.ndarray:
    """``x`` as a NumPy array, a tensor detached and on the CPU, without importing torch.

    Example:
        >>> to_numpy([1.0, 2.0]).tolist()
        [1.0, 2.0]
    """
    return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
