"""Every normalization layer of a module, by name, with the facts that decide how it may be deployed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

# Public base classes would not do: SyncBatchNorm and the lazy norms are not BatchNorm2d's children.
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class NormInfo:
    """One normalization layer.

    Attributes:
        name: dotted module name; ``""`` where the module is itself a norm.
        kind: class name.
        training: whether it is in training mode.
        batch_statistics: a batch norm without running statistics: even in eval it normalizes over its batch.
        running: whether it keeps running statistics.
        affine: whether it scales or shifts (a weight or a bias).
        eps: added to the variance; None where the layer names none (RMSNorm's default is its input dtype's epsilon).
    """

    name: str
    kind: str
    training: bool
    batch_statistics: bool
    running: bool
    affine: bool
    eps: float | None


def norms(module: nn.Module) -> tuple[NormInfo, ...]:
    """Return all norms in ``module`` in the order of its ``named_modules``, each once, under its first name.

    A norm is a layer of torch.nn (or a subclass), or any module that keeps a ``running_mean`` and a ``running_var``,
    such as a FrozenBatchNorm2d.
    """
    return tuple(_info(name, part) for name, part in module.named_modules() if _is_norm(part))


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _NORMS) or (hasattr(module, "running_mean") and hasattr(module, "running_var"))


def _info(name: str, norm: nn.Module) -> NormInfo:
    running = _tensor(norm, "running_mean") or _tensor(norm, "running_var")
    eps = getattr(norm, "eps", None)
    return NormInfo(
        name=name,
        kind=type(norm).__name__,
        training=norm.training,
        batch_statistics=isinstance(norm, nn.modules.batchnorm._BatchNorm) and not running,
        running=running,
        affine=_tensor(norm, "weight") or _tensor(norm, "bias"),
        eps=float(eps) if isinstance(eps, int | float) else None,
    )


def _tensor(norm: nn.Module, attribute: str) -> bool:
    return isinstance(getattr(norm, attribute, None), Tensor)
