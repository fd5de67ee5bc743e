"""A bundle that was checked and runs: its model as a function of named arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from normdeploy.bundle.binding import Binding, places
from normdeploy.bundle.golden import Golden
from normdeploy.bundle.inputs import Gate
from normdeploy.bundle.interface import Interface
from normdeploy.bundle.manifest import MODEL, PLAN, Manifest
from normdeploy.errors import InputError
from normdeploy.report.schema import Report
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.runtime.runner import Runner
from normdeploy.specs import TensorSpec


@dataclass(frozen=True)
class Bundle:
    """A checked bundle that runs: ``bundle({"x": array})`` or ``bundle(x=array)``.

    Attributes:
        folder: where it lies.
        specs: what each input must be.
        interface: inputs and outputs as ``io.json`` has them.
        golden: the feed and the outputs that it was checked with.
        runner: the model in ONNX Runtime, without the checks of the inputs.
        copy: the checked copy that it was loaded from, which lives as long as this object.
        gate: the checks of the inputs.
    """

    folder: Path
    manifest: Manifest
    report: Report = field(repr=False)
    specs: tuple[TensorSpec, ...]
    interface: Interface = field(repr=False)
    golden: Golden = field(repr=False)
    runner: Runner = field(repr=False)
    copy: Path = field(repr=False)
    gate: Gate = field(repr=False)

    @property
    def model_path(self) -> Path:
        """Return the ONNX model, as it was checked."""
        return self.copy / MODEL

    @property
    def plan_path(self) -> Path | None:
        """Return the TensorRT engine, as it was checked, for ``TensorRTRunner``; None where the bundle has none."""
        return None if self.report.engine is None else self.copy / PLAN

    def __call__(
        self, inputs: Mapping[str, npt.ArrayLike] | None = None, /, **named: npt.ArrayLike
    ) -> dict[str, npt.NDArray[Any]]:
        """Return output name → array. InputError where an input's name, dtype, shape or values do not fit the specs."""
        return self.runner(self.gate(self._told(inputs, named)))

    def bind(
        self,
        inputs: Mapping[str, npt.ArrayLike] | None = None,
        /,
        *,
        out: Mapping[str, npt.NDArray[Any]] | None = None,
        **named: npt.ArrayLike,
    ) -> Binding:
        """Return the model bound to memory: ``call = bundle.bind(x=x, out={"y": y})``, then ``call()`` for each run.

        Inputs that are contiguous arrays are used where they lie, others are copied once; write new values into
        ``call.inputs``. Outputs are written into ``out``, of the shapes and dtypes that the model gives for these
        inputs, or into new arrays, ``call.outputs``. It runs once to know these.

        Raises InputError where inputs or ``out`` do not fit, and for a bundle in a process of its own; an input that is
        called ``out`` is given by the mapping.
        """
        if not isinstance(self.runner, OnnxRuntimeRunner):
            what = "a bundle in a process of its own shares no memory"
            raise InputError(what, where=str(self.folder), fix="load it without isolated=True")
        feeds = self.gate(self._told(inputs, named))
        held = {name: np.require(array, requirements=("C", "A")) for name, array in feeds.items()}
        outputs = places(self.runner(held), out, held)
        return Binding(held, outputs, self.gate, self.runner.bound(held, outputs))

    def _told(self, inputs: Any, named: dict[str, Any]) -> Mapping[str, Any]:
        """Return what was given, as one mapping."""
        if type(inputs) is dict and not named:
            return inputs
        if not isinstance(inputs, Mapping | None):
            what, wanted = f"inputs are told by name, and a {type(inputs).__name__} has none", self.specs[0].name
            raise InputError(what, where="the inputs of the bundle", fix=f"give {{{wanted!r}: …}} or {wanted}=…")
        return {**inputs, **named} if inputs else named
