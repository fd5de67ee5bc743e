"""The onnx package's own node cases: folding each keeps the outputs that onnx expects.

Each case is folded as it is (its weights are inputs, so nothing may fold), with its weights as constants, and, where
it is an operator with weights, with a norm behind it, which must go.
"""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from harness import folded, op_types
from onnx import helper, numpy_helper

WANTED = re.compile(r"test_(batchnorm|conv_|basic_conv|convtranspose|gemm|layer_normalization|rms_normalization)")
CHANNELS = np.random.default_rng(29)


def collected() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cases of other operators divide by zero when they are made
        from onnx.backend.test.case.node import collect_testcases

        return list(collect_testcases(None))


ALL = collected()
CASES = [case for case in ALL if WANTED.match(case.name)]
DECIDING = [case for case in ALL if "If" in op_types(case.model)]
WEIGHTED = [case for case in CASES if op_types(case.model).keys() & {"Conv", "ConvTranspose", "Gemm"}]


def loaded(proto: onnx.ModelProto, level: str = "ORT_ENABLE_ALL") -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = loaded(proto)
    results: list[np.ndarray] = session.run(None, {item.name: feeds[item.name] for item in session.get_inputs()})
    return results


def data(case: Any) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """The inputs by name, and the outputs that onnx expects."""
    ((inputs, outputs),) = case.data_sets
    return {info.name: array for info, array in zip(case.model.graph.input, inputs, strict=True)}, outputs


def with_constants(case: Any) -> onnx.ModelProto:
    """The case with every input but the first as an initializer."""
    feeds, _ = data(case)
    proto = copy.deepcopy(case.model)
    for info in list(proto.graph.input)[1:]:
        proto.graph.input.remove(info)
        proto.graph.initializer.append(numpy_helper.from_array(feeds[info.name], info.name))
    return proto


def assert_expected(case: Any, proto: onnx.ModelProto, expected: list[np.ndarray]) -> None:
    for actual, wanted in zip(run(proto, data(case)[0]), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=case.rtol, atol=1e-5)


def test_there_are_cases_of_every_kind() -> None:
    found = {kind for case in CASES for kind in op_types(case.model)}
    assert found >= {
        "BatchNormalization", "Conv", "ConvTranspose", "Gemm", "LayerNormalization", "RMSNormalization"
    }  # fmt: skip
    assert len(CASES) >= 127


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_case_keeps_its_outputs(case: Any) -> None:
    for proto in (case.model, with_constants(case)):
        new, ledger = folded(proto)
        assert not ledger.dropped
        assert_expected(case, new, data(case)[1])


@pytest.mark.parametrize("case", WEIGHTED, ids=[case.name for case in WEIGHTED])
def test_a_norm_behind_a_case_goes(case: Any) -> None:
    expected = data(case)[1][0]
    scale, shift = (CHANNELS.standard_normal(expected.shape[1]).astype(np.float32) for _ in range(2))
    proto = with_constants(case)
    output = proto.graph.output[0].name
    ones, zeros = np.ones_like(scale), np.zeros_like(scale)
    for name, array in (("gamma", scale), ("beta", shift), ("mean", zeros), ("var", ones)):
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    norm = helper.make_node("BatchNormalization", [output, "gamma", "beta", "mean", "var"], ["normed"], epsilon=0.0)
    proto.graph.node.append(norm)
    proto.graph.output[0].name = "normed"
    new, ledger = folded(proto)
    assert op_types(new) == op_types(case.model)
    assert [entry.outcome for entry in ledger] == ["folded"]
    channels = (1, -1, *(1,) * (expected.ndim - 2))
    assert_expected(case, new, [expected * scale.reshape(channels) + shift.reshape(channels)])


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize("case", DECIDING, ids=[case.name for case in DECIDING])
def test_a_case_with_branches_is_loaded_as_before(case: Any, level: str) -> None:
    """A branch that is never taken may hold what ONNX Runtime refuses once it looks inside."""
    loaded(case.model, level)
    loaded(folded(case.model)[0], level)
