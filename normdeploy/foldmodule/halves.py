"""Which of some things can be done together: tried by halves, until what cannot be is told apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from normdeploy.errors import NormdeployError


def refused(names: Sequence[str], try_out: Callable[[Sequence[str]], object]) -> dict[str, NormdeployError]:
    """Return those of ``names`` that cannot be done beside the others, each with the error that says why.

    ``try_out`` does what it is given at once, or raises NormdeployError. One of n that fails takes about 2 log2(n)
    trials.
    """
    done: list[str] = []
    errors: dict[str, NormdeployError] = {}

    def visit(some: Sequence[str]) -> None:
        try:
            try_out([*done, *some])
        except NormdeployError as error:
            if len(some) == 1:
                errors[some[0]] = error
                return
            middle = len(some) // 2
            visit(some[:middle])
            visit(some[middle:])
        else:
            done.extend(some)

    if names:
        visit(names)
    return errors
