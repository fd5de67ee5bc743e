"""Which LayerNorm is the faster one: TensorRT's own or the plugin, as it was measured on a GPU.

``normdeploy bench --layernorm`` measures both by GPU, operator, type, features and rows. The package ships what was
measured for it, ``layernorm_times.json``, which is nothing so far; a user's own file comes before it. Native it is,
unless every measurement of a class says that the plugin is faster, beyond their spread.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from normdeploy.disk import disk_errors, read_plain, write_file
from normdeploy.errors import InputError

SHIPPED = "layernorm_times.json"
_MOST = 1 << 22
"""Bytes that such a file may have."""

Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=1 << 40)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Spread(_Strict):
    """Milliseconds of a run: the least, the median and the most of several."""

    least: Milliseconds
    median: Milliseconds
    most: Milliseconds

    @model_validator(mode="after")
    def _ordered(self) -> Spread:
        if not self.least <= self.median <= self.most:
            raise ValueError("least, median and most are not in order")
        return self


class Times(_Strict):
    """One norm, measured.

    Attributes:
        operator: the plugin's name.
        dtype: the type of x, as NumPy calls it.
        features: N.
        rows: how many rows a run has.
        native, plugin: how long it takes in an engine of TensorRT's own norm, and of the plugin.
    """

    operator: Literal["LayerNorm", "RMSNorm", "AddLayerNorm", "LayerNormQuantize"]
    dtype: Literal["float32", "float16", "bfloat16"]
    features: Count
    rows: Count
    native: Spread
    plugin: Spread


class Records(_Strict):
    """What was measured, by the name of the GPU."""

    schema_version: Literal[1] = 1
    gpus: dict[Annotated[str, Field(min_length=1, max_length=200)], list[Times]]

    def to_json(self) -> str:
        """Return strict JSON with a last newline."""
        return self.model_dump_json(indent=1) + "\n"


def features_class(features: int) -> int:
    """Return the power of 2 that ``features`` is up to: what is measured at one stands for those down to the next."""
    return 1 << (features - 1).bit_length()


def is_faster(times: Iterable[Times], operator: str, dtype: str, features: int) -> bool:
    """Return True where ``times``, of one GPU, have this class and the plugin is faster in all, spread included."""
    key = (operator, dtype, features_class(features))
    found = [each for each in times if (each.operator, each.dtype, features_class(each.features)) == key]
    return bool(found) and all(each.plugin.most < each.native.least for each in found)


def times_for(gpu: str) -> Sequence[Times]:
    """Return what is recorded of ``gpu``: by the user, else by the package.

    Raises:
        InputError: the user's file is none that this normdeploy reads.
    """
    return _read_user().gpus.get(gpu) or shipped().gpus.get(gpu, [])


def shipped() -> Records:
    """Return what the package has."""
    return Records.model_validate_json(files(__package__).joinpath(SHIPPED).read_bytes())


def user_file() -> Path:
    """Return where the user's own measurements lie: normdeploy/layernorm.json in ``XDG_CONFIG_HOME`` or ~/.config."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    folder = Path(home) if os.path.isabs(home) else Path.home() / ".config"
    return folder / "normdeploy" / "layernorm.json"


def record(gpu: str, times: Sequence[Times]) -> Path:
    """Write ``times`` of ``gpu`` to the user's file, in place of older ones of it; return the file."""
    path = user_file()
    records = Records(gpus=_read_user().gpus | {gpu: list(times)})
    with disk_errors(path, "the measurements"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, records.to_json().encode(), replace=True)
    return path


def _read_user() -> Records:
    path = user_file()
    if not path.exists():
        return Records(gpus={})
    try:
        return Records.model_validate_json(read_plain(path.parent, path.name, _MOST))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"these are no measurements of LayerNorms: {ascii(where)[1:-1]} {first['msg']}".replace("  ", " "),
            where=str(path),
            fix="remove the file, and measure again with normdeploy bench --layernorm",
        ) from None
