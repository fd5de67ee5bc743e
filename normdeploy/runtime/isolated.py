"""ONNX Runtime in a process of its own: what crashes there is a message here, and leaves nothing behind.

The process is asked by lines of JSON on its standard input; arrays go through files in a folder that both know.
A model from elsewhere may ask for any time and memory: an answer is waited for as long as a model of its size may take,
and the process gets no more memory than the machine has to spare.
"""

from __future__ import annotations

import json
import os
import select
import signal
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import ml_dtypes
import numpy as np

from normdeploy import child, errors
from normdeploy.disk import new_scratch, uninterrupted
from normdeploy.errors import InputError, VerdictError
from normdeploy.runtime.onnxruntime import require_installed
from normdeploy.runtime.placement import CPU, Placement
from normdeploy.runtime.runner import check_names

_TAIL = 2
PATIENCE = "NORMDEPLOY_SECONDS"
"""The environment variable that says how many seconds an answer may take."""
_LEAST, _A_SECOND = 120.0, 8 << 20
"""The seconds that any model may take, and the bytes of one that may take a second more."""


class CrashError(VerdictError):
    """The runtime's process died; ``signal`` names how."""

    def __init__(self, what: str, *, where: str, fix: str, how: str) -> None:
        self.signal = how
        super().__init__(what, where=where, fix=fix)


class PatienceError(InputError):
    """The runtime's process did not answer in time, and was ended."""


class Worker:
    """A process for one model, which gets ready while others go on; it ends with this object.

    Raises UnavailableError where ONNX Runtime is missing.
    """

    def __init__(self) -> None:
        require_installed()
        with uninterrupted():  # until it is known that the process and its folder have to go
            self.folder, remove = new_scratch()
            with (self.folder / "stderr.txt").open("w") as stderr:
                self.process = child.start(
                    "normdeploy.runtime.session_worker", folder=self.folder, stderr=stderr, stdin=child.PIPE
                )
            self.close = weakref.finalize(self, _end, self.process, remove)


class IsolatedRunner:
    """An ``.onnx`` file in ONNX Runtime, in a process of its own; the arguments are those of OnnxRuntimeRunner.

    ``worker`` is a process that was started before, for this one alone. The process ends with this object. Raises
    CrashError where it dies, PatienceError where it does not answer in time, and what it raised itself.
    """

    def __init__(
        self,
        model: Path,
        *,
        threads: int = 0,
        placement: Placement = CPU,
        options: Mapping[str, str | int | bool] | None = None,
        where: str = "",
        worker: Worker | None = None,
    ) -> None:
        self.name, self.placement = "onnxruntime", placement
        self._worker = Worker() if worker is None else worker
        self._folder, self._process = self._worker.folder, self._worker.process
        self._where, self.path, self._seconds = where or str(model), model, patience(model)
        opened = self._ask(
            open=str(model.resolve()), threads=threads, placement=placement.as_json(), options=dict(options or {}),
            where=where,
        )  # fmt: skip
        self.notes = tuple(opened["notes"])
        self.inputs, self.outputs = tuple(opened["inputs"]), tuple(opened["outputs"])

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once."""
        check_names(feeds, self.inputs, self.name)
        _save(self._folder / "in", [feeds[name] for name in self.inputs])
        answer = self._ask(run=len(self.inputs))
        return dict(zip(self.outputs, _load(self._folder / "out", answer["dtypes"]), strict=True))

    def close(self) -> None:
        """End the process."""
        self._worker.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        """Return the answer to ``request``. Raises what was raised there, CrashError where the process died."""
        doing = "opens the model" if "open" in request else "runs the model"
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the process was started without pipes")
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = self._line(stdout, doing)
        except BrokenPipeError:
            line = ""
        except BaseException:
            self.close()  # an interrupt: whatever it does now, nobody waits for it
            raise
        if not line:
            self._died(doing)
        answer: dict[str, Any] = json.loads(line)
        if error := answer.get("error"):
            kind, what, where, fix = error
            raise getattr(errors, kind)(what, where=where, fix=fix)
        return answer

    def _line(self, stdout: IO[str], doing: str) -> str:
        if select.select([stdout], [], [], self._seconds)[0]:
            return stdout.readline()  # an answer is written at once
        raise PatienceError(
            f"onnxruntime has no answer after {self._seconds:g} s where it {doing}",
            where=self._where,
            fix=f"if the model is meant to take that long, set {PATIENCE} to the seconds that it may",
        )

    def _died(self, doing: str) -> NoReturn:
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        said = (self._folder / "stderr.txt").read_text(errors="replace").splitlines()
        self.close()
        fix = "report it to onnxruntime; another version of it, another opset or another precision may not crash"
        if how == "SIGKILL" or any("bad_alloc" in line for line in said):
            fix = "it may be for want of memory: ask for smaller inputs, or use a machine that has more"
        raise CrashError(
            f"onnxruntime crashes ({how}) where it {doing}",
            where=" | ".join([self._where, *said[-_TAIL:]]),
            fix=fix,
            how=how,
        )


def patience(model: Path) -> float:
    """Return how many seconds an answer of ``model`` may take: more for a larger one, or what ``PATIENCE`` says."""
    given = os.environ.get(PATIENCE)
    if given is None:
        beside = model.parent.glob(f"{model.name}*")  # its weights too
        return round(_LEAST + sum(path.stat().st_size for path in beside) / _A_SECOND)
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InputError("this is no number of seconds", where=f"{PATIENCE}={given}", fix="give one above 0, or none")
    return seconds


def _end(process: child.Process, remove: Callable[[], None]) -> None:
    with uninterrupted():
        child.end(process)
        remove()


def _save(folder: Path, arrays: Sequence[np.ndarray]) -> list[str]:
    """Write ``arrays`` by their places, and return their dtypes: NumPy writes bfloat16 as bytes of no type."""
    folder.mkdir(exist_ok=True)
    for index, array in enumerate(arrays):
        bits = array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array
        np.save(folder / f"{index}.npy", bits, allow_pickle=False)
    dtypes = [array.dtype.name for array in arrays]
    (folder / "dtypes.json").write_text(json.dumps(dtypes))
    return dtypes


def _load(folder: Path, dtypes: Sequence[str]) -> list[np.ndarray]:
    found = [np.load(folder / f"{index}.npy", allow_pickle=False) for index in range(len(dtypes))]
    return [
        array.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else array
        for array, dtype in zip(found, dtypes, strict=True)
    ]
