"""Stand-ins for what training scripts store beside the weights, so that their files can be read as data.

A script's arguments, paths, dates and configurations are no weights, but torch's reader refuses a file for one of them.
Here it meets classes of this module under their names: they take what the file says and do nothing with it, so that
nothing of a file runs. Arrays of NumPy alone are kept, as tensors of the same bytes.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals


class LeftOut:
    """Something that is not made."""

    def __new__(cls, *_: Any) -> Any:
        """Return an empty one, whatever it should be made of."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Forget what it should hold."""


class _Mapping(LeftOut):
    def __new__(cls, *_: Any) -> Any:
        return OrderedDict[Any, Any]()


class _Sequence(LeftOut):
    def __new__(cls, *_: Any) -> Any:
        return []


class _Dtype(LeftOut):
    """A dtype of NumPy: its kind and bytes, as in ``f4``, then its byte order."""

    code, order = "", "="

    def __new__(cls, *arguments: Any) -> Any:
        made = super().__new__(cls)
        made.code = str(arguments[0]) if arguments else ""
        return made

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


class Array(LeftOut):
    """An array of NumPy, in the words of its pickle."""

    _state: Any = None
    _made: torch.Tensor | None = None

    def __setstate__(self, state: Any) -> None:
        """Keep version, shape, dtype, whether it is in Fortran's order, and the bytes."""
        self._state = state

    def tensor(self) -> torch.Tensor | None:
        """Return it as a tensor, the same at each call; None where it holds no numbers.

        Raises ValueError or TypeError where it is damaged.
        """
        if self._made is None and self._state is not None:
            _, shape, dtype, fortran, data = self._state
            if not (isinstance(dtype, _Dtype) and re.fullmatch("b1|[iu][1248]|f[248]|c8|c16", dtype.code)):
                return None
            if not (isinstance(data, bytes) and dtype.order in ("<", ">", "|", "=")):
                return None
            flat = np.frombuffer(data, np.dtype(dtype.order + dtype.code))
            array = flat.reshape(shape, order="F" if fortran else "C")
            self._made = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=True))
        return self._made


_MAPPINGS = (
    "builtins.dict collections.defaultdict easydict.EasyDict addict.addict.Dict yacs.config.CfgNode "
    "fvcore.common.config.CfgNode detectron2.config.config.CfgNode mmengine.config.config.ConfigDict "
    "mmcv.utils.config.ConfigDict munch.Munch box.box.Box pytorch_lightning.utilities.parsing.AttributeDict "
    "lightning.pytorch.utilities.parsing.AttributeDict lightning_fabric.utilities.data.AttributeDict "
    "lightning.fabric.utilities.data.AttributeDict"
)
_SEQUENCES = "builtins.list collections.deque"
_OBJECTS = (
    "argparse.Namespace types.SimpleNamespace typing.Any uuid.UUID enum.Enum decimal.Decimal fractions.Fraction "
    "builtins.int builtins.float builtins.bool builtins.str builtins.tuple builtins.object builtins.slice "
    "builtins.getattr "  # how a method of one of these is stored, as in mmengine's message hub
    "pathlib.Path pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath pathlib.PureWindowsPath "
    "pathlib._local.PosixPath pathlib._local.WindowsPath "
    "datetime.datetime datetime.date datetime.time datetime.timedelta datetime.timezone "
    "omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.base.ContainerMetadata "
    "omegaconf.base.Metadata omegaconf.nodes.AnyNode omegaconf.nodes.StringNode omegaconf.nodes.IntegerNode "
    "omegaconf.nodes.FloatNode omegaconf.nodes.BooleanNode omegaconf.nodes.EnumNode omegaconf.nodes.PathNode "
    "mmengine.logging.history_buffer.HistoryBuffer mmengine.config.config.Config mmcv.utils.config.Config "
    "transformers.training_args.TrainingArguments transformers.trainer_utils.IntervalStrategy "
    "transformers.trainer_utils.SaveStrategy transformers.trainer_utils.SchedulerType "
    "transformers.trainer_utils.HubStrategy transformers.training_args.OptimizerNames "
    "numpy.ndarray numpy.core.multiarray.scalar numpy._core.multiarray.scalar"
)
_ARRAYS = "numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct"

STAND_INS: dict[str, type[LeftOut]] = {
    **dict.fromkeys(_MAPPINGS.split(), _Mapping),
    **dict.fromkeys(_SEQUENCES.split(), _Sequence),
    **dict.fromkeys(_OBJECTS.split(), LeftOut),
    **dict.fromkeys(_ARRAYS.split(), Array),
    "numpy.dtype": _Dtype,
}
"""What is stored beside weights, by full name → what is made instead."""


@contextmanager
def allowing(made: Mapping[str, type[LeftOut]]) -> Iterator[None]:
    """Let torch's reader of data alone take what is ``made`` for these names, and nothing that libraries allow it."""
    before = get_safe_globals()
    clear_safe_globals()
    add_safe_globals([(kind, name) for name, kind in made.items()])
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)
