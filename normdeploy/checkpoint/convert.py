"""Commands that make of a file what can be loaded here; each of them runs in tests.

They are printed, not run: what they read may run code, and some need packages that are not needed here.
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

_COLLECT = (  # every tensor, dense and whole, at the place where it lies; what holds but one entry is that entry
    "t = lambda x: x.full_tensor() if hasattr(x, 'full_tensor') else x.dequantize() if x.is_quantized or "
    "type(x) not in (torch.Tensor, torch.nn.Parameter) else x; "
    'f = lambda x: t(x).detach() if torch.is_tensor(x) else torch.from_numpy(x) if type(x).__name__ == "ndarray" '
    'else f(x.state_dict()) if hasattr(x, "state_dict") '
    'else ({str(k): v for k, w in x.items() if (v := f(w)) is not None} or None) if hasattr(x, "items") else None; '
    "g = lambda x: g(*x.values()) if isinstance(x, dict) and len(x) == 1 and isinstance([*x.values()][0], dict) "
    'else x; x = g(f(x)); torch.save(x, sys.argv[2]) if x else sys.exit("no tensor was found")'
)
_TRUST = "only if you trust where the file comes from, "
_TO_PLAIN = "convert it to a plain state dict (this runs its code), then give that"

_LOAD = {
    "torch.save": 'x = torch.load(sys.argv[1], "cpu", weights_only=False)',
    "pickle": 'import pickle; x = pickle.load(open(sys.argv[1], "rb"))',
    "torchscript": 'x = torch.jit.load(sys.argv[1], "cpu")',
    "program": "x = torch.export.load(sys.argv[1]).state_dict",
}

GGUF = (
    "give the checkpoint that it was made of; or unpack its tensors, in float32, under llama.cpp's names (pip install "
    "gguf):\n  python -c 'import sys, torch, gguf; torch.save({{t.name: "
    "torch.tensor(gguf.dequantize(t.data, t.tensor_type)).reshape(*t.shape.tolist()[::-1]) "
    "for t in gguf.GGUFReader(sys.argv[1]).tensors}}, sys.argv[2])' {path} {plain}"
)
KERAS = (
    _TRUST
    + "export the model to ONNX (pip install keras h5py; weights alone need the code of their model), and fold that:\n"
    "  KERAS_BACKEND=torch python -c 'import sys, keras; m = keras.saving.load_model(sys.argv[1]); "
    "m([keras.ops.zeros([d or 1 for d in i.shape], i.dtype) for i in m.inputs]); "
    'm.export(sys.argv[2], format="onnx")\' {path} {onnx}\n'
    "  normdeploy fold {onnx} -o {folded}"
)
ONNX = "fold it as it is:\n  normdeploy fold {path} -o {folded}"
OTHER = "export the model to ONNX with the tools of its own framework, then normdeploy fold MODEL.onnx -o FOLDED.onnx"
DISTRIBUTED = (
    _TRUST + "convert it to one file (this unpickles its .metadata), then give that:\n"
    "  python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} {plain}"
)
DEEPSPEED = (
    _TRUST + "put its parts together (this unpickles them; pip install deepspeed), then give what that writes:\n"
    "  python -m deepspeed.utils.zero_to_fp32 {path} {merged}"
)
MEGATRON = (
    "where there is one part alone, give its model_optim_rng.pt; merge several with Megatron-LM's own converter, "
    "which knows how they were cut"
)
QUANTIZED = "give the checkpoint that it was quantized from, or save what dequantizing it (codes times scales) gives"
SOURCE = "give the checkpoint that it was made of"


_NUMBERS = (  # what is stored in 8 bits or in whole numbers becomes float64, in which all of them are exact
    "import sys, torch; from safetensors.torch import load_file; p = sys.argv[1]; "
    'x = load_file(p) if open(p, "rb").read(9)[8:] == b"{" else torch.load(p, "cpu", weights_only=True); '
    "f = lambda v: {k: f(w) for k, w in v.items()} if isinstance(v, dict) else v if not torch.is_tensor(v) "
    "else v.dequantize() if v.is_quantized else v if v.is_complex() or v.is_floating_point() and v.itemsize > 1 "
    "else v.double(); torch.save(f(x), sys.argv[2])"
)


_DENSE = (
    'import sys, torch; x = torch.load(sys.argv[1], "cpu", weights_only=True); '
    "f = lambda v: {k: f(w) for k, w in v.items()} if isinstance(v, dict) else v if not torch.is_tensor(v) "
    "else v.dequantize() if v.is_quantized else v.to_dense(); torch.save(f(x), sys.argv[2])"
)
_ARRAYS = (
    "import sys, numpy, torch; torch.save({k: torch.from_numpy(numpy.array(v)) "
    "for k, v in numpy.load(sys.argv[1]).items()}, sys.argv[2])"
)
_MATRIX = (
    "import sys, numpy, torch; z = numpy.load(sys.argv[1]); s = tuple(z['shape']); "
    "t = {k: torch.from_numpy(z[k]) for k in z if k != 'format'}; "
    "x = torch.sparse_coo_tensor(torch.stack([t['row'], t['col']]), t['data'], s) if 'row' in t else "
    "getattr(torch, 'sparse_%s_tensor' % z['format'].item().decode())(t['indptr'], t['indices'], t['data'], s); "
    "torch.save({sys.argv[3]: x.to_dense()}, sys.argv[2])"
)


def of_arrays(path: Path) -> str:
    """Return the advice for an .npz file: a command that makes a state dict of it, under the names that it has."""
    return f"make a state dict of it, under its own names, then give that:\n{_command(_ARRAYS, path, '.weights.pt')}"


def of_matrix(path: Path) -> str:
    """Return the advice for one sparse matrix of SciPy, which has no name."""
    said = "make a state dict of it, with the name of its parameter for NAME, then give that"
    return f"{said}:\n{_command(_MATRIX, path, '.weights.pt')} NAME"


def of_layouts(path: Path) -> str:
    """Return the advice for a file of torch.save in which tensors are sparse or quantized."""
    return f"make them dense, then give that:\n{_command(_DENSE, path, '.dense.pt')}"


def _command(code: str, path: Path, suffix: str) -> str:
    return f"  python -c {shlex.quote(code)} {shlex.quote(str(path))} {shlex.quote(str(path.with_suffix(suffix)))}"


def of_codes(path: Path) -> str:
    """Return the advice for a file with codes in place of weights, with a command where it is one file."""
    if not path.is_file() or path.suffix == ".json":
        return QUANTIZED
    plainly = "only if they are plain numbers, that need no scales, make them so, then give that"
    return f"{QUANTIZED}; {plainly}:\n{_command(_NUMBERS, path, '.numbers.pt')}"


def filled(fix: str, path: Path) -> str:
    """Return ``fix`` with the names of ``path`` and of what is made of it, quoted for a shell."""
    if path.name in ("", ".."):
        path = Path(os.path.abspath(path))  # ".", whose name is not in it
    made = {"plain": ".weights.pt", "onnx": ".onnx", "folded": ".folded.onnx", "merged": ".merged"}
    quoted = {name: shlex.quote(str(path.with_suffix(suffix))) for name, suffix in made.items()}
    return fix.format(path=shlex.quote(str(path)), **quoted) if "{path}" in fix else fix


def of_code(kind: str, path: Path, key: str | None) -> str:
    """Return the advice for a file of a ``kind`` that runs code: a command that keeps its tensors, or ``--trust``."""
    entry = (
        f"import functools; x = functools.reduce(lambda x, k: x[k], {json.dumps(key)}.split('.'), x); " if key else ""
    )
    code = shlex.quote(f"import sys, torch; {_LOAD[kind]}; {entry}{_COLLECT}")
    again = ", without --weights-key" if key else ""
    return (
        f"{_TRUST}{_TO_PLAIN}{again}:\n"
        f"  python -c {code} {shlex.quote(str(path))} {shlex.quote(str(path.with_suffix('.weights.pt')))}\n"
        f"or add --trust {shlex.quote(str(path))}"
    )
