"""The text formats of ONNX, read by a process of its own: their parsers do not survive what is nested too deep."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from normdeploy.errors import InputError
from normdeploy.onnxfile.places import File

FORMATS = {
    **dict.fromkeys((".onnxtxt", ".onnxtext"), "onnxtxt"),
    **dict.fromkeys((".json", ".onnxjson"), "json"),
    **dict.fromkeys((".textproto", ".txtpb", ".pbtxt", ".prototxt"), "textproto"),
}
"""Ends of names, and the format of onnx that they stand for."""
_LARGEST, _SECONDS, _MEMORY = 64 << 20, 60, 4 << 30
"""Bytes of a text, and what its reader may take."""
_READER = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({seconds}, {seconds}))
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import onnx
try:
    model = onnx.load_model_from_string(sys.stdin.buffer.read(), format=sys.argv[1])
    sys.stdout.buffer.write(model.SerializeToString())
except Exception as error:
    sys.exit((str(error).splitlines() or [type(error).__name__])[0])
"""


def converted(file: File) -> File:
    """Return the model that ``file`` spells as text, as the file of protobuf that it would be.

    Raises:
        InputError: it is too long, or its reader refused it, or died of it.
    """
    if file.size > _LARGEST:
        what = f"a model of more than {_LARGEST >> 20} MiB of text is not read"
        raise InputError(what, where=str(file.path), fix="save it as .onnx")
    code = _READER.format(seconds=_SECONDS, memory=_MEMORY)
    command = [sys.executable, "-I", "-c", code, FORMATS[file.path.suffix]]
    with tempfile.TemporaryFile() as binary:
        text = file.read(0, file.size)
        ran = subprocess.run(command, input=text, stdout=binary, stderr=subprocess.PIPE, check=False, cwd=os.sep)
        if ran.returncode:
            said = ran.stderr.decode(errors="replace").strip().splitlines() if ran.returncode > 0 else []
            why = said[-1] if said else "it is nested too deep, or too large"
            what = f"the text cannot be read as an ONNX model: {why}"
            raise InputError(what, where=str(file.path), fix="save it as .onnx")
        return File(os.dup(binary.fileno()), file.path)
