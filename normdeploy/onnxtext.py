"""The text formats of ONNX, read by a process of its own: their parsers do not survive what is nested too deep."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from normdeploy import child
from normdeploy.disk import scratch
from normdeploy.errors import InputError

FORMATS = {
    **dict.fromkeys((".onnxtxt", ".onnxtext"), "onnxtxt"),
    **dict.fromkeys((".json", ".onnxjson"), "json"),
    **dict.fromkeys((".textproto", ".txtpb", ".pbtxt", ".prototxt"), "textproto"),
}
"""Ends of names, and the format of onnx that they stand for."""
LARGEST = 64 << 20
"""Bytes of a text."""
_SECONDS, _MEMORY = 60, 4 << 30
"""What its reader may take."""
_TEXT, _MODEL, _SAID = "text", "model.onnx", "stderr.txt"


def model_of(text: bytes, name: str) -> bytes:
    """Return the model that ``text`` spells, in the format that the end of the file's ``name`` tells, as protobuf.

    Raises:
        InputError: it is too long, or its reader refused it, or died of it.
    """
    if len(text) > LARGEST:
        what = f"a model of more than {LARGEST >> 20} MiB of text is not read"
        raise InputError(what, where=name, fix="save it as .onnx")
    with scratch() as folder:
        (folder / _TEXT).write_bytes(text)
        arguments = (str(folder), FORMATS[Path(name).suffix])
        with (
            (folder / _SAID).open("w") as stderr,
            child.running(
                lambda: child.start("normdeploy.onnxtext", *arguments, folder=folder, stderr=stderr)
            ) as process,
        ):
            process.communicate()
        if process.returncode:
            said = (folder / _SAID).read_text(errors="replace")
            lines = said.strip().splitlines() if process.returncode > 0 else []
            why = lines[-1] if lines else "it is nested too deep, or too large"
            raise InputError(f"the text cannot be read as an ONNX model: {why}", where=name, fix="save it as .onnx")
        return (folder / _MODEL).read_bytes()


def main(folder: Path, kind: str) -> None:
    """Read the text in ``folder``, and write the model beside it."""
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    text = (folder / _TEXT).read_bytes()
    import onnx

    try:
        model = onnx.load_model_from_string(text, format=kind)
        (folder / _MODEL).write_bytes(model.SerializeToString())
    except Exception as error:  # protobuf and onnx raise many kinds
        sys.exit((str(error).splitlines() or [type(error).__name__])[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[-1])
