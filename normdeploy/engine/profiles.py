"""Optimization profiles: the shapes an engine takes, from the input specs; which profile covers what is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from normdeploy.errors import InputError
from normdeploy.specs import TensorSpec, sizes_at

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """The shapes that one input takes in one profile, axis by axis from ``min`` to ``max``, tuned for ``opt``."""

    min: Shape
    opt: Shape
    max: Shape

    def covers(self, shape: Shape) -> bool:
        """Return True if an input of this shape can be run."""
        return len(shape) == len(self.min) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )

    def distance(self, shape: Shape) -> int:
        """Return how far ``shape`` is from the one that the profile was tuned for."""
        return sum(abs(size - usual) for size, usual in zip(shape, self.opt, strict=True))

    def __str__(self) -> str:
        axes = zip(self.min, self.opt, self.max, strict=True)
        return "x".join(str(low) if low == high else f"{low}..{opt}..{high}" for low, opt, high in axes) or "[]"


Profile = Mapping[str, Range]


def profile(specs: Sequence[TensorSpec]) -> dict[str, Range]:
    """Return input name → its range, where every dynamic dimension goes from its min by its opt to its max."""
    low, usual, high = (sizes_at(specs, point) for point in ("min", "opt", "max"))
    return {spec.name: Range(spec.shape(low), spec.shape(usual), spec.shape(high)) for spec in specs}


def covering(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int:
    """Return the index of the profile that covers ``shapes``, the one tuned closest to them; InputError where none
    does.
    """
    fitting = [
        index for index, each in enumerate(profiles) if all(each[name].covers(shape) for name, shape in shapes.items())
    ]
    if not fitting:
        given = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        taken = "; ".join(", ".join(f"{name} {span}" for name, span in each.items()) for each in profiles)
        raise InputError(
            f"no profile of the engine covers {given}",
            where=f"it takes {taken}",
            fix="give inputs inside these ranges, or build again with wider input specs",
        )
    return min(fitting, key=lambda index: sum(profiles[index][name].distance(shapes[name]) for name in shapes))
