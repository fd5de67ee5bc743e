"""What torch's exporter raises, said as one error: what, in which module, and what to do about it."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn.utils import parametrize

from normdeploy.errors import InputError, NormdeployError, words
from normdeploy.export import blame, dtypes, parts
from normdeploy.export.advice import multiples_that_run, of_lengths, packs, spelled
from normdeploy.export.call import HOW
from normdeploy.export.capture import symbols
from normdeploy.export.constraints import replace_words
from normdeploy.specs import TensorSpec

_UNTRANSLATED = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'")
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


_UNPACKED = (
    "run the layer on the padded tensor: up to each length its outputs are the same, so multiply them by "
    "(torch.arange(T) < lengths[:, None])[..., None]; the last state is the output at lengths - 1; run the backward "
    "direction as a layer of its own, on sequences that torch.gather turned round within their lengths"
)

Eager = Callable[[Mapping[str, int] | None], object]
"""Runs forward at the given sizes, or at those that are traced."""


def translate(error: Exception, module: nn.Module, specs: Sequence[TensorSpec], eager: Eager) -> NormdeployError:
    """Return the error to raise for ``error`` of the exporter.

    An error of forward itself is better said without torch's symbols, so forward is run.
    """
    dims = {symbol: name for name, symbol in symbols(specs).items()}
    chain = list(_chain(error))
    where, operator, text = _where(chain, module), _operator(chain), replace_words(words(chain[-1]), dims)
    if known := next((cause for cause in chain if isinstance(cause, NormdeployError)), None):
        return known
    if operator:
        return InputError(
            f"the operator {operator} cannot be exported to ONNX",
            where=where,
            fix=_without_parametrization(chain, module)
            or "replace it in the module by operators that ONNX has, or try a newer --opset",
        )
    if any(map(packs, chain)):
        return InputError(
            "a packed sequence cannot be exported: how much is in it depends on the values of the lengths",
            where=where,
            fix=_UNPACKED,
        )
    try:
        with parts.recorded(module) as ran:
            eager(None)
    except Exception as failure:
        if parts.lacks_operators(failure):
            behind = "what chooses boxes by their values is no graph, so do that behind it"
            fix = f"{parts.advice(ran) or parts.INSTALL}; {behind}"
            return InputError(parts.LACKS_OPERATORS, where=_where([failure], module), fix=fix)
        return InputError(
            f"forward raises {type(failure).__name__}: {_first_line(words(failure))}",
            where=_where([failure], module),
            fix=dtypes.advice(module, specs)
            or of_lengths(failure)
            or _sizes_that_run(specs, eager)
            or f"check the input specs against forward; dimensions that must be equal need one name; {HOW}",
        )
    part = parts.advice(ran)
    if "data-dependent" in text.lower() or "DataDependent" in type(chain[-1]).__name__:
        return InputError(
            "the module's control flow depends on the values of its tensors, which a graph cannot follow",
            where=where,
            fix=f"write it with torch.where or torch.cond, or move it out of forward{part and f'; or {part}'}",
        )
    if "torch._C.Generator" in text or "Optional[Generator]" in text:
        return InputError(
            "forward draws random numbers from a generator of its own, which a graph cannot",
            where=where,
            fix="let forward take the random numbers as an input, or leave them out in eval mode",
        )
    return InputError(
        f"the module cannot be traced: {type(chain[-1]).__name__}: {_first_line(text)}",
        where=where,
        fix="--verbose shows what torch says",
    )


def _sizes_that_run(specs: Sequence[TensorSpec], eager: Eager) -> str:
    """Return how to ask for multiples, if forward runs on those; empty if it does not."""

    def runs(sizes: Mapping[str, int]) -> bool:
        try:
            eager(sizes)
        except Exception:
            return False
        return True

    dims = multiples_that_run(specs, runs)
    return f"forward runs on multiples: {spelled(specs, dims)}" if dims else ""


_DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
_TRAINING = {  # operator → what it does in training, and which argument says that it is
    torch.ops.aten.batch_norm.default: ("batch statistics", 5),
    **{getattr(torch.ops.aten, name).default: ("chance", 2) for name in _DROPOUTS},
}


def require_inference(program: ExportedProgram, module: nn.Module) -> None:
    """Raise InputError where forward normalizes or drops as in training: torch would export it as inference."""
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            what, argument = _TRAINING.get(node.target, ("", 0))
            # Without running statistics a batch norm knows no other mode, and is exported as it is.
            if what and node.args[argument] is True and (what == "chance" or node.args[3] is not None):
                raise InputError(
                    f"the module's output depends on {what}, as in training",
                    where=blame.module_label(_module_of(node), module),
                    fix="let forward leave the module in eval mode",
                )


def place_of(node: torch.fx.Node, module: nn.Module) -> str:
    """Return the part of ``module`` that ``node`` was traced in, and the line of the user's own code."""
    return blame.module_label(_module_of(node), module) + _line_of(node)


def _module_of(node: torch.fx.Node) -> str:
    """The dotted name of the innermost module that ``node`` was traced in."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]).partition(".")[2].split("@")[0] if stack else ""


def _line_of(node: torch.fx.Node) -> str:
    """Return the innermost line of the user's own code that ``node`` was traced from; empty where none is known."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [(path, line) for path, line in frames if blame.is_users(Path(path))]
    return f", {Path(own[-1][0]).name} line {own[-1][1]}" if own else ""


def _without_parametrization(chain: list[BaseException], module: nn.Module) -> str:
    """Return how to do without what computes a weight of weights, where it is that which was being translated."""
    for node in _locals(chain, "node", torch.fx.Node):
        owner, found, rest = f".{_module_of(node)}".partition(".parametrizations.")
        layer, name = owner[1:], rest.partition(".")[0]
        if found and parametrize.is_parametrized(module.get_submodule(layer), name):
            return (
                "store the weight that it computes: load the checkpoint, call torch.nn.utils.parametrize."
                f"remove_parametrizations(module.get_submodule({layer!r}), {name!r}), save the state_dict(), and let "
                "the factory make that layer without the parametrization"
            )
    return ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, the first cause last."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _operator(chain: list[BaseException]) -> str:
    """The torch operator that has no translation or whose translation failed; empty where it was not that."""
    for cause in chain:
        match = _UNTRANSLATED.search(str(cause))
        if match:
            return match[1]
    if any(type(cause).__name__ == "GraphConstructionError" for cause in chain):
        return next((str(node.target) for node in _locals(chain, "node", torch.fx.Node)), "")
    return ""


def _where(chain: list[BaseException], module: nn.Module) -> str:
    """The module that was being traced or translated, and the line of its code, as far as that is known."""
    for node in _locals(chain, "node", torch.fx.Node):
        if node.meta.get("nn_module_stack"):
            return place_of(node, module)
    for cause in reversed(chain):
        frames = reversed(list(traceback.walk_tb(cause.__traceback__)))
        told = blame.place(frames, module)
        if told != blame.module_label("", module):
            return told
    return blame.module_label("", module)


def _locals(chain: list[BaseException], name: str, kind: type) -> Iterator[torch.fx.Node]:
    """Local variables of the frames that the errors passed, innermost first: torch's messages name no module."""
    for cause in reversed(chain):
        for frame, _ in reversed(list(traceback.walk_tb(cause.__traceback__))):
            if isinstance(frame.f_locals.get(name), kind):
                yield frame.f_locals[name]


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
