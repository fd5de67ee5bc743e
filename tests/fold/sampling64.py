"""GridSample in float64: PyTorch's, which is what the specification follows.

onnx's reference finds places in float32, and moves those outside of the image before it interpolates by cubes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnx.reference.op_run import OpRun

_MODES = {"linear": "bilinear", "cubic": "bicubic"}


class GridSample(OpRun):  # type: ignore[misc]  # onnx has no annotations
    """PyTorch's, by both names of its modes."""

    op_domain = ""

    def _run(self, x: Any, grid: Any, mode: Any = None, padding_mode: Any = None, align_corners: Any = None) -> Any:
        image, places = (torch.from_numpy(np.array(a)) for a in (x, grid))
        y = torch.nn.functional.grid_sample(
            image, places, _MODES.get(mode, mode or "bilinear"), padding_mode or "zeros", bool(align_corners)
        )
        return (y.numpy(),)
