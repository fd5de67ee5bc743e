"""The names that graph nodes carry: which PyTorch module a node came from."""

from __future__ import annotations

import ast

import onnx_ir as ir

MODULE_KEY = "normdeploy.module"
_TORCH_SCOPES = "pkg.torch.onnx.name_scopes"


def module_name(node: ir.Node) -> str:
    """The dotted PyTorch module name of ``node``, or ``""`` when it carries none (or is the root's)."""
    if MODULE_KEY in node.metadata_props:
        return node.metadata_props[MODULE_KEY]
    scopes = node.metadata_props.get(_TORCH_SCOPES)
    if scopes is None:
        return ""
    try:
        # torch writes repr(list[str]): every enclosing module from the root, then the fx node.
        return str(ast.literal_eval(scopes)[-2])
    except (ValueError, SyntaxError, IndexError):
        return ""


def label(node: ir.Node) -> str:
    """What to call ``node`` before a user: its module name, else its own name, else its output's."""
    return module_name(node) or node.name or next((str(out.name) for out in node.outputs), node.op_type)
