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


class DeformConv(OpRun):  # type: ignore[misc]
    """A convolution of what PyTorch's grid_sample reads at each tap; onnx's reference cannot read images of one row."""

    op_domain = ""

    def _run(self, x: Any, w: Any, offset: Any, b: Any = None, mask: Any = None, **attributes: Any) -> Any:
        if attributes.get("offset_group") not in (None, 1) or x.ndim != 4:
            raise NotImplementedError("no random graph needs it")
        groups, (rows, columns), cells = attributes.get("group") or 1, w.shape[2:], offset.shape[2:]
        strides, dilations = (attributes.get(name) or [1, 1] for name in ("strides", "dilations"))
        pads = attributes.get("pads") or [0] * 4
        padded = torch.nn.functional.pad(torch.from_numpy(np.array(x)), [1] * 4)  # beyond it all is 0 as well
        last = np.array(padded.shape[2:]) - 1.0
        starts = [np.arange(n) * s - p for n, s, p in zip(cells, strides, pads, strict=False)]
        y = np.zeros((x.shape[0], w.shape[0], *cells))
        for tap in range(rows * columns):
            within = np.array(divmod(tap, columns)) * dilations
            places = np.stack(np.meshgrid(*starts, indexing="ij")) + within.reshape(2, 1, 1)
            places = (places + offset[:, 2 * tap : 2 * tap + 2] + 1.0) / last.reshape(2, 1, 1) * 2.0 - 1.0
            grid = torch.from_numpy(np.ascontiguousarray(places.transpose(0, 2, 3, 1)[..., ::-1]))
            read = torch.nn.functional.grid_sample(padded, grid, align_corners=True).numpy()
            read = read if mask is None else read * mask[:, tap : tap + 1]
            parts = zip(np.split(read, groups, 1), np.split(w.reshape(*w.shape[:2], -1)[..., tap], groups), strict=True)
            y += np.concatenate([np.einsum("nihw,oi->nohw", part, kernel) for part, kernel in parts], 1)
        return (y if b is None else y + b.reshape(-1, 1, 1),)
