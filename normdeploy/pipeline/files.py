"""ONNX files and bundles on disk: fold one into another, and read what a fold or an export left in them."""

from __future__ import annotations

import mmap
import os
import re
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from normdeploy import onnxfile
from normdeploy.bundle.writing import EXTERNAL_ABOVE
from normdeploy.disk import disk_errors, locked, room, sha256_of
from normdeploy.disk.outputs import exists
from normdeploy.engine.plugin_graph import PluginForm
from normdeploy.errors import InputError, VerdictError
from normdeploy.fold import Ledger, Level, Note, Target, fold
from normdeploy.pipeline.places import check_model
from normdeploy.precision import Precision, to_precision

_DIGITS = 16
"""Of the sha256 of weights, in the name of their file."""
_MOST = 1 << 28
"""Bytes that a report may have."""


def fold_file(
    source: str | Path,
    out: str | Path,
    *,
    keep: Sequence[str] = (),
    layernorm: Level = "affine",
    target: Target = "onnx",
    inputs_are_constants: Sequence[str] = (),
    precision: Precision | None = None,
    plugin: bool = False,
    plugin_form: PluginForm = "aot",
    dump: Path | None = None,
    strict: bool = False,
    force: bool = False,
    external_above: int = EXTERNAL_ABOVE,
) -> Ledger:
    """Fold the ONNX file ``source`` into the file ``out``; with ``strict`` only if no plan failed its proof.

    ``keep``, ``layernorm``, ``target`` and ``inputs_are_constants`` are those of :func:`normdeploy.fold`. With
    ``plugin`` LayerNorms are written as the operators of TensorRT plugins, in ``plugin_form``, and proven. With
    ``precision`` the folded graph is converted by :func:`normdeploy.precision.to_precision`; inputs and outputs stay
    float32.
    Weights of more than ``external_above`` bytes, and those that lie outside ``source``, are written beside ``out``, to
    a file whose name tells their content, so that a graph is never read with the weights of another.
    Raises InputError where ``source`` cannot be read or ``out`` not be written, VerdictError where ``strict`` forbids
    it; ``out`` then stays as it was. ``source`` is never written to.
    """
    source, out = Path(source), Path(out)
    out = Path(os.path.realpath(out.parent), out.name)
    check_plugin(plugin, plugin_form, target, layernorm)
    with disk_errors(out, "the model"):
        check_model(source, out, beside={} if dump is None else {"--dump": dump}, force=force)
        result = fold(
            source, keep=keep, layernorm=layernorm, target=target, inputs_are_constants=inputs_are_constants, dump=dump,
            precision=precision or "fp32",
        )  # fmt: skip
        if strict and result.ledger.dropped:
            raise VerdictError(
                "a step failed its proof and was dropped, so nothing was written",
                where="; ".join(map(str, result.ledger.dropped)),
                fix="leave --strict out: a dropped plan changes nothing in the model",
            )
        model = result.model if precision is None else _converted(result.model, precision)
        model, said = _with_plugins(model, plugin_form) if plugin else (model, ())
        _install(model, out, source, external_above, force)
    return replace(result.ledger, notes=(*result.ledger.notes, *said))


def _converted(folded: ir.Model, precision: Precision) -> ir.Model:
    from normdeploy.fold.closing import require_converted

    model = to_precision(folded, precision)
    require_converted(model, folded)
    return model


def _with_plugins(model: ir.Model, form: PluginForm) -> tuple[ir.Model, tuple[Note, ...]]:
    from normdeploy.parity.plugins import with_plugins  # plugins are proven with torch, which nothing else here needs

    return with_plugins(model, form)


def check_plugin(plugin: bool, form: PluginForm, target: Target, layernorm: Level = "affine") -> None:
    """Raise InputError where plugins are asked for and the model is not for TensorRT, or a form of none.

    For TensorRT no LayerNorm becomes an RMSNorm, so asking for that and for plugins is refused too.
    """
    if form != "aot" and not plugin:
        raise InputError("there are no plugins to be of a form", where=f"--plugin-form {form}", fix="give --plugin too")
    if plugin and target != "tensorrt":
        what = "only TensorRT runs the plugin's operators"
        raise InputError(what, where=f"--plugin --target {target}", fix="give --target tensorrt as well")
    if plugin and layernorm == "centre":
        what = "for TensorRT no LayerNorm becomes an RMSNorm, with --plugin as without"
        raise InputError(what, where="--plugin --layernorm centre", fix="leave --layernorm out")


def _install(model: ir.Model, out: Path, source: Path, external_above: int, force: bool) -> None:
    """Write beside ``out``, then rename, the weights first: their name tells their content, and fits no other graph."""
    with room(out) as place:
        place.new.mkdir()
        graph = place.new / out.name
        data = _written(model, graph, _needs_data(model, source, external_above))
        with locked(out.parent):
            check_model(source, out, force=force)
            try:
                place.settle_pair(out, data, replace=force)
            except FileExistsError as error:
                raise exists(out) from error
            _tidy(out, source)


def _written(model: ir.Model, graph: Path, beside: bool) -> str | None:
    """Write ``model`` to ``graph``, its weights ``beside`` it; returns their file's name, which has its sha256."""
    if not beside:
        onnxfile.save(model, graph)
        return None
    anyhow = _data_name(graph.name, uuid.uuid4().hex)
    onnxfile.save(model, graph, external_data=anyhow)
    if not (graph.parent / anyhow).exists():
        return None
    name = _data_name(graph.name, sha256_of(graph.parent, anyhow))
    (graph.parent / anyhow).rename(graph.parent / name)
    graph.write_bytes(graph.read_bytes().replace(anyhow.encode(), name.encode()))  # as long, so lengths stay right
    return name


def _data_name(graph: str, digits: str) -> str:
    return f"{graph}.{digits[:_DIGITS]}.data"


def _tidy(out: Path, source: Path) -> None:
    """Remove weights that an older ``out`` had, or a fold that was killed: by their content, and if nothing names them.

    Their name has their sha256, so no other file is taken for them.
    """
    pattern = re.compile(rf"{re.escape(out.name)}\.[0-9a-f]{{{_DIGITS}}}\.data")
    for path in [path for path in out.parent.iterdir() if pattern.fullmatch(path.name)]:
        with suppress(InputError, OSError):
            models = {out, source, *out.parent.glob("*.onnx")}
            if _data_name(out.name, sha256_of(out.parent, path.name)) == path.name and not _named(path, models):
                path.unlink()


def _named(data: Path, models: Iterable[Path]) -> bool:
    """True where one of ``models`` that lies beside ``data`` names it; a copy of an older output may."""
    return any(_holds(path, data.name.encode()) for path in models if path.parent.samefile(data.parent))


def _holds(path: Path, text: bytes) -> bool:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(text) >= 0


def _data_files(model: Path) -> set[Path]:
    """The files of weights that ``model`` reads; none where it is no model."""
    try:
        paths = onnxfile.data_files(model)
    except InputError:  # it is no model
        return set()
    return set(paths)


def _needs_data(model: ir.Model, source: Path, external_above: int) -> bool:
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    present = [tensor for tensor in tensors if tensor is not None]
    return bool(_data_files(source)) or sum(tensor.nbytes for tensor in present) > external_above
