"""Folders of PyTorch modules on the same modules: who folds, who refuses, who is wrong, by float64.

torch.fx's ``fuse`` and torch.ao's ``fuse_modules`` take a convolution or linear layer and the BatchNorm behind it. The
second is told which: as a user would, the layers that stand one behind the other in their parent.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import normdeploy
from normdeploy.doctor.inventory import norms
from normdeploy.errors import InputError

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tests" / "foldmodule"))
from module_cases import CASES, ModuleCase  # type: ignore[import-not-found]  # mypy does not look into the tests

Outcome = Literal["folded", "in part", "refused", "wrong", "crashed"]
OUTCOMES: tuple[Outcome, ...] = ("folded", "in part", "refused", "wrong", "crashed")
TOLERANCE = 1e-4
"""Largest error over the largest output, in float64, with weights that were rounded to float32."""
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


def by_fx(module: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    from torch.fx.experimental.optimization import fuse

    del inputs
    return fuse(module)


def by_ao(module: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    from torch.ao.quantization import fuse_modules

    del inputs
    pairs = list(_pairs(module))
    fused: nn.Module = fuse_modules(module, pairs) if pairs else module  # type: ignore[no-untyped-call]  # has no types
    return fused


def by_normdeploy(module: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    return normdeploy.fold_module(module, inputs)[0]


FOLDERS: dict[str, Callable[[nn.Module, tuple[Tensor, ...]], nn.Module]] = {
    "normdeploy.fold_module": by_normdeploy,
    "torch.fx fuse": by_fx,
    "torch.ao fuse_modules": by_ao,
}


def _pairs(module: nn.Module) -> Iterator[list[str]]:
    for path, parent in module.named_modules():
        children = list(parent.named_children())
        for (first, layer), (second, norm) in itertools.pairwise(children):
            if isinstance(layer, _LAYERS) and isinstance(norm, nn.modules.batchnorm._BatchNorm):
                yield [f"{path}.{name}".lstrip(".") for name in (first, second)]


def outcome(case: ModuleCase, name: str) -> Outcome:
    """Return what the folder ``name`` makes of ``case``."""
    module, inputs = case.module(), case.inputs()
    truth = _run(case.module(), inputs)  # seeded; a copy of a module with weight_norm cannot be made
    before = _work(module)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            folded = FOLDERS[name](case.module(), inputs)
        after = _work(folded)
        actual = _run(folded, inputs)
    except InputError:
        return "refused"
    except Exception:
        return "crashed"
    if actual.shape != truth.shape or not float((actual - truth).abs().max()) <= TOLERANCE * float(truth.abs().max()):
        return "wrong"
    if after >= before:
        return "refused"
    return "folded" if before - after >= case.gone else "in part"


def _work(module: nn.Module) -> int:
    """Return how many norms still scale and shift, each by whatever name it is reached."""
    parts = dict(module.named_modules(remove_duplicate=False))
    found = {norm.name for norm in norms(module)}
    same = [name for name, part in parts.items() if any(part is parts[norm] for norm in found)]
    return sum(not _is_neutral(parts[name]) for name in same)


def _is_neutral(norm: Any) -> bool:
    """Return True for a norm without scale and bias, or whose statistics, scale and bias change nothing."""
    if getattr(norm, "running_mean", None) is None:
        weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
        return (weight is None or bool((weight == 1).all())) and (bias is None or not bool(bias.any()))
    return getattr(norm, "eps", None) == 0 and not bool(norm.running_mean.any()) and bool((norm.running_var == 1).all())


@torch.no_grad()
def _run(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    output: Tensor = module.double()(*(tensor.double() for tensor in inputs))
    return output


def measure(note: Callable[[str], None]) -> dict[str, Any]:
    """Return what each folder makes of each module, and the table of it."""
    found: dict[str, dict[str, Outcome]] = {}
    for name in FOLDERS:
        note(f"the modules: {name}")
        found[name] = {case.name: outcome(case, name) for case in CASES}
    return {"modules": len(CASES), "raw": found, "table": _table(found), "faults": _faults(found)}


def _table(found: dict[str, dict[str, Outcome]]) -> str:
    rows = ["| | " + " | ".join(OUTCOMES) + " |", "|---|" + "--:|" * len(OUTCOMES)]
    for name, outcomes in found.items():
        counts = Counter(outcomes.values())
        rows.append(f"| {name} | " + " | ".join(str(counts[each]) for each in OUTCOMES) + " |")
    return "\n".join(rows)


def _faults(found: dict[str, dict[str, Outcome]]) -> str:
    rows = [
        f"- {name}, {each}: {case}"
        for name, outcomes in found.items()
        for case, each in outcomes.items()
        if each in ("wrong", "crashed")
    ]
    return "\n".join(rows) or "None."
