"""``bench --layernorm``: TensorRT's own LayerNorm beside the plugin on this GPU, and a record of which is faster.

Written to TensorRT's documented API and not run on a GPU so far; what becomes of the measurements is tested.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import torch

from normdeploy.disk import scratch
from normdeploy.engine import build, gpu
from normdeploy.engine.backends import choose_for_plugins
from normdeploy.engine.layernorm_times import Spread, Times, record
from normdeploy.parity.plugins import with_plugins
from normdeploy.pipeline.stages import Progress, Stages
from normdeploy.precision import Precision
from normdeploy.runtime.tensorrt import TensorRTRunner
from normdeploy.specs import parse

_ROUNDS = 7
_FEATURES = (512, 1024, 2048, 4096, 8192)
_ROWS = (1024, 1 << 15)
"""Rows of a run: few, where the launch counts, and many, where memory does."""
_TYPES: dict[str, tuple[str, Precision]] = {
    "float16": ("float16", "fp16"),
    "bfloat16": ("bfloat16", "bf16"),
    "float32": ("float", "fp32"),
}
"""Type → what ONNX's text calls it, and the precision of an engine in it."""
_BODIES = {
    "LayerNorm": "y = LayerNormalization (x, gamma, beta)",
    "RMSNorm": "y = RMSNormalization (x, gamma)",
    "AddLayerNorm": "s = Add (x, r) y = LayerNormalization (s, gamma, beta)",
    "LayerNormQuantize": "n = LayerNormalization (x, gamma, beta) q = QuantizeLinear (n, scale, zero)"
    " y = DequantizeLinear (q, scale)",
}


@dataclass(frozen=True)
class Case:
    """One norm to measure: the plugin that it would be, the type of x and the features."""

    operator: str
    dtype: str
    features: int

    @property
    def inputs(self) -> dict[str, str]:
        """Name → spec of the inputs of :meth:`graph`."""
        names = ["x", "r"] if self.operator == "AddLayerNorm" else ["x"]
        short = {"float16": "f16", "bfloat16": "bf16", "float32": "f32"}[self.dtype]
        return {n: f"{n}:N={_ROWS[0]}..{_ROWS[1]}..{_ROWS[1]}x{self.features}@{short}" for n in names}

    def graph(self) -> ir.Model:
        """Return the network of the norm alone, in ONNX's own operators."""
        kind = f"{_TYPES[self.dtype][0]}[N,{self.features}]"
        outputs = f"{kind} y" + (f", {kind} s" if self.operator == "AddLayerNorm" else "")
        text = (
            f"g ({', '.join(f'{kind} {name}' for name in self.inputs)}) => ({outputs}) {{ {_BODIES[self.operator]} }}"
        )
        proto = onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["" : 23]> {text}')
        random, dtype = np.random.default_rng(self.features), np.dtype(self.dtype)
        names = ("gamma",) if self.operator == "RMSNorm" else ("gamma", "beta")
        weights = {name: random.uniform(0.5, 2, self.features).astype(dtype) for name in names}
        if self.operator == "LayerNormQuantize":
            weights |= {"scale": np.asarray(0.03, dtype), "zero": np.asarray(0, np.int8)}
        proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


CASES = tuple(Case(kind, dtype, n) for kind in _BODIES for dtype in _TYPES for n in _FEATURES)
Timer = Callable[[Case, Sequence[ir.Model]], dict[int, list[Spread]]]
"""Given a case and graphs of it: by rows, how long an engine of each graph takes."""


def bench_layernorm(progress: Progress | None = None, timer: Timer | None = None) -> tuple[Path, tuple[Times, ...]]:
    """Measure TensorRT's own norms beside the plugins on this GPU; record them in the user's file, and return both.

    Raises:
        UnavailableError: no GPU, or the full TensorRT is not installed: TensorRT-RTX takes no plugins.
        InputError: the user's file is none that can be added to.
    """
    device, stages = gpu.find(), Stages(progress)
    choose_for_plugins(None, gpu=device is not None, who="bench --layernorm", instead="")
    assert device is not None, "else that is refused"
    times: list[Times] = []
    for case in CASES:
        with stages(f"{case.operator} {case.dtype} {case.features}"):
            native = case.graph()
            found = (timer or _timed)(case, (native, with_plugins(native)[0]))
            for rows, (own, plugin) in found.items():
                times.append(
                    Times.model_validate(
                        {"operator": case.operator, "dtype": case.dtype, "features": case.features, "rows": rows,
                         "native": own, "plugin": plugin}
                    )
                )  # fmt: skip
    return record(device.model, times), tuple(times)


def _timed(case: Case, graphs: Sequence[ir.Model]) -> dict[int, list[Spread]]:
    """Return what TensorRT's profiler says of the layers, the engines in turn."""
    specs = parse(list(case.inputs.values()))
    with scratch() as folder:
        runners = []
        for index, graph in enumerate(graphs):
            built = build(graph, specs, precision=_TYPES[case.dtype][1], backend="tensorrt")
            runners.append(TensorRTRunner(built.write(folder / f"{index}.plan")))
        found = {}
        for rows in _ROWS:
            shape, dtype = (rows, case.features), getattr(torch, case.dtype)
            feeds = {name: torch.randn(shape, device="cuda").to(dtype) for name in case.inputs}
            rounds = [
                [sum(layer.milliseconds for layer in runner.layer_times(feeds)) for runner in runners]
                for _ in range(_ROUNDS)
            ]
            found[rows] = [
                Spread(least=min(samples), median=statistics.median(samples), most=max(samples))
                for samples in zip(*rounds, strict=True)
            ]
    return found
