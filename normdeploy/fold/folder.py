"""``fold``: every map of a model is searched, proven, carried out, and entered in the ledger."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import get_args

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass
from threadpoolctl import threadpool_limits

from normdeploy import onnxfile
from normdeploy.clean import clean, store_as_read
from normdeploy.disk import disk_errors
from normdeploy.errors import InputError, NormdeployError
from normdeploy.fold import merge
from normdeploy.fold.affine import AffineMap
from normdeploy.fold.apply import Shelf, Writer, all_names, check
from normdeploy.fold.graph.edits import Edit
from normdeploy.fold.graph.reader import Refused, View
from normdeploy.fold.layernorm.reduce import NOT_LINEAR, Level, Reducer, blank
from normdeploy.fold.layernorm.targets import Target
from normdeploy.fold.ledger import METADATA_KEY, Entry, Ledger
from normdeploy.fold.operators.maps import map_of
from normdeploy.fold.operators.table import states
from normdeploy.fold.plan import Plan, Slot
from normdeploy.fold.proof import commute as proof
from normdeploy.fold.search import Territory, plans
from normdeploy.graph import is_of_onnx, label, note_functions, operator
from normdeploy.limits import more_memory


@dataclass(frozen=True)
class FoldResult:
    """A folded model and what became of each of its norms."""

    model: ir.Model
    ledger: Ledger

    def save(self, path: str | Path, *, external_data: str | None = None) -> None:
        """Write the model as :func:`normdeploy.onnxfile.save` does: each edited weight is evaluated on the way."""
        onnxfile.save(self.model, path, external_data=external_data)


def fold(
    model: str | Path | onnx.ModelProto | ir.Model,
    *,
    keep: Sequence[str] = (),
    layernorm: Level = "affine",
    target: Target = "onnx",
    validate: bool = True,
    dump: str | Path | None = None,
) -> FoldResult:
    """Push everything that is linear in every norm of ``model`` into the neighbouring weights.

    Args:
        model: a path to an ONNX file, an ``onnx.ModelProto`` or an ``onnx_ir.Model``; it is not changed. The weights of
            a file are mapped, not read: it must stay as it is until the result is saved, and so must the arrays of a
            model in memory. Where a file was written to meanwhile, saving is refused.
        keep: patterns (fnmatch) of module names, else node names, of norms to leave alone.
        layernorm: how far to take LayerNorm, RMSNorm and GroupNorm, each level with those before: ``off`` leaves
            them as they are, ``recognise`` makes one operator of each that is spelled out, ``affine`` sends scale
            and bias of LayerNorm and RMSNorm into what reads them, ``centre`` makes RMSNorms of LayerNorms by
            centring all that writes into the stream they read.
        target: what will run the model; ``onnxruntime`` allows an operator of its own where the opset has none.
        validate: prove each plan in float64 before it is carried out.
        dump: an empty or new folder to write the graph into before the first and after each step.

    Raises:
        InputError: the file cannot be read as an ONNX model, or is none, or its opset is newer than the installed onnx
            knows; there is no such level or target; nothing has a name that ``keep`` asks for; ``dump`` is in use.
    """
    begin = time.perf_counter()
    _need_one_of(layernorm, get_args(Level), "layernorm")
    _need_one_of(target, get_args(Target), "target")
    if isinstance(keep, str):
        raise InputError(
            "keep is a list of patterns, and this is a text", where=f"keep={keep!r}", fix=f"give [{keep!r}]"
        )
    opened = _opened(model)
    need_unchanged = None if isinstance(model, ir.Model) else partial(onnxfile.need_unchanged, opened)
    folder = _Folder(opened, tuple(keep), layernorm, target, validate, _made(dump), need_unchanged)
    try:
        with threadpool_limits(limits=1, user_api="blas"):  # the products of a proof are small: threads would only wait
            folder.run()
    except NormdeployError:
        raise
    except Exception as error:
        _need_validity(model, error)
        raise
    ledger = folder.ledger(time.perf_counter() - begin)
    previous = folder.model.metadata_props.get(METADATA_KEY)
    folder.model.metadata_props[METADATA_KEY] = _with_history(ledger, previous).to_json()
    return FoldResult(folder.model, ledger)


def _made(dump: str | Path | None) -> Path | None:
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


def _need_validity(model: str | Path | onnx.ModelProto | ir.Model, error: Exception) -> None:
    """Where a fold fails by ``error`` and the model is not valid, say so."""
    given = ir.to_proto(model) if isinstance(model, ir.Model) else model
    try:
        onnx.checker.check_model(given, full_check=True)
    except Exception as problem:  # it raises of its own, and of protobuf's and of shape inference's
        where = str(model) if isinstance(model, str | Path) else ""
        what = " ".join(str(problem).split())
        raise InputError(f"the model is not valid ONNX: {what}", where=where, fix="export it again") from error


def _need_one_of(given: str, known: Sequence[str], where: str) -> None:
    if given not in known:
        raise InputError(f"{given!r} is none of {', '.join(known)}", where=where)


def _opened(model: str | Path | onnx.ModelProto | ir.Model) -> ir.Model:
    if isinstance(model, ir.Model | onnx.ModelProto):
        # The tensors of a message are views of the given ones, which are replaced, never written to.
        taken = _copied(model) if isinstance(model, ir.Model) else ir.from_proto(model)
        onnxfile.adopt(taken)
        return taken
    if Path(model).is_dir():
        raise InputError("this is a folder, not an ONNX file", where=str(model), fix="name the .onnx file in it")
    loaded = onnxfile.load(model)
    if not loaded.graph.outputs:  # protobuf reads no bytes at all as a model of nothing
        fix = "check that it is complete and an ONNX model at all"
        raise InputError("the file cannot be read as an ONNX model: it has no outputs", where=str(model), fix=fix)
    return loaded


def _copied(model: ir.Model) -> ir.Model:
    try:
        return model.clone()
    except RuntimeError as error:
        raise InputError(
            "the model cannot be copied: a node reads what no node before it makes",
            where=str(model.graph.name),
            fix="sort it first: model.graph.sort()",
        ) from error


def _with_history(ledger: Ledger, previous: str | None) -> Ledger:
    """What the file keeps: also what an earlier fold did; no seconds, so that equal folds give equal bytes."""
    kept: tuple[Entry, ...] = ()
    new = ledger.entries
    if previous is not None:
        try:
            changed = {(entry.module, entry.node) for entry in new if entry.outcome != "left"}
            kept = tuple(
                e for e in Ledger.from_json(previous) if (e.module, e.node) not in changed and e.outcome != "left"
            )
            before = {(entry.module, entry.node) for entry in kept}  # a norm reduced before has nothing left to give
            new = tuple(e for e in new if e.outcome != "left" or (e.module, e.node) not in before)
        except (ValueError, KeyError, TypeError):
            kept, new = (), ledger.entries  # not ours to understand: the new ledger says what is true now
    return replace(ledger, entries=kept + new, seconds=0.0, validation_seconds=0.0)


@dataclass
class _Folder:
    """One fold: the model that is changed, and the entries that say how.

    Of the maps that stay, by their nodes in the given model: ``joined`` says for a map which other took it in,
    ``biases`` how many Adds of the given model stand in one.
    """

    model: ir.Model
    keep: tuple[str, ...]
    layernorm: Level
    target: Target
    validate: bool
    dump: Path | None
    need_unchanged: Callable[[], None] | None
    entries: dict[ir.Node, Entry] = field(default_factory=dict)
    joined: dict[ir.Node, ir.Node] = field(default_factory=dict)
    given: dict[ir.Node, ir.Node] = field(default_factory=dict)
    biases: dict[ir.Node, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    proof_seconds: float = 0.0
    steps: int = 0

    def run(self) -> None:
        """Fold every graph of the model, bodies and functions included."""
        self._need_known_opset()
        self._need_known_names()
        if taken := sorted(note_functions(self.model) & _WRITTEN):
            which = f"functions of the model bear names of ONNX's operators that a fold writes: {', '.join(taken)}"
            self.notes.append(f"nothing was folded: {which}; rename them, or give them a domain of their own")
            return
        unread = {value for value in self.model.graph.inputs if not value.uses()}
        for graph, _ in _graphs(self.model):
            _need_makers(graph)
            graph.sort()  # shape inference gives up on nodes in another order
        self.notes.extend(clean(self.model, keep=self.is_kept))
        self._infer_shapes()
        self.show("before")
        names, shelf = all_names(self.model), Shelf(self.need_unchanged)
        reducer = Reducer(self, self.layernorm, self.target)
        for graph, opset in _graphs(self.model):
            reducer.recognise(Writer(self._bare(graph, opset), {}, names, self.model.graph, shelf))
            edits: dict[Slot, Edit] = {}
            land = self._survey(graph, opset, edits)
            writer = Writer(land, edits, names, self.model.graph, shelf)
            self._fold_all(land, writer)
            reducer.reduce(land, writer)
        store_as_read(self.model)
        if self.model.ir_version < 4:  # every initializer is an input there, and yet a constant
            _drop_unread(self.model.graph, unread)

    def _need_known_opset(self) -> None:
        """Refuse a model of which nobody can say what its operators do."""
        newest = onnx.defs.onnx_opset_version()
        told = self.model.opset_imports.keys() & {"", "ai.onnx"}
        plain = any(is_of_onnx(node) for node in self.model.graph.all_nodes())
        if plain and not told and self.model.ir_version >= 3:  # ONNX specification, IR: before it had none
            raise InputError("the model does not say its opset", where="opset_import", fix="export it again")
        for imports in (self.model.opset_imports, *(body.opset_imports for body in self.model.functions.values())):
            opset = _opset(imports, 1)
            if opset > newest:
                what = f"the model has opset {opset}, and the installed onnx knows up to {newest}"
                raise InputError(what, where="opset_import", fix="install a newer onnx, or export with an older opset")
            if opset < 1:
                raise InputError(f"there is no opset {opset}", where="opset_import", fix="export it again")

    def _need_known_names(self) -> None:
        names = {label(node) for graph, _ in _graphs(self.model) for node in graph}
        for pattern in self.keep:
            if not fnmatch.filter(names, pattern):
                fix = "name a module, or a node where there are no modules"
                raise InputError("nothing has a name that is to be kept", where=f"keep {pattern!r}", fix=fix)

    # -- the land ------------------------------------------------------------------------------

    def _infer_shapes(self) -> None:
        values = (out for graph, _ in _graphs(self.model) for node in graph for out in node.outputs)
        if all(value.shape is not None and value.dtype is not None for value in values):
            return
        initializers = self.model.graph.initializers
        order = list(initializers)
        try:
            for follows_values in (True, False):  # to follow the values of a large vector takes 150 bytes for each
                with more_memory(_INFERENCE):
                    done = ShapeInferencePass(strict_mode=False, data_prop=follows_values)(self.model)
                if done.modified:
                    break
        except Exception as error:  # it fails on models that are still foldable in part
            self.notes.append(f"shape inference failed, so less can be folded: {error}")
        for name in order:  # the pass puts large ones aside, and then behind the others
            initializers[name] = initializers.pop(name)

    def _bare(self, graph: ir.Graph | ir.Function, opset: int) -> Territory:
        """The graph as it is, no map in it looked for yet."""
        nodes = list(graph)
        order = {node: i for i, node in enumerate(nodes)}
        return Territory(View(opset, self.model.ir_version), graph, nodes, order, {}, {})

    def _survey(self, graph: ir.Graph | ir.Function, opset: int, edits: dict[Slot, Edit]) -> Territory:
        land = replace(self._bare(graph, opset), committed=edits)
        self._read_maps(land)
        return land

    def _read_maps(self, land: Territory) -> int:
        """Enter every map of ``land`` that is not there yet; how many these are."""
        before = len(land.maps)
        for node in land.nodes:
            if node in land.maps or node.graph is None or (m := self._map_of(land.view, node)) is None:
                continue
            land.maps[node] = m
            self.entries.pop(node, None)
        return len(land.maps) - before

    def _map_of(self, view: View, node: ir.Node) -> AffineMap | None:
        try:
            m = map_of(view, node)
        except Refused as refusal:
            self._enter_left(node, [refusal])
            return None
        if m is None:
            if states(node).norm:
                self._enter_left(node, [Refused(_WHY_NOT_LINEAR.get(operator(node), NOT_LINEAR))])
            return None
        if self.is_kept(node):
            self._enter_left(node, [Refused("kept, as asked")])
            return None
        return m

    def is_kept(self, node: ir.Node) -> bool:
        """Whether a pattern names ``node``."""
        return any(fnmatch.fnmatchcase(label(node), pattern) for pattern in self.keep)

    # -- proofs --------------------------------------------------------------------------------

    def square(self, plan: Plan, land: Territory, node: ir.Node) -> float | None:
        """The residual of the proof of ``plan`` at one node; a refusal where it fails, None where nothing is proven."""
        if not self.validate:
            return None
        with self._proving(plan.source):
            return proof.square(plan, land.view, land.committed, node)

    @contextmanager
    def _proving(self, source: ir.Node) -> Iterator[None]:
        """Take the time of a proof, and note one that fails."""
        begin = time.perf_counter()
        try:
            yield
        except Refused as refusal:
            dropped = f"{label(source)}: {refusal.reason}"
            self.dropped.extend([dropped] if dropped not in self.dropped else [])
            raise
        finally:
            self.proof_seconds += time.perf_counter() - begin

    def _fold_all(self, land: Territory, writer: Writer) -> None:
        """Every map in order and every sum, until nothing moves: what went may have freed the way for the others.

        What changes nothing goes first, or others would travel to join it.
        """
        moves = True
        while moves:
            while sum(self._fold_one(land, writer, node) for node in _in_order(land)):
                pass
            sums = [node for node in land.nodes if states(node).sums and node.graph is not None]
            merged = sum(self._merge_one(land, writer, node) for node in sums)
            # Where inference had failed, what went may have been all that hid the rank of what a map acts on.
            moves = merged + self._read_maps(land) > 0

    # -- one map -------------------------------------------------------------------------------

    def _fold_one(self, land: Territory, writer: Writer, node: ir.Node) -> bool:
        """Carry out the first plan for the map of ``node`` that holds; whether there was one."""
        while node in land.successors:  # a map that others joined stands on as another node
            node = land.successors[node]
        if node not in land.maps:
            return False
        plan, residual, refusals = self.first_proven(plans(land, node), land)
        if plan is not None:
            self.carry_out(plan, writer, residual, refusals)
        elif not _is_epilogue(land, node):
            self._enter_left(node, refusals)
        return plan is not None

    def first_proven(
        self, candidates: Iterable[Plan | Refused], land: Territory
    ) -> tuple[Plan | None, float | None, list[Refused]]:
        """The first plan that holds, with the residual of its proof, and why those before it did not."""
        refusals: list[Refused] = []
        for candidate in candidates:
            try:
                if isinstance(candidate, Refused):
                    raise candidate
                return candidate, self._proven(candidate, land), refusals
            except Refused as refusal:
                refusals.append(refusal)
        return None, None, refusals

    def _merge_one(self, land: Territory, writer: Writer, total: ir.Node) -> bool:
        try:
            found = merge.merger(land, total)
            residual = self._proven_merger(found, land)
        except Refused:  # a sum of anything else is no norm's business
            return False
        for branch in found.branches:
            if branch.node is not None and branch.map is not None:
                given = self._given(branch.node)
                into, through = (label(found.into),), (operator(total),)
                self.entries[given] = replace(
                    blank(given), outcome="folded", into=into, through=through, residual=residual
                )
        writer.merge(found)
        self.show(label(total))
        return True

    def _proven_merger(self, found: merge.Merger, land: Territory) -> float | None:
        if not self.validate:
            return None
        with self._proving(found.total):
            return merge.residual(land, found)

    def _proven(self, plan: Plan, land: Territory) -> float | None:
        """The residual of the plan's proof; a refusal where rounding or the proof fails."""
        self.notes.extend(note for note in check(plan, land.view, proven=self.validate) if note not in self.notes)
        if not self.validate:
            return None
        with self._proving(plan.source):
            return proof.residual(plan, land.view, land.committed)

    def carry_out(self, plan: Plan, writer: Writer, residual: float | None, refusals: list[Refused]) -> None:
        """Change the graph as ``plan`` says, and enter what became of every map it took."""
        entries = {node: self.entry(plan, node, residual, refusals) for node in plan.residues}
        if self._leaves_only_biases(plan, writer.land):
            entries = {node: replace(entry, outcome="folded", reason="", fix="") for node, entry in entries.items()}
        stays = [node for node, residue in plan.residues.items() if residue is not None]
        writer.carry_out(plan)
        for node, entry in entries.items():
            if node not in stays or node is plan.source:
                self.entries[self._given(node)] = entry
            for end in stays:
                if node is not end:
                    self.joined[self._given(node)] = self._given(end)
        for node in stays:
            self.given[writer.land.successors[node]] = self._given(node)
        self.show(label(plan.source))

    def _leaves_only_biases(self, plan: Plan, land: Territory) -> bool:
        """Whether no more stays than the Adds that the given model had here: biases of products, with other numbers."""
        stays = {node: residue for node, residue in plan.residues.items() if residue is not None}
        adds = sum(
            1 if node in land.maps and land.maps[node].scales_nothing else self.biases.get(self._given(node), 0)
            for node in plan.residues
        )
        each = adds if len(stays) == 1 else int(adds >= len(stays))
        self.biases |= {self._given(node): each for node in stays}
        return len(stays) <= adds and all(residue.scales_nothing for residue in stays.values())

    def _given(self, node: ir.Node) -> ir.Node:
        """The node of the given model that ``node`` is, or in whose place it stands."""
        return self.given.get(node, node)

    def entry(self, plan: Plan, node: ir.Node, residual: float | None, refusals: list[Refused]) -> Entry:
        """What becomes of ``node`` by ``plan``."""
        left = plan.residues.get(plan.source)
        ulps = max((edit.ulps() for edit in plan.edits.values() if edit.original is not None), default=None)
        ends = (end for end, rest in plan.residues.items() if rest is not None and end is not plan.source)
        stays = [label(self._given(end)) for end in ends]
        reason, fix = _why(refusals) if left is not None else ("", "")
        return replace(
            blank(self._given(node)),
            outcome="reduced" if left is not None else "composed" if stays else "folded",
            into=tuple(dict.fromkeys([*map(label, plan.into), *stays])),
            through=tuple(dict.fromkeys(operator(step) for step in plan.through)),
            ulps=ulps,
            residual=residual,
            reason=f"its shift stays as one Add: {reason}" if reason else "",
            fix=fix,
        )

    def _enter_left(self, node: ir.Node, refusals: Sequence[Refused]) -> None:
        reason, fix = _why(refusals)
        left = replace(blank(self._given(node)), reason=reason, fix=fix)
        self.entries.setdefault(self._given(node), left)

    # -- the ledger ----------------------------------------------------------------------------

    def ledger(self, seconds: float) -> Ledger:
        """All entries, maps that joined others resolved to where those went."""
        entries = tuple(self._resolved(node, entry) for node, entry in self.entries.items())
        return Ledger(entries, tuple(self.notes), seconds, self.proof_seconds, tuple(self.dropped))

    def _resolved(self, node: ir.Node, entry: Entry) -> Entry:
        seen = {node}
        while entry.outcome == "composed" and (end := self.joined.get(node)) is not None and end not in seen:
            seen.add(end)
            node = end
            final = self.entries.get(end)
            if final is not None and final.outcome == "folded":
                return replace(entry, outcome="folded", into=final.into, through=entry.through + final.through)
        return entry

    def show(self, name: str) -> None:
        """Dump the graph as it is now, where that was asked for."""
        if self.dump is None:
            return
        safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
        name = f"{self.steps:03d}-{safe}.onnx"
        weights = (value.const_value for value in self.model.graph.initializers.values())
        size = sum(weight.nbytes for weight in weights if weight is not None)
        if (self.dump / name).exists():
            what = "another fold writes to the folder for the graphs: their steps would mix"
            raise InputError(what, where=str(self.dump / name), fix="choose another --dump")
        with disk_errors(self.dump / name, "the graph of a step"):
            onnxfile.save(self.model, self.dump / name, external_data=f"{name}.data" if size > _LARGE else None)
        self.steps += 1


def _in_order(land: Territory) -> list[ir.Node]:
    return sorted(land.maps, key=lambda node: not land.maps[node].is_identity)


_INFERENCE = 2**30
"""Bytes that shape inference may take."""

_LARGE = 2**30
"""Bytes of weights above which a dumped graph has them beside it."""

_WRITTEN = frozenset(
    {
        "Add", "BatchNormalization", "Constant", "Conv", "GroupNormalization", "Identity", "LayerNormalization", "Mul",
        "RMSNormalization", "SimplifiedLayerNormalization", "Transpose",
    }
)  # fmt: skip
"""Operators that a fold may write."""

_WHY_NOT_LINEAR = {"BatchNormalization": "its statistics are not constant"}


def _need_makers(graph: ir.Graph | ir.Function) -> None:
    """Refuse a graph that reads a value which nothing makes."""
    read = [(value, label(node)) for node in graph for value in node.inputs if value is not None]
    for value, reader in (*read, *((value, "the model's outputs") for value in graph.outputs)):
        if value.producer() is None and not value.is_graph_input() and not value.is_initializer():
            raise InputError(
                f"the model is not valid ONNX: nothing makes {value.name!r}", where=reader, fix="export it again"
            )


def _drop_unread(graph: ir.Graph, but: Container[ir.Value]) -> None:
    """Take out the initializers listed as inputs that nothing reads any more."""
    for value in list(graph.inputs):
        if value.is_initializer() and not value.uses() and not value.is_graph_output() and value not in but:
            graph.initializers.pop(str(value.name))
            graph.inputs.remove(value)


def _graphs(model: ir.Model) -> Iterator[tuple[ir.Graph | ir.Function, int]]:
    opset = _opset(model.opset_imports, 1)
    yield model.graph, opset
    for graph in model.graph.subgraphs():
        yield graph, opset
    for function in model.functions.values():
        yield function, _opset(function.opset_imports, opset)


def _opset(imports: Mapping[str, int], otherwise: int) -> int:
    """The opset of ONNX's own operators, whose domain has two names."""
    return imports.get("", imports.get("ai.onnx", otherwise))


def _why(refusals: Iterable[Refused]) -> tuple[str, str]:
    """All reasons, and all that would help, each once."""
    reasons = dict.fromkeys(refusal.reason for refusal in refusals)
    fixes = dict.fromkeys(refusal.fix for refusal in refusals if refusal.fix)
    return "; ".join(reasons), "; ".join(fixes)


def _is_epilogue(land: Territory, node: ir.Node) -> bool:
    """Whether ``node`` is the bias of the MatMul in front of it, which stays by design."""
    return land.maps[node].scales_nothing and any(
        value is not None and (producer := value.producer()) is not None and operator(producer) == "MatMul"
        for value in node.inputs
    )
