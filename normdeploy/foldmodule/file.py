"""A folded module as a safetensors file: its state dict, and what makes its architecture the folded one."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from normdeploy.arguments import checked
from normdeploy.disk import disk_errors, room
from normdeploy.disk.outputs import exists
from normdeploy.errors import InputError, listed
from normdeploy.foldmodule.module import Folded
from normdeploy.foldmodule.recipe import Recipe
from normdeploy.foldmodule.working import working_copy

METADATA_KEY = "normdeploy.fold_module"
_SHOWN = 5


def write_folded(folded: Folded, path: Path, *, force: bool) -> None:
    """Write the state dict of a ``folded`` module, and its recipe, to the file ``path``, whole or not at all.

    Raises InputError where it is there and ``force`` is not given, or cannot be written.
    """
    with disk_errors(path, "the folded weights"), room(path) as place:
        tensors = {**folded.recipe.tensors, **folded.module.state_dict()}
        save_file(_apart(tensors), place.new, {METADATA_KEY: folded.recipe.to_json()})
        try:
            place.settle(path, replace=force)
        except FileExistsError as error:
            raise exists(path, "--to-torch") from error


def told(folded: Folded) -> str:
    """Return how many norms went into the weights of ``folded``, and which did not."""
    norms = folded.ledger.norms()
    left = [entry.module or entry.node for entry in norms if entry.outcome == "left"]
    text = f"{len(norms) - len(left)} of {len(norms)} norms went into its weights, in whole or in part"
    return f"{text}; left: {listed(left, _SHOWN)}" if left else text


@checked()
def load_folded(module: nn.Module, path: str | Path) -> nn.Module:
    """Return a copy of ``module``, of the architecture that was folded, as the folded module that ``path`` holds.

    Args:
        module: as the factory makes it; its own weights do not matter.
        path: what ``normdeploy export --to-torch`` wrote.

    Raises InputError where the file is none of these, or of another architecture.
    """
    work, _ = working_copy(module)
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY, "")
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # it is no dictionary
        recipe = Recipe.from_json(text, tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        fix = "give a file that normdeploy export --to-torch wrote"
        raise InputError("the file holds no folded module", where=str(path), fix=fix) from error
    try:
        folded = recipe.applied(work)
        folded.load_state_dict({name: tensors[name] for name in folded.state_dict()}, strict=True)
    except (AttributeError, KeyError, RuntimeError) as error:
        fix = "build the module as for the export that wrote the file"
        raise InputError(f"the file is of another architecture: {error}", where=str(path), fix=fix) from error
    return folded


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``tensors``, each in memory of its own, as the format asks for."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        found[name] = tensor.detach().clone().contiguous() if memory in seen else tensor.detach().contiguous()
        seen.add(memory)
    return found
