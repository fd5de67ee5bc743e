"""ONNX Runtime in a process of its own: what crashes there is a message here, and leaves nothing behind.

The process is asked by lines of JSON on its standard input; arrays go through files in a folder that both know.
"""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from normdeploy import child, errors
from normdeploy.errors import VerdictError
from normdeploy.runtime.onnxruntime import require_installed
from normdeploy.runtime.runner import check_names

_TAIL = 2


class CrashError(VerdictError):
    """The runtime's process died; ``signal`` names how."""

    def __init__(self, what: str, *, where: str, fix: str, how: str) -> None:
        self.signal = how
        super().__init__(what, where=where, fix=fix)


class IsolatedRunner:
    """An ``.onnx`` file in ONNX Runtime, in a process of its own; the arguments are those of OnnxRuntimeRunner.

    The process ends with this object. Raises CrashError where it dies, and what it raised itself.
    """

    def __init__(
        self,
        model: Path,
        *,
        threads: int = 0,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        options: Mapping[str, str | int | bool] | None = None,
        where: str = "",
    ) -> None:
        require_installed()
        self.name = "onnxruntime"
        self._where, self.path = where or str(model), model
        self._folder = Path(tempfile.mkdtemp(prefix="normdeploy-"))
        with (self._folder / "stderr.txt").open("w") as stderr:
            self._process = child.start(
                "normdeploy.runtime.session_worker", folder=self._folder, stderr=stderr, stdin=child.PIPE
            )
        self._end = weakref.finalize(self, _end, self._process, self._folder)
        opened = self._ask(
            open=str(model.resolve()), threads=threads, providers=[*providers], options=dict(options or {}), where=where
        )
        self.inputs, self.outputs = tuple(opened["inputs"]), tuple(opened["outputs"])

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once."""
        check_names(feeds, self.inputs, self.name)
        _save(self._folder / "in", [feeds[name] for name in self.inputs])
        answer = self._ask(run=len(self.inputs))
        return dict(zip(self.outputs, _load(self._folder / "out", answer["dtypes"]), strict=True))

    def close(self) -> None:
        """End the process."""
        self._end()

    def _ask(self, **request: Any) -> dict[str, Any]:
        """Return the answer to ``request``. Raises what was raised there, CrashError where the process died."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the process was started without pipes")
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        except BaseException:
            self.close()  # an interrupt: whatever it does now, nobody waits for it
            raise
        if not line:
            self._died("open" in request)
        answer: dict[str, Any] = json.loads(line)
        if error := answer.get("error"):
            kind, what, where, fix = error
            raise getattr(errors, kind)(what, where=where, fix=fix)
        return answer

    def _died(self, opening: bool) -> NoReturn:
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        said = (self._folder / "stderr.txt").read_text(errors="replace").splitlines()
        self.close()
        doing = "opens the model" if opening else "runs the model"
        raise CrashError(
            f"onnxruntime crashes ({how}) where it {doing}",
            where=" | ".join([self._where, *said[-_TAIL:]]),
            fix="report it to onnxruntime; another version of it, another opset or another precision may not crash",
            how=how,
        )


def _end(process: child.Process, folder: Path) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:
                continue
    shutil.rmtree(folder, ignore_errors=True)


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
