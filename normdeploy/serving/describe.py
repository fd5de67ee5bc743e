"""``normdeploy inspect``: what a bundle is, takes, gives, weighs, was judged by, and how to run it elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

from normdeploy.bundle.contents import Contents
from normdeploy.bundle.interface import Axis, Interface, Tensor
from normdeploy.errors import InputError
from normdeploy.report import view
from normdeploy.serving import snippets
from normdeploy.serving.options import Serving, check_options


def describe(found: Contents) -> str:
    """Return the description of a bundle as lines of text."""
    options = found.manifest.session_options
    paragraphs = [
        "\n".join(_what(found)),
        "\n".join(_tensors("takes", found.interface.inputs)),
        "\n".join(_tensors("gives", found.interface.outputs)),
        "\n".join(_meanings(found.interface)),
        "\n".join(_sizes(found)),
        "\n".join(_judged(found)),
        "in Python:\n" + _indented(snippets.python(found.interface, found.folder)),
        "in C++, with ONNX Runtime:\n" + _indented(snippets.cpp(found.interface, found.folder, options)),
        "in Triton:\n" + _indented(_triton(found)),
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def _triton(found: Contents) -> str:
    """Return how Triton serves the bundle, or why it cannot."""
    try:
        check_options(Serving(), found.manifest, found.report.engine, str(found.folder))
    except InputError as error:
        return view.plain(error.what)
    return snippets.triton(found.folder)


def _what(found: Contents) -> Iterator[str]:
    manifest = found.manifest
    yield f"{view.plain(manifest.factory)}  {view.plain(manifest.weights or 'with the weights of its factory')}"
    yield f"  made {manifest.created:%Y-%m-%d %H:%M} UTC by normdeploy {view.plain(manifest.normdeploy_version)}"
    yield f"  ONNX opset {manifest.opset}, computes in {view.plain(manifest.precision)}"
    yield f"  normalizations {view.before_after(found.report)}"
    if manifest.session_options:
        options = ", ".join(f"{name} = {value}" for name, value in manifest.session_options.items())
        yield f"  to be run with {options}"
    if found.report.engine is not None:
        yield f"  with an engine: {view.plain(view.engine(found.report.engine))}"


def _tensors(verb: str, tensors: tuple[Tensor, ...]) -> Iterator[str]:
    yield verb
    for tensor in tensors:
        dims = " x ".join(map(_dim, tensor.dims)) or "a scalar"
        values = "" if tensor.low is None else f", from {tensor.low} to {tensor.high}"
        yield f"  {view.plain(tensor.name)}  {tensor.dtype}  {dims}{values}"


def _dim(axis: Axis) -> str:
    if axis.name is None:
        return str(axis.min)
    if axis.min is None:
        return view.plain(axis.name)
    step = "" if axis.multiple == 1 else f", multiples of {axis.multiple}"
    return f"{axis.name} ({axis.min} to {axis.max}, usually {axis.usual}{step})"


def _meanings(interface: Interface) -> Iterator[str]:
    for name, meaning in interface.dimensions.items():
        yield f"{name} is {view.plain(meaning)}"


def _sizes(found: Contents) -> Iterator[str]:
    yield f"weighs {view.size(sum(found.sizes.values()))}"
    for name, size in found.sizes.items():
        yield f"  {name}  {view.size(size)}"


def _judged(found: Contents) -> Iterator[str]:
    verdict = found.report.parity
    if verdict is None:
        yield "was not judged"
        return
    yield f"parity {view.word(verdict)}: {view.plain(view.sentence(verdict))}"
    if found.report.latency is not None:
        yield f"latency: {view.ratio(found.report.latency)}"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())
