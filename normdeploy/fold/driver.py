"""``fold``: every map of a model is searched, proven, carried out, and recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import onnx_ir as ir
from threadpoolctl import threadpool_limits

from normdeploy import onnxfile
from normdeploy.arguments import checked
from normdeploy.clean import clean, store_as_read
from normdeploy.errors import NormdeployError
from normdeploy.fold import closing, merge, opening
from normdeploy.fold.affine import AffineMap
from normdeploy.fold.collector import young_objects_only
from normdeploy.fold.graph.declared import put_aside
from normdeploy.fold.graph.places import made_of_sizes
from normdeploy.fold.graph.reader import Refused, View
from normdeploy.fold.graph.shapes import infer
from normdeploy.fold.graph.state import GraphState, all_names
from normdeploy.fold.layernorm.parts import is_epsilon
from normdeploy.fold.layernorm.reduce import Reducer
from normdeploy.fold.ledger import METADATA_KEY, Ledger, with_history
from normdeploy.fold.levels import Level, Target
from normdeploy.fold.operators.maps import data_input, is_bias_of_product, map_of
from normdeploy.fold.operators.table import states
from normdeploy.fold.record import AS_ASKED, NOT_CONSTANT, NOT_LINEAR
from normdeploy.fold.rewrite import Writer
from normdeploy.fold.search import plans
from normdeploy.fold.session import Session
from normdeploy.fold.weights import WeightCache
from normdeploy.graph import label
from normdeploy.precision import DTYPES, Precision


@dataclass(frozen=True)
class FoldResult:
    """A folded model and what became of each of its norms."""

    model: ir.Model
    ledger: Ledger

    @checked()
    def save(self, path: str | Path, *, external_data: str | None = None) -> None:
        """Write the model as :func:`normdeploy.onnxfile.save` does: each edited weight is evaluated on the way.

        Outputs that are maps, or sequences of them, have no type in ``model``, and have theirs in the file.
        """
        with young_objects_only():
            onnxfile.save(self.model, path, external_data=external_data)


@young_objects_only()
@checked()
def fold(
    model: opening.AnyModel,
    *,
    keep: Sequence[str] = (),
    layernorm: Level = "affine",
    target: Target = "onnx",
    validate: bool = True,
    dump: str | Path | None = None,
    inputs_are_constants: Sequence[str] = (),
    precision: Precision = "fp32",
) -> FoldResult:
    """Push everything that is linear in every norm of ``model`` into the neighbouring weights.

    Args:
        model: a path to an ONNX file, an ``onnx.ModelProto`` or an ``onnx_ir.Model``; it is not changed. The weights of
            a file are read when they are needed: it must stay as it is until the result is saved, and so must the
            arrays of a model in memory. Where a file was written to meanwhile, saving is refused.
        keep: patterns (fnmatch) of module names, else node names, of norms to leave alone, and of sums not to merge.
        layernorm: how far to take LayerNorm, RMSNorm and GroupNorm, each level with those before: ``off`` leaves
            them as they are, ``recognise`` makes one operator of each that is spelled out, ``affine`` sends scale
            and bias of LayerNorm and RMSNorm into what reads them, ``centre`` makes RMSNorms of LayerNorms by
            centring all that writes into the stream they read.
        target: what will run the model; ``onnxruntime`` allows an operator of its own where the opset has none.
        validate: prove each plan in float64 before it is carried out.
        dump: an empty or new folder to write the graph into before the first and after each step.
        inputs_are_constants: names of inputs of the model that have a default value, which no caller will override, or
            ``all``: they are constants of the folded model, and no inputs any more.
        precision: what the float32 tensors of the folded model will be converted to, as by
            :func:`normdeploy.precision.to_precision`: no plan counts whose weights or values that does not hold.

    Raises:
        InputError: the file cannot be read as an ONNX model, or is none, or its opset is newer than the installed onnx
            knows; a node of it cannot take the sizes that its constants make; there is no such level, target or
            precision; nothing has a name that ``keep`` or ``inputs_are_constants`` asks for; ``dump`` is in use.
        NormdeployError: what came out is not valid, or not to others what it was: a mistake of the fold.
    """
    begin = time.perf_counter()
    opened = opening.opened(model)
    before = closing.interface(opened)
    constants = opening.make_constants(opened, inputs_are_constants)
    require_unchanged = None if isinstance(model, ir.Model) else partial(onnxfile.require_unchanged, opened)
    narrow = None if precision == "fp32" else DTYPES[precision]
    session = Session(opened, tuple(keep), validate, opening.dump_folder(dump), narrow=narrow)
    try:
        with threadpool_limits(limits=1, user_api="blas"):  # the products of a proof are small: threads would only wait
            believed = _fold_model(session, Reducer(session, layernorm, target), require_unchanged)
    except NormdeployError:
        raise
    except Exception as error:
        opening.require_validity(model, error)
        opening.require_fitting(opening.opened(model))
        raise
    checked = time.perf_counter()
    closing.require_sound(opened, before, lambda: opening.opened(model), constants=constants, believed=believed)
    session.proof_seconds += (time.perf_counter() - checked) * validate
    ledger = session.record.ledger(time.perf_counter() - begin, session.proof_seconds)
    previous = opened.metadata_props.get(METADATA_KEY)
    opened.metadata_props[METADATA_KEY] = with_history(ledger, previous).to_json()
    return FoldResult(opened, ledger)


def _fold_model(session: Session, reducer: Reducer, require_unchanged: Callable[[], None] | None) -> bool:
    """Fold every graph of the model, bodies and functions included; return whether what it declares was believed."""
    model = session.model
    opening.require_known_names(model, session.keep)
    session.record.note("NF417", opening.training_note(model))
    unread = {value for value in model.graph.inputs if not value.uses()}
    if left := opening.put_in_order(model):
        session.record.note("NF413", left)
        return True
    cleaned = clean(model, keep=session.is_kept)
    session.record.note("NF415", cleaned.done)
    opening.drop_spare_outputs(model)
    declared = put_aside(model, cleaned.shapes.follow(), cleaned.shapes.suppose())
    session.record.note("NF420", declared.notes)
    session.record.note("NF414", (*cleaned.unknown, *infer(model)))
    session.record.note("NF412", opening.overridable_note(model))
    session.show("before")
    names, cache = all_names(model), WeightCache(require_unchanged, proven=session.validate)
    for graph, opset in opening.graphs(model):
        view = View(opset, model.ir_version, main=model.graph, gelus=cleaned.gelus)
        writer = Writer(GraphState.of(view, graph), {}, names, model.graph, cache)
        _recognise(reducer, writer)
        while _fold_graph(session, writer := _renewed(session, reducer, writer)) and _recognise(reducer, writer):
            pass  # a norm read a sum that went, and is spelled otherwise now
        reducer.reduce(writer.state, writer)
        writer.share_copies()
    store_as_read(model)
    declared.put_back(model)
    if model.ir_version < 4:  # every initializer is an input there, and yet a constant
        opening.drop_unread(model.graph, unread)
    return not declared.notes


def _recognise(reducer: Reducer, writer: Writer) -> bool:
    """Write the norms that are spelled out; return whether any was. What is written counts as it is stored."""
    state = writer.state
    view = replace(state.view, unrounded={**state.view.unrounded})
    return reducer.recognise(Writer(GraphState.of(view, state.graph), {}, writer.names, writer.main, writer.cache))


def _renewed(session: Session, reducer: Reducer, writer: Writer) -> Writer:
    """Return a writer into the same graph as it is now, every map of it entered; none is read again as it is stored."""
    graph, view = writer.state.graph, writer.state.view.renewed()
    view = replace(view, tails=reducer.tails(view, graph))
    maps = {node: m for node, m in writer.state.maps.items() if node.graph is not None}
    state = replace(GraphState.of(view, graph), committed=writer.edits, maps=maps)
    _read_maps(session, state)
    return Writer(state, writer.edits, writer.names, writer.main, writer.cache)


def _fold_graph(session: Session, writer: Writer) -> bool:
    """Fold every map in order and every sum, until nothing moves: what went may have freed the way for the others.

    What changes nothing goes first, or others would travel to join it. Return whether a sum went.
    """
    state, sums_went, moves = writer.state, False, True
    while moves:
        while sum(_fold_one(session, state, writer, node) for node in state.maps_in_order()):
            pass
        sums = [node for node in state.nodes if states(node).sums and node.graph is not None]
        merged = sum(_merge_one(session, state, writer, node) for node in sums)
        # Where inference had failed, what went may have been all that hid the rank of what a map acts on.
        moves = merged + _read_maps(session, state) > 0
        sums_went |= merged > 0
    return sums_went


def _fold_one(session: Session, state: GraphState, writer: Writer, node: ir.Node) -> bool:
    """Carry out the first plan for the map of ``node`` that holds; return whether there was one."""
    while node in state.successors:  # a map that others joined stands on as another node
        node = state.successors[node]
    if node not in state.maps:
        return False
    if node.graph is None:  # of constants: a weight that it made was edited, and is stored as it is now
        session.record.go_with_weights(node)
        return False
    plan, residual, refusals = session.first_proven(plans(state, node), state)
    if plan is not None:
        session.carry_out(plan, writer, residual, refusals)
    elif not is_bias_of_product(node, state.maps[node]) and not is_epsilon(state.view, node):
        session.record.leave(node, refusals)
    return plan is not None


def _merge_one(session: Session, state: GraphState, writer: Writer, total: ir.Node) -> bool:
    if session.is_kept(total):
        return False
    try:
        found = merge.merger(state, total)
        residual = session.merger(state, found)
    except Refused:  # a sum of anything else is no norm's business
        return False
    maps = [branch.node for branch in found.branches if branch.node is not None and branch.map is not None]
    session.record.merge(total, found.into, maps, residual)
    writer.merge(found)
    session.show(label(total))
    return True


def _read_maps(session: Session, state: GraphState) -> int:
    """Enter every map of ``state`` that is not there yet; return how many these are."""
    before, of_sizes = len(state.maps), made_of_sizes(state)
    for node in state.nodes:
        if node in state.maps or node.graph is None or (m := _map_of(session, state.view, node)) is None:
            continue
        if not states(node).norm and data_input(state.view, node) in of_sizes:  # it stays as it is computed
            continue
        state.maps[node] = m
        session.record.forget(node)
    return len(state.maps) - before


def _map_of(session: Session, view: View, node: ir.Node) -> AffineMap | None:
    try:
        m = map_of(view, node)
    except Refused as refusal:
        session.record.leave(node, [refusal])
        return None
    if m is None and states(node).norm:
        session.record.leave(node, [NOT_LINEAR if states(node).map is None else NOT_CONSTANT])
    if m is not None and session.is_kept(node):
        session.record.leave(node, [AS_ASKED])
        return None
    return m
