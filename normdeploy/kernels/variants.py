"""What one compiled kernel computes, and how it deals rows to threads.

A row of ``features`` elements is moved in vectors of 16 bytes. Which threads hold it depends on its length:

    up to 128 vectors             a warp or less holds a row, several rows a block
    up to 16,384 elements         one block holds a row, in registers
    up to 131,072, from sm_90 on  a cluster of blocks does, and joins its sums in distributed shared memory
    up to 262,144, there          the same, a quarter of the row in shared memory; float32 from sm_100 on is streamed
    more                          one block streams a row, and reads it twice

A thread of a block of 1024 has 64 registers. It holds 16 elements in them, or 24, and 8 in shared memory, where the
compiler was seen not to spill. Of rows that begin between two vectors the longest few do not fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from normdeploy.errors import InputError

DType = Literal["float32", "float16", "bfloat16"]
WeightType = Literal["none", "float32", "storage"]
OutputType = Literal["storage", "int8", "float8_e4m3fn"]

LARGEST = 262_144
"""The most features of a row."""

_SIZES: dict[DType, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
_WARP_VECTORS = 128  # up to which a warp holds a row: four vectors a lane
_ROWS_THREADS = 256  # of a block of several rows
_MOST_THREADS = 1024  # of a block
_HELD_ELEMENTS = 16  # of a row, by each of so many threads; twice as many where a row fits in no other way
_MOST_BLOCKS = 8  # of a cluster that every GPU with clusters can launch


@dataclass(frozen=True)
class Norm:
    """A normalization over the last axis, of ``features`` elements.

    Attributes:
        features: N, from 1 to 262,144.
        eps: what is added to the variance (LayerNorm) or to the mean square (RMSNorm).
        dtype: what x, the residual, the sum and y are stored in. Statistics are float32.
        centre: True for LayerNorm, False for RMSNorm.
        residual: whether a second input is added to x first; the sum is rounded to ``dtype`` before the statistics.
        keep_sum: whether that sum is a second output.
        gamma: the type of the factor of each feature; ``storage`` is ``dtype``.
        beta: the type of what is added to each feature; where both are there, it is that of ``gamma``.
        uniform: whether gamma and beta have one element each, which stands for all features.
        output: ``storage``, or a quantized type with one float32 scale a tensor (ONNX QuantizeLinear, zero point 0).

    Raises:
        InputError: a value is out of its range, or two do not go together.
    """

    features: int
    eps: float = 1e-5
    dtype: DType = "float32"
    centre: bool = True
    residual: bool = False
    keep_sum: bool = False
    gamma: WeightType = "float32"
    beta: WeightType = "float32"
    uniform: bool = False
    output: OutputType = "storage"

    def __post_init__(self) -> None:
        _require(1 <= self.features <= LARGEST, f"a row has 1 to {LARGEST:,} features, not {self.features:,}")
        _require(math.isfinite(self.eps) and self.eps >= 0, f"eps is a number from 0 on, not {self.eps}")
        _require(self.dtype in get_args(DType), f"{self.dtype!r} is none of {', '.join(get_args(DType))}")
        for given in (self.gamma, self.beta):
            _require(given in get_args(WeightType), f"{given!r} is none of {', '.join(get_args(WeightType))}")
        _require(self.output in get_args(OutputType), f"{self.output!r} is none of {', '.join(get_args(OutputType))}")
        _require(self.residual or not self.keep_sum, "there is a sum to keep only where a residual is added")
        both = self.gamma != "none" and self.beta != "none"
        _require(self.gamma != "none" or self.beta != "none" or not self.uniform, "there is no gamma to be uniform")
        _require(not both or self.gamma == self.beta, "gamma and beta have one type")

    @property
    def bytes_a_row(self) -> int:
        """Return the bytes of activations that a row must move at least: each read and each written once."""
        size = _SIZES[self.dtype]
        written = size if self.output == "storage" else 1
        return self.features * (size * (1 + self.residual + self.keep_sum) + written)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Return the kernel's parameters in order: inputs, int32 arguments, outputs, which is TensorRT's order."""
        there = {
            "x": True,
            "residual": self.residual,
            "gamma": self.gamma != "none",
            "beta": self.beta != "none",
            "scale": self.output != "storage",
            "rows": True,
            "y": True,
            "sum": self.keep_sum,
        }
        return tuple(name for name, is_there in there.items() if is_there)


@dataclass(frozen=True)
class Variant:
    """A norm, and how its rows are dealt to threads.

    Attributes:
        norm: what is computed.
        lanes: threads of a block that share a row: a power of 2 up to 32, or a multiple of 32.
        rows: rows of a block; more than 1 only where ``lanes`` is 32 at most.
        cluster: blocks that share a row.
        vectors: 16-byte vectors of a row that a thread holds; 0 where rows are streamed.
        parked: how many of them lie in shared memory, the others in registers.
    """

    norm: Norm
    lanes: int
    rows: int
    cluster: int
    vectors: int
    parked: int = 0

    @property
    def threads(self) -> int:
        """Return the threads of a block."""
        return self.lanes * self.rows

    def blocks(self, rows: int) -> int:
        """Return the number of blocks for ``rows`` rows."""
        return -(-rows // self.rows) * self.cluster

    def macros(self) -> dict[str, str]:
        """Return the macros that ``layernorm.cu`` is compiled with."""
        norm = self.norm
        numbers = {
            "N": norm.features,
            "BITS": 1 + get_args(DType).index(norm.dtype),
            "CENTRE": int(norm.centre),
            "RESIDUAL": int(norm.residual),
            "SUM": int(norm.keep_sum),
            "GAMMA": get_args(WeightType).index(norm.gamma),
            "BETA": get_args(WeightType).index(norm.beta),
            "UNIFORM": int(norm.uniform),
            "OUT": get_args(OutputType).index(norm.output),
            "LANES": self.lanes,
            "ROWS": self.rows,
            "CLUSTER": self.cluster,
            "VECTORS": self.vectors,
            "PARKED": self.parked,
        }
        return {name: str(number) for name, number in numbers.items()} | {"EPS": repr(norm.eps)}


def vectors_of(norm: Norm) -> int:
    """Return how many 16-byte vectors a row touches at most; rows of odd length begin between two."""
    size = 16 // _SIZES[norm.dtype]
    return norm.features // size if norm.features % size == 0 else (norm.features + 2 * size - 2) // size


def variant(norm: Norm, sm: int) -> Variant:
    """Return how the rows of ``norm`` are dealt to threads on a GPU of compute capability ``sm`` (such as 90)."""
    vectors = vectors_of(norm)
    if vectors <= _WARP_VECTORS:
        lanes = min(32, 1 << (vectors - 1).bit_length())
        return Variant(norm, lanes, _ROWS_THREADS // lanes, 1, -(-vectors // lanes))
    most = _HELD_ELEMENTS * _SIZES[norm.dtype] // 16
    blocks = 1 << (-(-vectors // (most * _MOST_THREADS)) - 1).bit_length()
    if blocks > (_MOST_BLOCKS if sm >= 90 else 1):
        each, held = -(-vectors // _MOST_BLOCKS), 2 * most
        if sm < 90 or (sm >= 100 and norm.dtype == "float32") or each > held * _MOST_THREADS:
            return Variant(norm, _MOST_THREADS, 1, 1, 0)
        return Variant(norm, _warps(-(-each // held)), 1, _MOST_BLOCKS, held, most // 2)
    each = -(-vectors // blocks)
    held = next(held for held in (1, 2, 4) if each <= 512 * held or held == most)
    return Variant(norm, _warps(-(-each // held)), 1, blocks, held)


def tiles(norm: Norm, sm: int) -> tuple[Variant, ...]:
    """Return the paths that may be the fastest for ``norm`` on a GPU of ``sm``, the likeliest first.

    Beside that of :func:`variant`, where a block holds a row, one with half its threads, each of which holds twice as
    much; where that needs more registers than there are it is left out.
    """
    first = variant(norm, sm)
    most = _HELD_ELEMENTS * _SIZES[norm.dtype] // 16
    if first.rows > 1 or not first.vectors or 2 * first.vectors > most or first.lanes % 64:
        return (first,)
    return first, replace(first, lanes=first.lanes // 2, vectors=2 * first.vectors)


def _warps(threads: int) -> int:
    return -(-threads // 32) * 32


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise InputError(what, where="the norm's kernel")
