"""Opening a model for a fold: copied, read as what anyone may have made, checked, and put in order."""

from __future__ import annotations

import fnmatch
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from normdeploy import onnxfile
from normdeploy.clean.misfit import impossible
from normdeploy.clean.shapes import Dims, is_made_up
from normdeploy.errors import InputError, listed
from normdeploy.fold.operators.basics import WRITTEN
from normdeploy.fold.operators.table import states
from normdeploy.graph import is_of_onnx, label, note_functions, operator
from normdeploy.onnxfile import maps

ALL = "all"
"""What stands for every name in ``inputs_are_constants``."""

AnyModel = str | Path | onnx.ModelProto | ir.Model


def opened(model: AnyModel) -> ir.Model:
    """Return ``model`` as one that may be changed: the weights of a file stay in it, those of a message are views.

    Raises:
        InputError: it cannot be read as an ONNX model, or is none, or its opset is newer than the installed onnx knows.
    """
    taken = _taken(model)
    if not taken.graph.outputs:  # protobuf reads no bytes at all as a model of nothing
        kind, where = ("file", str(model)) if isinstance(model, str | Path) else ("model", str(taken.graph.name))
        fix = "check that it is complete and an ONNX model at all"
        raise InputError(f"the {kind} cannot be read as an ONNX model: it has no outputs", where=where, fix=fix)
    _require_known_opset(taken)
    return taken


def _taken(model: AnyModel) -> ir.Model:
    if isinstance(model, ir.Model):
        copied = _copied(model)
        onnxfile.adopt(copied)
        return copied
    if isinstance(model, onnx.ModelProto):
        return onnxfile.from_message(model)
    if not isinstance(model, str | Path):
        fix = "give a path, an onnx.ModelProto or an onnx_ir.Model"
        raise InputError("this is no model", where=f"a value of type {type(model).__name__}", fix=fix)
    if Path(model).is_dir():
        raise InputError("this is a folder, not an ONNX file", where=str(model), fix="name the .onnx file in it")
    return onnxfile.load(model)


def _copied(model: ir.Model) -> ir.Model:
    try:
        return model.clone()
    except RuntimeError as error:
        raise InputError(
            "the model cannot be copied: a node reads what no node before it makes",
            where=str(model.graph.name),
            fix="sort it first: model.graph.sort()",
        ) from error


def dump_folder(dump: str | Path | None) -> Path | None:
    """Return the folder for the graphs of each step, made where it is missing; it must be empty."""
    if dump is None:
        return None
    folder = Path(dump)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        used = any(folder.iterdir())
    except OSError as error:
        what = f"the folder for the graphs cannot be made: {error.strerror}"
        raise InputError(what, where=str(dump), fix="choose another --dump") from error
    if used:
        what = "the folder for the graphs is not empty: the steps of two folds would mix"
        raise InputError(what, where=str(dump), fix="empty it, or choose another --dump")
    return folder


# -- what is asked for -----------------------------------------------------------------------------


def require_known_names(model: ir.Model, keep: Sequence[str]) -> None:
    """Refuse a pattern of ``keep`` that matches no node."""
    names = {label(node) for graph, _ in graphs(model) for node in graph} if keep else ()
    for pattern in keep:
        if not fnmatch.filter(names, pattern):
            fix = "name a module, or a node where there are no modules"
            raise InputError("nothing has a name that is to be kept", where=f"keep {pattern!r}", fix=fix)


def make_constants(model: ir.Model, names: Sequence[str]) -> frozenset[str]:
    """Take ``names``, or all where one is ``all``, from the inputs of ``model``: initializers with that name stay.

    Raises:
        InputError: a name is none of an input, or of one without an initializer.
    """
    overridable = _overridable(model)
    for name in names:
        if name not in overridable and name != ALL:
            known = f"one of {', '.join(overridable)}" if overridable else "none: the model has no such input"
            what = f"{name!r} is no input of the model that has a default value"
            raise InputError(what, where="--inputs-are-constants", fix=f"name {known}")
    asked = frozenset(overridable if ALL in names else names)
    for value in [value for value in model.graph.inputs if value.name in asked]:
        model.graph.inputs.remove(value)
    return asked


def overridable_note(model: ir.Model) -> list[str]:
    """Return what is to be said of initializers that a caller may override."""
    names = _overridable(model)
    if not names or model.ir_version < 4:
        return []
    return [
        f"{listed(names, 1)}: inputs of the model that have a default value, which a caller may override, so none is a "
        "constant; where none does, fold with --inputs-are-constants all, or name them"
    ]


def training_note(model: ir.Model) -> list[str]:
    """Return what is to be said of training_info: the algorithm in it is one for the weights as they were."""
    if not onnxfile.had_training_info(model):
        return []
    return ["training_info was taken out: it trains the weights of the given model, and this one is for inference"]


def _overridable(model: ir.Model) -> list[str]:
    return [str(value.name) for value in model.graph.inputs if value.is_initializer()]


# -- what the model must be ------------------------------------------------------------------------


def _require_known_opset(model: ir.Model) -> None:
    """Refuse a model of which nobody can say what its operators do."""
    newest = onnx.defs.onnx_opset_version()
    told = model.opset_imports.keys() & {"", "ai.onnx"}
    plain = any(is_of_onnx(node) for node in model.graph.all_nodes())
    if plain and not told and model.ir_version >= 3:  # ONNX specification, IR: before it had none
        raise InputError("the model does not say its opset", where="opset_import", fix="export it again")
    for imports in (model.opset_imports, *(body.opset_imports for body in model.functions.values())):
        opset = _opset(imports, 1)
        if opset > newest:
            what = f"the model has opset {opset}, and the installed onnx knows up to {newest}"
            raise InputError(what, where="opset_import", fix="install a newer onnx, or export with an older opset")
        if opset < 1:
            raise InputError(f"there is no opset {opset}", where="opset_import", fix="export it again")


def _require_makers(graph: ir.Graph | ir.Function) -> None:
    """Refuse a graph that reads a value which nothing makes."""
    read = ((value, node) for node in graph for value in node.inputs if value is not None)
    for value, reader in (*read, *((value, None) for value in graph.outputs)):
        if value.producer() is None and not value.is_graph_input() and not value.is_initializer():
            raise InputError(
                f"the model is not valid ONNX: nothing makes {value.name!r}",
                where="the outputs of the graph" if reader is None else label(reader),
                fix="export it again",
            )


def require_validity(model: AnyModel, error: Exception) -> None:
    """Raise InputError where a fold failed by ``error`` and the model that was given is not valid.

    The checker takes no output without a shape, but every runtime does: that is no fault of the model.
    """
    given = maps.put_back(model, ir.to_proto(model)) if isinstance(model, ir.Model) else model
    try:
        onnx.checker.check_model(given, full_check=True)
    except Exception as problem:  # it raises of its own, and of protobuf's and of shape inference's
        if _is_valid_without_bare_outputs(given):
            return
        where = str(model) if isinstance(model, str | Path) else ""
        what = " ".join(str(problem).split())
        raise InputError(f"the model is not valid ONNX: {what}", where=where, fix="export it again") from error


def require_fitting(model: ir.Model) -> None:
    """Raise InputError where a node of ``model``, as it was given, cannot take what its constants make it read.

    No checker evaluates constants, so a size that they hide fails where the model runs. ``model`` is changed.
    """
    if put_in_order(model):
        return
    for node, shapes in impossible(model):
        read = listed(map(_spelled, shapes), 4, by=" and ")
        raise InputError(
            f"the given model cannot run: its constants make {operator(node)} read {read}, which do not go together",
            where=label(node),
            fix="export it again with sizes that fit; where a runtime runs it as it is, report it with the model",
        )


def _spelled(shape: Dims | None) -> str:
    return "what is not known" if shape is None else f"[{', '.join('?' if is_made_up(n) else str(n) for n in shape)}]"


def _is_valid_without_bare_outputs(given: str | Path | onnx.ModelProto) -> bool:
    """Return True where the checker has nothing against ``given`` but outputs without a shape."""
    rest = onnx.ModelProto()
    try:
        rest.CopyFrom(onnx.load(given) if isinstance(given, str | Path) else given)
        told = [info for info in rest.graph.output if _has_shape(info.type)]
        del rest.graph.output[:]
        rest.graph.output.extend(told)
        onnx.checker.check_model(rest, full_check=True)
    except Exception:  # as above, and what cannot be read
        return False
    return True


def _has_shape(kind: onnx.TypeProto) -> bool:
    return kind.tensor_type.HasField("shape") if kind.HasField("tensor_type") else kind.WhichOneof("value") is not None


# -- order -----------------------------------------------------------------------------------------


def put_in_order(model: ir.Model) -> list[str]:
    """Sort the graphs of ``model``; return why it must be left as it is, if it must."""
    taken = sorted(note_functions(model) & WRITTEN)
    if taken:
        which = f"functions of the model bear names of ONNX's operators that a fold writes: {', '.join(taken)}"
        return [f"nothing was folded: {which}; rename them, or give them a domain of their own"]
    for graph, _ in graphs(model):
        _require_makers(graph)
        graph.sort()  # shape inference gives up on nodes in another order
    return []


def drop_spare_outputs(model: ir.Model) -> None:
    """Take off the outputs of norms that nothing reads: what may take the place of a norm may not have them."""
    for graph, _ in graphs(model):
        for node in graph:
            if states(node).spare_outputs:
                _remove_unread_outputs(node)


def _remove_unread_outputs(node: ir.Node) -> None:
    count = len(node.outputs)
    while count > 1 and not (node.outputs[count - 1].uses() or node.outputs[count - 1].is_graph_output()):
        count -= 1
    node.resize_outputs(count)


def drop_unread(graph: ir.Graph, but: Container[ir.Value]) -> None:
    """Take out the initializers listed as inputs that nothing reads any more."""
    for value in list(graph.inputs):
        if value.is_initializer() and not value.uses() and not value.is_graph_output() and value not in but:
            graph.initializers.pop(str(value.name))
            graph.inputs.remove(value)


def graphs(model: ir.Model) -> Iterator[tuple[ir.Graph | ir.Function, int]]:
    """Yield every graph of ``model``, bodies and functions included, with the opset in force in it."""
    opset = _opset(model.opset_imports, 1)
    yield model.graph, opset
    for graph in model.graph.subgraphs():
        yield graph, opset
    for function in model.functions.values():
        own = _opset(function.opset_imports, opset)
        yield function, own
        for graph in function.subgraphs():
            yield graph, own


def _opset(imports: Mapping[str, int], otherwise: int) -> int:
    """Return the opset of ONNX's own operators, whose domain has two names."""
    return imports.get("", imports.get("ai.onnx", otherwise))
