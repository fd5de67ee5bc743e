"""Exports a module, runs it in ONNX Runtime over its ranges, and holds it to float64 PyTorch."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from normdeploy import specs as input_specs
from normdeploy.export import Exported, to_graph
from normdeploy.export.values import flatten_outputs
from normdeploy.graph import MODULE_KEY
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner

Arrays = dict[str, np.ndarray]
Call = Callable[[nn.Module, dict[str, torch.Tensor]], Any]
"""Calls a module with named tensors, where their names are not its keyword arguments."""
POINTS: tuple[Literal["min", "opt", "max"], ...] = ("min", "opt", "max")


def export(module: nn.Module, *texts: str, **options: Any) -> Exported:
    return to_graph(module.eval(), input_specs.parse(texts), **options)


@lru_cache(maxsize=1)
def session(exported: Exported) -> OnnxRuntimeRunner:
    """One for all sizes at which a graph runs in turn; a graph that was run is not changed."""
    return OnnxRuntimeRunner(serialized(exported), threads=1)


def run(exported: Exported, feeds: Arrays) -> Arrays:
    runner = session(exported)
    assert (runner.inputs, runner.outputs) == (exported.inputs, exported.outputs)
    return runner(feeds)


def serialized(exported: Exported) -> bytes:
    return ir.serde.serialize_model(exported.model).SerializeToString()


def feeds_of(*texts: str, seed: int = 0) -> Iterator[Arrays]:
    """Random arrays with every dimension at its min, then opt, then max."""
    specs, random = input_specs.parse(texts), np.random.default_rng(seed)
    for point in POINTS:
        sizes = input_specs.sizes_at(specs, point)
        yield {spec.name: _random(spec, spec.shape(sizes), random) for spec in specs}


def _random(spec: input_specs.TensorSpec, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if spec.dtype.startswith("float"):
        return random.standard_normal(shape).astype(spec.dtype)
    return random.integers(int(spec.low or 0), int(spec.high or 0) + 1, shape).astype(spec.dtype)


def eager(module: nn.Module, feeds: Arrays, dtype: torch.dtype | None = None, call: Call | None = None) -> Arrays:
    """What PyTorch gives, in float64 where asked, by the names of the graph's outputs."""
    module = copy.deepcopy(module) if dtype is None else copy.deepcopy(module).to(dtype)
    tensors = {name: torch.tensor(array) for name, array in feeds.items()}
    cast = {n: t.to(dtype) if dtype and t.is_floating_point() else t for n, t in tensors.items()}
    with torch.no_grad():
        result = module(**cast) if call is None else call(module, cast)
    specs = input_specs.parse([f"{name}:1" for name in feeds])
    return {name: tensor.detach().numpy() for name, tensor in flatten_outputs(result, specs=specs).items()}


def hold(module: nn.Module, *texts: str, call: Call | None = None, **options: Any) -> Exported:
    """Export, and require at every end of the ranges an error against float64 within 4 times eager's own.

    The floor of 8 ulps is for modules that are nearly exact in eager; a wrong norm is off by some 1e6 ulps.
    """
    exported = export(module, *texts, **options)
    assert all(set(node.metadata_props) == {MODULE_KEY} for node in nodes(exported))
    for feeds in feeds_of(*texts):
        exact, plain = eager(module, feeds, torch.float64, call), eager(module, feeds, None, call)
        actual = run(exported, feeds)
        assert list(actual) == list(exact)
        for name, reference in exact.items():
            assert (actual[name].shape, actual[name].dtype) == (plain[name].shape, plain[name].dtype), name
            if not reference.size or reference.dtype != np.float64:
                np.testing.assert_array_equal(actual[name], plain[name], err_msg=name)
                continue
            assert np.any(reference), f"{name} is all zeros, which tests nothing"
            bound = 4 * rms(plain[name] - reference, reference) + 8 * np.finfo(plain[name].dtype).eps
            assert rms(actual[name] - reference, reference) <= bound, (name, reference.shape)
    return exported


def rms(difference: np.ndarray, reference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(difference)) / np.mean(np.square(reference))))


def operators(exported: Exported) -> Counter[str]:
    return Counter(node.op_type for node in nodes(exported))


def nodes(exported: Exported) -> list[ir.Node]:
    """Every node, those inside If and Loop too."""
    return list(ir.traversal.RecursiveGraphIterator(exported.model.graph))


def lived_in(module: nn.Module) -> nn.Module:
    """Seeded parameters and statistics far from the identity: gammas of both signs, variances from 0.5 to 4."""
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(0.5 + 3.5 * torch.rand(tensor.shape, generator=random))
            elif tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=random))
    return module.eval()
