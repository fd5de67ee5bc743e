"""Files of torch's three exporters, folded as they are: they load, agree with float64, and keep the same norms; what
ONNX Runtime fused of them it still fuses.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from architectures import ARCHITECTURES, randomized
from layernorm_nets import NETWORKS, lived_in
from torch import nn

from normdeploy import specs
from normdeploy.export import example_inputs, flatten_outputs, to_graph
from normdeploy.fold import fold
from normdeploy.graph import operator

pytestmark = pytest.mark.real

NORMS = ("BatchNormalization", "LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization")
COMPUTE_CONSTANTS = ("CastLike", "SplitToSequence", "SequenceAt")
"""What no folded file may have left: torch writes it for constants alone."""
Arrays = list[np.ndarray]
Export = Callable[[nn.Module, dict[str, torch.Tensor], Path], None]


def _by_dynamo(optimize: bool) -> Export:
    def export(module: nn.Module, inputs: dict[str, torch.Tensor], path: Path) -> None:
        program = torch.onnx.export(module, (), kwargs=inputs, dynamo=True, optimize=optimize, verbose=False)
        assert program is not None
        program.save(path)

    return export


def _by_tracing(module: nn.Module, inputs: dict[str, torch.Tensor], path: Path) -> None:
    torch.onnx.export(module, (), path, kwargs=inputs, dynamo=False, input_names=list(inputs))


EXPORTERS: dict[str, Export] = {
    "optimize=False": _by_dynamo(False),
    "optimize=True": _by_dynamo(True),
    "dynamo=False": _by_tracing,
}

BROKEN = {
    ("GPT-2", "dynamo=False"): "torch cannot export aten::diff",
    ("PatchTST", "dynamo=False"): "the file that torch writes is refused by ONNX Runtime",
    ("PatchTSMixer", "dynamo=False"): "the file that torch writes is refused by ONNX Runtime",
}


@dataclass(frozen=True)
class Subject:
    """A network, one input of each kind at the sizes of its trace, and what float64 and eager float32 make of it."""

    name: str
    module: nn.Module
    inputs: dict[str, torch.Tensor]
    exact: Arrays
    eager_error: float
    norms: Counter[str]


def _drawn(parsed: list[specs.TensorSpec]) -> dict[str, torch.Tensor]:
    sizes, random = specs.tracing_sizes(parsed), torch.Generator().manual_seed(3)
    inputs = {}
    for spec, like in zip(parsed, example_inputs(parsed, sizes).values(), strict=True):
        if like.is_floating_point():
            inputs[spec.name] = torch.randn(like.shape, generator=random)
        else:
            inputs[spec.name] = torch.randint(int(spec.low or 0), int(spec.high or 0) + 1, like.shape, generator=random)
    return inputs


def _outputs(module: nn.Module, inputs: dict[str, torch.Tensor]) -> Arrays:
    with torch.no_grad():
        return [tensor.double().numpy() for tensor in flatten_outputs(module(**inputs)).values()]


def error(outputs: Arrays, exact: Arrays) -> float:
    """The largest RMS error of an output, relative to its RMS."""
    assert [array.shape for array in outputs] == [array.shape for array in exact]
    return max(
        float(np.sqrt(np.mean((array - want) ** 2)) / np.sqrt(np.mean(want**2)))
        for array, want in zip(outputs, exact, strict=True)
    )


def run(model: bytes | str, inputs: dict[str, torch.Tensor]) -> Arrays:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    given = {info.name: inputs[info.name].numpy() for info in session.get_inputs()}
    return [np.asarray(array, np.float64) for array in session.run(None, given)]


def runs(path: Path) -> Counter[str]:
    """The operators that ONNX Runtime runs for it, whatever kind of GELU it makes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(path.with_suffix(".optimized.onnx"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in ir.load(options.optimized_model_filepath).graph]
    return Counter("Gelu" if kind.endswith("Gelu") else kind for kind in kinds)


def norms(model: ir.Model) -> Counter[str]:
    return Counter(operator(node) for node in model.graph if operator(node) in NORMS)


SUBJECTS = [(item.name, (lambda item=item: randomized(item)), [item.spec]) for item in ARCHITECTURES]
SUBJECTS += [(item.name, (lambda item=item: lived_in(item.build)), list(item.inputs)) for item in NETWORKS]


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, marks=pytest.mark.xdist_group(f"exporters of {case[0]}")) for case in SUBJECTS],
    ids=[case[0] for case in SUBJECTS],
)
def subject(request: pytest.FixtureRequest) -> Subject:
    name, build, texts = request.param
    module, parsed = build(), specs.parse(texts)
    inputs = _drawn(parsed)
    kept = norms(fold(to_graph(module, parsed).model).model)
    eager = _outputs(module, inputs)
    double = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    exact = _outputs(module.double(), double)
    module.float()
    return Subject(name, module, inputs, exact, error(eager, exact), kept)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_file_of_any_exporter_folds_as_ours_does(subject: Subject, exporter: str, tmp_path: Path) -> None:
    if reason := BROKEN.get((subject.name, exporter)):
        pytest.skip(reason)
    path = tmp_path / "raw.onnx"
    with contextlib.redirect_stdout(io.StringIO()):
        EXPORTERS[exporter](subject.module, subject.inputs, path)
    result = fold(path)
    assert not result.ledger.dropped
    assert norms(result.model) == subject.norms
    assert not [name for name in map(operator, result.model.graph) if name in COMPUTE_CONSTANTS]
    result.save(tmp_path / "folded.onnx")
    raw, folded = (error(run(str(file), subject.inputs), subject.exact) for file in (path, tmp_path / "folded.onnx"))
    # what the runtime itself adds shows in the raw file
    before, after = runs(path), runs(tmp_path / "folded.onnx")
    assert after["Gelu"] >= before["Gelu"]
    assert after["ReduceMean"] <= before["ReduceMean"], "a norm is no single operator any more"
    assert folded <= max(4 * subject.eager_error + 8 * 2.0**-23, 2 * raw)
