"""LayerNorms of a graph as plugins: with the sum in front of them or the quantization behind them where there is one.

Add → LayerNormalization           AddLayerNorm, whose second output is the sum
LayerNormalization → QuantizeLinear  LayerNormQuantize
LayerNormalization                 LayerNorm
RMSNormalization                   RMSNorm

A norm in float32 between casts from 16 bits and back to them becomes one plugin of 16 bits that keeps its float32 gamma
and beta. That rounds where the casts did and nowhere else: statistics are float32, and y is rounded once. So a sum in
front is taken in only where it is rounded to 16 bits before the cast, and a quantization only of what was cast back.
Of a norm that was spelled out the Mul and Add of constants behind the cast back are gamma and beta too: y is rounded
behind them alone.

Where a norm has both, the quantization is taken in: in 16 bits an element then moves 9 bytes, with the sum 11.

gamma and beta that have one value each are stored as one element, as they are after a fold: ones and zeros.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from normdeploy.engine import plugin_v3
from normdeploy.engine.plugin import DOMAIN, OPERATORS, QUANTIZED
from normdeploy.engine.plugin_spelled import SIXTEEN, Spelled, between_casts
from normdeploy.errors import InputError
from normdeploy.fold import Note
from normdeploy.fold.graph.state import all_names
from normdeploy.graph import MODULE_KEY, label, module_name, operator
from normdeploy.kernels.variants import LARGEST

NORMS = {"LayerNormalization": "LayerNorm", "RMSNormalization": "RMSNorm"}
"""ONNX's norms, and the plugins that they become where nothing is taken in."""
_IN_BODY = "it lies in a body of If, Loop or Scan, and plugins are put into the main graph alone"
_OPSET = 1
"""The version of the plugins' domain."""
_STORED = (ir.DataType.FLOAT, *SIXTEEN)
PluginForm = Literal["aot", "python"]
"""How TensorRT runs a plugin: compiled ahead of time into the engine, or launched by Python where it is served."""
_VERSIONS: dict[PluginForm, str] = {"aot": "1", "python": plugin_v3.VERSION}


Wanted = Callable[[str, str, int], bool]
"""Given a plugin's name, the type of its x as NumPy calls it, and its features: should it take the norm's place?"""


def to_plugins(model: ir.Model, form: PluginForm = "aot", wanted: Wanted | None = None) -> tuple[Note, ...]:
    """Replace, in ``model`` itself, each norm of the main graph that a plugin can be.

    Args:
        model: in the precision that it is deployed in, its shapes known, its functions inlined.
        form: which of the two kinds of plugin.
        wanted: asked of each norm that could be one; by default all are, those in elementary operators too.

    Returns:
        A sentence for each norm that stays, with its module name and the reason, and one for those that were spelled
        out and are plugins now.

    Raises:
        InputError: there is no norm that a plugin can be, or the domain of the plugins is taken.
    """
    _require_free(model)
    spelled = Spelled(model)
    if wanted is None:
        spelled.write()
    left, names = list(spelled.refused), all_names(model)
    for node in [node for node in model.graph if operator(node) in NORMS]:
        try:
            _replace(model, names, node, wanted)
        except _Stays as reason:
            left.append((node, str(reason)))
            if node in spelled.replaced:
                spelled.undo(node)
    taken = [label(node) for node in spelled.replaced]
    spelled.tidy()
    left += [(node, _IN_BODY) for graph in model.graph.subgraphs() for node in graph if operator(node) in NORMS]
    said = tuple(Note("NF416", f"{label(node)} is not run by the plugin: {reason}") for node, reason in left)
    if taken:
        what = "spelled out in elementary operators, and run by the plugin, which needs no opset"
        said += (Note("NF418", f"{what}: {', '.join(taken)}"),)
    plugins = [node for node in model.graph if is_plugin(node)]
    if not plugins:
        reasons = "; ".join(note.text for note in said) or "it has no LayerNorm or RMSNorm"
        raise InputError(
            f"the plugin runs no norm of this model: {reasons}", where="--plugin", fix="leave --plugin out"
        )
    for node in plugins:
        node.attributes["plugin_version"] = ir.AttrString("plugin_version", _VERSIONS[form])
        node.attributes["aot"] = ir.AttrInt64("aot", int(form == "aot"))
    model.opset_imports[DOMAIN] = _OPSET
    return said


def _require_free(model: ir.Model) -> None:
    """Raise InputError where ``model`` has plugins already, or somebody else's operators in a domain of their name."""
    there = [node for node in model.graph.all_nodes() if node.domain == DOMAIN]
    if not there:
        return
    names = ", ".join(dict.fromkeys(f"{operator(node)} of {label(node)}" for node in there))
    if all(is_plugin(node) for node in there):
        fix = "leave --plugin out: it is a graph of plugins, and normdeploy build takes it as it is"
        raise InputError("the model has plugins already", where=names, fix=fix)
    what = f"the model has operators of its own in the domain {DOMAIN!r}, which is that of the plugins"
    raise InputError(what, where=names, fix="give that domain another name, or leave --plugin out")


def is_plugin(node: ir.Node) -> bool:
    """Return whether ``node`` is one of these plugins, and not somebody else's operator in a domain of that name."""
    namespace = node.attributes.get("plugin_namespace")
    ours = namespace is not None and namespace.type == ir.AttributeType.STRING and namespace.value == DOMAIN
    return ours and operator(node) in {f"{DOMAIN}::{each.name}" for each in OPERATORS}


def tally(model: ir.Model, file: str = "") -> Note:
    """Return how many of each plugin ``model`` has, as a note that names the ``file`` that it is written to."""
    found = Counter(operator(node).removeprefix(f"{DOMAIN}::") for node in model.graph if is_plugin(node))
    where = f", in {file}" if file else ""
    return Note("NF418", f"run by plugins{where}: {', '.join(f'{kind} {count}' for kind, count in found.items())}")


def leak(model: ir.Model) -> tuple[Note, ...]:
    """Return a note where the plugins of ``model`` lie in the engine and meet shapes that change."""
    plugins = [node for node in model.graph if is_plugin(node)]
    changing = any(value.shape is not None and not value.shape.is_static() for n in plugins for value in n.outputs)
    if plugin_form(model) != "aot" or not changing:
        return ()
    text = (
        "its shapes change, and TensorRT is reported to leak a CUDA module at each change with plugins compiled ahead "
        "of time (TensorRT issue 4849): fix the shapes, or give --plugin-form python, which needs Python and this "
        "package where it is served"
    )
    return (Note("NF419", text),)


def plugin_form(model: ir.Model) -> PluginForm | None:
    """Return the form of the plugins in ``model``; None where it has none."""
    for node in model.graph.all_nodes():
        if is_plugin(node):
            return "python" if node.attributes.get_string("plugin_version", "1") == plugin_v3.VERSION else "aot"
    return None


class _Stays(Exception):
    """Why a norm stays as it is."""


@dataclass(frozen=True)
class _Norm:
    """A norm that a plugin can be.

    Attributes:
        node: the norm itself.
        last: the node whose output y becomes: the norm, or the cast behind it.
        x: what the plugin reads.
        axis: from the end, the first axis that it goes over.
        shape: the sizes of these axes.
        dtype: of gamma and beta.
        epsilon: of the norm.
    """

    node: ir.Node
    last: ir.Node
    x: ir.Value
    axis: int
    shape: tuple[int, ...]
    dtype: ir.DataType
    epsilon: float


def _replace(model: ir.Model, names: set[str], node: ir.Node, wanted: Wanted | None) -> None:
    graph, norm = model.graph, _read(node)
    is_layer_norm = operator(node) == "LayerNormalization"
    quantize = _quantize_behind(norm.last) if is_layer_norm else None  # first: a sum apart moves fewer bytes than it
    total = _sum_before(norm) if is_layer_norm and quantize is None else None
    kind = "AddLayerNorm" if total else "LayerNormQuantize" if quantize else NORMS[operator(node)]
    assert norm.x.dtype is not None, "it was seen to be known"
    if wanted is not None and not wanted(kind, norm.x.dtype.numpy().name, math.prod(norm.shape)):
        raise _Stays("it is not recorded to be the faster one on this GPU")
    weights = _weights(graph, names, norm)
    if total is not None:
        _put(graph, norm, kind, [*total.inputs, *weights], total, [(norm.last, 0), (total, 0)])
    elif quantize is not None:
        inputs = [norm.x, *weights, _scale(graph, names, quantize)]
        _put(graph, norm, kind, inputs, node, [(quantize, 0)], to=_quantized_to(quantize))
    else:
        _put(graph, norm, kind, [norm.x, *weights], node, [(norm.last, 0)])


def _read(node: ir.Node) -> _Norm:
    x = node.inputs[0]
    if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
        raise _Stays("its mean or deviation is an output too")
    if x is None or x.shape is None or x.dtype is None:
        raise _Stays("the shape or type of what it reads is not known")
    if x.dtype not in _STORED:
        raise _Stays(f"it computes in {x.dtype.name.lower()}")
    axis = node.attributes.get_int("axis", -1)
    axis = axis - len(x.shape) if axis >= 0 else axis
    sizes = [size for size in x.shape.dims[axis:] if isinstance(size, int)]
    if len(sizes) < -axis:
        raise _Stays("the axes that it goes over have no fixed size")
    if not node.attributes.get_float("epsilon", 1e-5) >= 0:
        raise _Stays("its epsilon is negative")
    if not 1 <= math.prod(sizes) <= LARGEST:
        raise _Stays(f"it goes over {math.prod(sizes):,} elements, and the kernel over 1 to {LARGEST:,}")
    narrow, last = between_casts(x, node) or (x, node)
    return _Norm(node, last, narrow, axis, tuple(sizes), x.dtype, node.attributes.get_float("epsilon", 1e-5))


def _weights(graph: ir.Graph, names: set[str], norm: _Norm) -> list[ir.Value]:
    """Return gamma, and of a LayerNorm beta, as constants of ``norm.dtype``: one element each, or one a feature."""
    count = 2 if operator(norm.node) == "LayerNormalization" else 1
    given = [norm.node.inputs[index] if index < len(norm.node.inputs) else None for index in range(1, 1 + count)]
    arrays = [_array(norm, value, otherwise) for value, otherwise in zip(given, (1.0, 0.0), strict=False)]
    if all(array.min() == array.max() for array in arrays) and math.prod(norm.shape) > 1:
        arrays = [array.reshape(-1)[:1] for array in arrays]
    values = []
    for name, value, array in zip(("gamma", "beta"), given, arrays, strict=False):
        kept = value is not None and value.const_value is not None and value.const_value.shape.numpy() == array.shape
        if value is not None and kept and value.is_initializer() and value.dtype == norm.dtype:
            values.append(value)
        else:
            values.append(_constant(graph, names, f"{norm.node.outputs[0].name}.{name}", array))
    return values


def _array(norm: _Norm, value: ir.Value | None, otherwise: float) -> np.ndarray:
    """Return the numbers of gamma or beta for each element that the norm goes over, in ``norm.dtype``."""
    kind = norm.dtype.numpy()
    if value is None:
        return np.full(norm.shape, otherwise, kind)
    held = _held(value)
    if held is None and value.is_graph_input() and value.is_initializer():
        name = value.name
        raise _Stays(f"a caller may override {name}; normdeploy fold --inputs-are-constants {name} makes it a constant")
    maker = value.producer()
    if held is None and maker is not None:
        raise _Stays(f"{value.name} is made by {operator(maker)}, and the plugin takes constants")
    if held is None:
        raise _Stays(f"{value.name} is not constant")
    array = held.numpy()
    if array.ndim > len(norm.shape) and any(size != 1 for size in array.shape[: array.ndim - len(norm.shape)]):
        raise _Stays(f"{value.name} varies over more than the axes that it goes over")
    array = array.reshape(array.shape[max(0, array.ndim - len(norm.shape)) :])
    return np.broadcast_to(array, norm.shape).astype(kind)


def _constant(graph: ir.Graph, names: set[str], name: str, array: np.ndarray) -> ir.Value:
    wanted, count = name, 1
    while name in names:
        name, count = f"{wanted}_{count}", count + 1
    names.add(name)
    value = ir.Value(name=name, const_value=ir.Tensor(np.asarray(array, order="C"), name=name))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(value)
    return value


def _held(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return what ``value`` always holds, an initializer or a Constant; None where a caller or a node says it."""
    return None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)


def _sum_before(norm: _Norm) -> ir.Node | None:
    """Return the Add of two activations of one shape whose sum the norm reads; None where there is none."""
    total = norm.x.producer()
    if total is None or operator(total) != "Add" or total.graph is not norm.node.graph:
        return None
    first, second = total.inputs
    if first is None or second is None or _held(first) is not None or _held(second) is not None:
        return None
    known = [value.shape is not None and None not in value.shape.dims for value in (first, second)]
    return total if all(known) and first.shape == second.shape == norm.x.shape else None


def _quantize_behind(node: ir.Node) -> ir.Node | None:
    """Return the QuantizeLinear that alone reads the norm, by one scale and no zero point; None where there is none."""
    output = node.outputs[0]
    readers = [use.node for use in output.uses()]
    if output.is_graph_output() or len(readers) != 1 or operator(readers[0]) != "QuantizeLinear":
        return None
    quantize = readers[0]
    if quantize.graph is not node.graph:
        return None
    scale = _held(quantize.inputs[1])
    if scale is None or scale.size != 1:
        return None
    if quantize.attributes.get_int("saturate", 1) != 1 or _quantized_to(quantize) not in QUANTIZED:
        return None
    return quantize


def _quantized_to(quantize: ir.Node) -> int:
    """Return the type (ONNX, TensorProto.DataType) that ``quantize`` gives; 0 where its zero point is not 0."""
    zero = quantize.inputs[2] if len(quantize.inputs) > 2 else None
    if zero is None:
        return quantize.attributes.get_int("output_dtype", int(ir.DataType.UINT8)) or int(ir.DataType.UINT8)
    held = _held(zero)
    if held is None or np.any(held.numpy().astype(np.float32)):
        return 0
    return int(held.dtype)


def _scale(graph: ir.Graph, names: set[str], quantize: ir.Node) -> ir.Value:
    scale = quantize.inputs[1]
    assert scale is not None, "it was seen to be constant"
    held = _held(scale)
    assert held is not None, "it was seen to be constant"
    array = held.numpy()
    if scale.is_initializer() and array.dtype == np.float32 and array.shape == ():  # a Constant may stand behind
        return scale
    return _constant(graph, names, f"{quantize.outputs[0].name}.scale", array.astype(np.float32).reshape(()))


def _put(
    graph: ir.Graph,
    norm: _Norm,
    kind: str,
    inputs: Sequence[ir.Value | None],
    at: ir.Node,
    replaced: Sequence[tuple[ir.Node, int]],
    **integers: int,
) -> None:
    """Put a plugin before the node ``at``, in place of the nodes ``replaced``, each of which an output stands for."""
    node = ir.node(
        kind, inputs, domain=DOMAIN, name=norm.node.name, num_outputs=len(replaced),
        attributes={"epsilon": norm.epsilon, "axis": norm.axis, **integers, "plugin_namespace": DOMAIN},
    )  # fmt: skip
    if module_name(norm.node):
        node.metadata_props[MODULE_KEY] = module_name(norm.node)
    graph.insert_before(at, node)
    for new, (old, index) in zip(node.outputs, replaced, strict=True):
        value = old.outputs[index]
        new.shape, new.type = value.shape, value.type
        name = value.name
        value.replace_all_uses_with(new, replace_graph_outputs=True)
        value.name, new.name = f"{name}.replaced", name
    for old, _ in replaced:
        graph.remove(old, safe=True)
    before = None if norm.last is norm.node else norm.node.inputs[0]
    for unread in (norm.last, norm.node, before.producer() if before is not None else None):
        if unread is None or unread.graph is not graph:
            continue
        if not any(value.uses() or value.is_graph_output() for value in unread.outputs):
            graph.remove(unread, safe=True)
