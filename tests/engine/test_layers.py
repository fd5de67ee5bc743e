"""The two sources of the layer table; the log's lines are copied from builds of TensorRT-RTX 1.7.1."""

from __future__ import annotations

import json

import pytest

from normdeploy.engine.layers import EngineLayer, Owner, from_inspector, from_log
from normdeploy.precision import HEAVY

OWNERS = {
    "node_conv": Owner("stem.conv", "Conv"),
    "node_relu": Owner("stem", "Relu"),
    "node_add": Owner("", "Add"),
    "node_norm": Owner("norm", "LayerNormalization"),
    "node_fc": Owner("head", "Gemm"),
}
HALF = "Strides: [1], StrideOrder: [0], Datatype: Half, Format: (Linear) Row major linear format }"
FLOAT = HALF.replace("Half", "Float")
LOG = f"""Layers:
Name: __mye617_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: 
Name: node_conv_myl0_2, LayerType: correlation, Inputs: [ {{ Name: x, Dimensions: [-1,3,8,8], {HALF}], Constants: [ {{ Name: w, Dimensions: [16,3,3,3], {HALF}, {{ Name: one, Dimensions: [1], {FLOAT}, {{ Name: b, Dimensions: [1,16,1,1], {FLOAT}], Outputs: [ {{ Name: r, Dimensions: [-1,16,8,8], {HALF}], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: node_conv][ONNX Layer: node_relu]
Name: __myl_AddCastMeanSubMulMeanAddSqrtDivMulCastMulAdd_myl0_3, LayerType: kgen, Inputs: [ {{ Name: r, Dimensions: [-1,16], {HALF}, {{ Name: q, Dimensions: [-1,16], {HALF}], Constants: [ {{ Name: g, Dimensions: [1,16], {HALF}], Outputs: [ {{ Name: n, Dimensions: [-1,16], {HALF}], TacticName: __myl_k_0x1f_vec, StreamId: 0, Metadata: [ONNX Layer: node_add]\x1f[ONNX Layer: node_norm][ONNX Layer: node_unknown]
Name: __myl_FcAddCast_myl1_1, LayerType: runtime_fusion, Inputs: [ {{ Name: n [profile 1], Dimensions: [-1,16], {HALF}], Constants: [ {{ Name: fc, Dimensions: [16,10], {HALF}], Outputs: [ {{ Name: y [profile 1], Dimensions: [-1,10], {FLOAT}], TacticName: , StreamId: 0, Metadata: [ONNX Layer: node_fc]

I/O Tensors:
 Name: x, IOMode: Input, DataType: Float, Dimensions: [-1,3,8,8]
"""  # noqa: E501, W291 — lines as the builder writes them


def test_the_log_gives_each_layer_with_its_modules() -> None:
    shapes, conv, norm, head = from_log(LOG, OWNERS, HEAVY)
    assert conv == EngineLayer(
        name="node_conv_myl0_2",
        kind="correlation",
        modules=("stem.conv", "stem"),
        operators=("Conv", "Relu"),
        precision="fp16",
        statistics="",
        tactic="__myelin_CASK_STUB",
        inputs=("x",),
        outputs=("r",),
        nodes=("node_conv", "node_relu"),
        profile=0,
    )
    assert (shapes.precision, shapes.modules) == ("", ())
    assert (norm.modules, norm.operators) == (("norm",), ("Add", "LayerNormalization"))
    assert (norm.precision, norm.statistics) == ("fp16", "fp32")
    assert (head.precision, head.profile, head.tactic) == ("fp16", 1, "")


def test_text_of_another_form_gives_no_layers() -> None:
    assert from_log("", OWNERS, HEAVY) == from_log("Layers:\nName: half a line", OWNERS, HEAVY) == ()


@pytest.mark.parametrize(
    ("name", "inputs", "gamma", "output", "expected"),
    [
        ("CastMeanSubMulMeanAddSqrtDivMulCastMulAdd", "Half", "Half", "Half", "fp32"),
        ("MoveMeanSubMulMeanAddSqrtCastDivCastMulCastMulAdd", "Half", "Half", "Half", "fp16"),
        ("MoveMeanSubMulMeanAddSqrtDivMulAdd", "BFloat16", "BFloat16", "BFloat16", "bf16"),
        ("MeanSubMulMeanAddSqrtDivMulMulAdd", "Float", "Float", "Float", "fp32"),
        ("CastCastMeanSubMulMeanAddSqrtDivMulCastMulAdd", "Float", "Half", "Half", "fp32"),
        ("CastMeanSubMulMeanAddSqrtDivMulMulAdd", "Float", "Half", "Half", "fp16"),
        ("CastGathAddCastMeanSubMulMeanAddSqrtDiv", "Int64", "Half", "Half", "fp32"),
        ("MeanCastMeanSubMulMeanAddSqrtDivMulCast", "Half", "Half", "Half", "fp32"),
        ("AddAddCastMeanSubMulMean", "Half", "Half", "Float", "fp32"),
        ("AddSqrtDivMulCastMulAddReshMean", "Float", "Half", "Half", ""),
        ("Inor", "Half", "Half", "Half", ""),
    ],
)
def test_the_kernels_name_says_in_what_a_norm_averages(
    name: str, inputs: str, gamma: str, output: str, expected: str
) -> None:
    line = (
        f"Name: __myl_{name}_myl0_1, LayerType: kgen, Inputs: [ {{ Name: x, Dimensions: [-1,16], {HALF}], Constants: "
        f"[ {{ Name: g, Dimensions: [16], {HALF}], Outputs: [ {{ Name: y, Dimensions: [-1,16], {HALF}], TacticName: t, "
        "StreamId: 0, Metadata: [ONNX Layer: node_norm]"
    )
    for dtype in (inputs, gamma, output):
        line = line.replace("Datatype: Half", f"Datatype : {dtype}", 1)
    (layer,) = from_log(line.replace("Datatype :", "Datatype:"), OWNERS, HEAVY)
    assert layer.statistics == expected


def tensor(name: str, dims: list[int], dtype: str) -> dict[str, object]:
    return {"Name": name, "Location": "Device", "Dimensions": dims, "Format/Datatype": dtype}


def test_the_inspectors_json_gives_the_same_table() -> None:
    """In the two spellings of a type that the inspector is documented with, and where it gives none."""
    document = {
        "Layers": [
            {
                "Name": "stem + relu",
                "LayerType": "CaskConvolution",
                "Inputs": [tensor("x", [1, 3, 8, 8], "Channel major FP16 format where channel % 8 == 0")],
                "Outputs": [tensor("r", [1, 16, 8, 8], "Row major linear FP16 format")],
                "Weights": {"Type": "Half", "Count": 432},
                "Bias": {"Type": "Float", "Count": 16},
                "TacticName": "sm80_xmma_fprop",
                "Metadata": "[ONNX Layer: node_conv]\x1e[ONNX Layer: node_relu]",
            },
            {
                "Name": "__myl_CastMeanSubMulMeanAddSqrtDivMulCastMulAdd_myl0_3",
                "LayerType": "kgen",
                "Inputs": [tensor("r", [-1, 16], "Half")],
                "Outputs": [tensor("n", [-1, 16], "Half")],
                "TacticValue": "0x0",
                "Metadata": "[ONNX Layer: node_norm]",
            },
            {
                "Name": "head",
                "LayerType": "gemm",
                "Inputs": [tensor("n", [-1, 16], "N/A due to dynamic shapes")],
                "Outputs": [tensor("y", [-1, 10], "N/A due to dynamic shapes")],
                "Weights": {"Type": "Float", "Count": 160},
                "Metadata": "[ONNX Layer: node_fc]",
            },
        ],
        "Bindings": ["x", "y"],
    }
    conv, norm, head = from_inspector(json.dumps(document), OWNERS, HEAVY)
    assert (conv.modules, conv.precision, conv.tactic) == (("stem.conv", "stem"), "fp16", "sm80_xmma_fprop")
    assert (norm.modules, norm.statistics, norm.tactic) == (("norm",), "fp32", "0x0")
    assert (head.precision, head.inputs, head.outputs) == ("fp32", ("n",), ("y",))
    names_only = json.dumps({"Layers": ["stem + relu"], "Bindings": ["x"]})
    assert from_inspector(names_only, OWNERS, HEAVY) == ()
