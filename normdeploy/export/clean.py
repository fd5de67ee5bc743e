"""Cleaning of an exported graph: only what is exact, and nothing that could touch a norm.

What is constant is evaluated once, by the ``onnx`` package's reference operators: shapes that are static, chains of
Expand(CastLike(0)) that spell a missing bias, transposed weights. onnxscript's constant folder does that; its rewrite
rules, which fold norms, are not used, and the folder is kept from norms, from what would make the file larger, and
from operators whose reference implementation is slow or that must stay visible (quantization).
"""

from __future__ import annotations

import ast
from collections.abc import Collection

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes import common

from normdeploy.export.labels import label_new_nodes, makers
from normdeploy.export.shapes import infer_shapes
from normdeploy.graph import operator

_KEPT = frozenset(
    {
        # norms: they leave as they came
        "BatchNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "GroupNormalization",
        "RMSNormalization",
        "LpNormalization",
        "MeanVarianceNormalization",
        "LRN",
        # quantization stays visible
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        # slow in the reference implementation
        "Conv",
        "ConvTranspose",
        "ConvInteger",
        "Resize",
        "GridSample",
        "AveragePool",
        "MaxPool",
        "LSTM",
        "GRU",
        "RNN",
        # not the same twice
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Dropout",
    }
)
_MAX_GROWTH = 2**20  # elements by which one evaluated constant may be larger than what it replaces: a 1024 x 1024 mask
_SHARED = 2**10  # elements above which a parameter that others use too is not stored a second time, in another form


def clean(model: ir.Model) -> None:
    """Clean ``model`` in place; its inputs, outputs, norms and values stay, and every node keeps a module name."""
    parameters = frozenset(model.graph.initializers)
    known = makers(model)
    _run(model, common.TopologicalSortPass())
    infer_shapes(model)
    for _ in range(2):  # the second time for what the shapes of the first made static
        _transpose_weights(model)
        modified = onnxscript.optimizer.fold_constants(
            model,
            onnx_shape_inference=True,
            output_size_limit=_MAX_GROWTH,
            should_fold=_may_be_evaluated,
        ).modified
        _keep_parameter_names(model, parameters)
        _run(
            model,
            common.IdentityEliminationPass(),
            common.RemoveUnusedNodesPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        )
        _remove_zero_biases(model, parameters)
        infer_shapes(model)
        if not modified:
            break
    _run(
        model,
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.NameFixPass(),
    )
    label_new_nodes(model, known)


def _may_be_evaluated(node: ir.Node) -> bool:
    shared = [value for value in node.inputs if value is not None and value.is_initializer() and len(value.uses()) > 1]
    large = any(value.const_value is not None and value.const_value.size > _SHARED for value in shared)
    return operator(node) not in _KEPT and not large


def _run(model: ir.Model, *passes: ir.passes.InPlacePass) -> None:
    ir.passes.Sequential(*passes)(model)


def _transpose_weights(model: ir.Model) -> None:
    """A weight that is only ever transposed is stored so, and made when it is read: never two copies in memory."""
    for source in list(model.graph.initializers.values()):
        uses = [use.node for use in source.uses()]
        if source.const_value is None or source.is_graph_input() or source.is_graph_output():
            continue
        if not uses or any(operator(node) != "Transpose" or node.graph is not model.graph for node in uses):
            continue
        perms = {_permutation(node, len(source.const_value.shape)) for node in uses}
        if len(perms) > 1 or any(node.outputs[0].is_graph_output() for node in uses):
            continue
        source.const_value = _transposed(source.const_value, perms.pop(), source.name)
        source.shape = source.const_value.shape
        for node in uses:
            node.outputs[0].replace_all_uses_with(source)
            model.graph.remove(node, safe=True)


def _permutation(node: ir.Node, rank: int) -> tuple[int, ...]:
    given = node.attributes.get("perm")
    return tuple(given.as_ints()) if given is not None else tuple(reversed(range(rank)))


def _transposed(tensor: ir.TensorProtocol, perm: tuple[int, ...], name: str | None) -> ir.LazyTensor:
    def evaluate() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(tensor.numpy().transpose(perm)), dtype=tensor.dtype)

    shape = ir.Shape(np.array(tensor.shape.numpy())[list(perm)].tolist())
    return ir.LazyTensor(evaluate, dtype=tensor.dtype, shape=shape, name=name)


def _keep_parameter_names(model: ir.Model, parameters: Collection[str]) -> None:
    """A constant that was evaluated from one parameter, which it replaces, takes over its name."""
    initializers = model.graph.initializers
    for value in list(initializers.values()):
        origin = value.metadata_props.pop(onnxscript.optimizer.FOLDED_FROM_KEY, "[]")
        sources = [name for name in ast.literal_eval(origin) if name in parameters]
        if len(sources) == 1 and sources[0] not in initializers and value.name not in parameters:
            value.name = sources[0]


def _remove_zero_biases(model: ir.Model, parameters: Collection[str]) -> None:
    """A convolution without bias gets back to having none; a zero bias that is a parameter stays."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        bias = node.inputs[2] if operator(node) in ("Conv", "ConvTranspose") and len(node.inputs) == 3 else None
        if bias is None or bias.name in parameters or bias.const_value is None or bias.is_graph_input():
            continue
        if not np.any(bias.const_value.numpy()):
            node.resize_inputs(2)
