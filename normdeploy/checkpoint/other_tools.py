"""What other tools write, told by the names of files or of weights: what it is, and what makes weights of it."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from normdeploy.checkpoint import convert
from normdeploy.checkpoint.places import places
from normdeploy.disk import read_plain
from normdeploy.errors import InputError, plain


@dataclass(frozen=True)
class Layout:
    """What a folder that is no checkpoint of PyTorch's own is told by, its name, and what to do about it."""

    looks_so: Callable[[Collection[str]], bool]
    name: str
    fix: Callable[[Path], str]


def _has(pattern: str) -> Callable[[Collection[str]], bool]:
    found = re.compile(pattern)
    return lambda names: any(found.fullmatch(name) for name in names)


def _fixed(fix: str) -> Callable[[Path], str]:
    return lambda folder: convert.filled(fix, folder)


def _whole(step: Path) -> str:
    return convert.filled(convert.DEEPSPEED, step / "..")


_TASKS = {
    "CAUSAL_LM": "CausalLM",
    "SEQ_CLS": "SequenceClassification",
    "SEQ_2_SEQ_LM": "Seq2SeqLM",
    "TOKEN_CLS": "TokenClassification",
    "QUESTION_ANS": "QuestionAnswering",
    "FEATURE_EXTRACTION": "FeatureExtraction",
}
"""What PEFT's adapters call the task of their network, and its class what it loads them with."""
_CONFIG, _MOST = "adapter_config.json", 1 << 20


def _merge(folder: Path) -> str:
    """Return how to merge an adapter, with the class of its task where its configuration names one."""
    try:
        config = json.loads(read_plain(folder, _CONFIG, _MOST))
        task = _TASKS.get(config.get("task_type"))
    except (OSError, ValueError, AttributeError, TypeError, RecursionError, InputError):
        task = None
    advice = "merge it into its base model, then give what that saves"
    if task is None:
        return f"{advice}: with peft, load it over the base model, call merge_and_unload() and save_pretrained()"
    code = (
        f"import sys; from peft import AutoPeftModelFor{task} as A; "
        "A.from_pretrained(sys.argv[1]).merge_and_unload().save_pretrained(sys.argv[2])"
    )
    return f"{advice} (pip install peft):\n  python -c {shlex.quote(code)} {convert.filled('{path} {merged}', folder)}"


def _networks(folder: Path) -> str:
    """Return the advice for a pipeline: the folders in it that hold weights."""
    found = sorted(path.parent for path in folder.glob("*/*") if path.suffix in (".safetensors", ".bin"))
    named = ", ".join(shlex.quote(str(path)) for path in dict.fromkeys(found))
    return f"give the folder of the one that is deployed: {named}" if named else "give the folder of one of them"


LAYOUTS = (
    Layout(lambda names: ".metadata" in names, "a distributed checkpoint, in shards of one file a process",
           _fixed(convert.DISTRIBUTED)),
    Layout(lambda names: "saved_model.pb" in names, "a SavedModel of TensorFlow", _fixed(convert.OTHER)),
    Layout(_has(r"zero_to_fp32\.py|global_step\d+"), "a checkpoint of DeepSpeed, in parts", _fixed(convert.DEEPSPEED)),
    Layout(_has(r"(\w*zero_pp_rank_\d+_)?mp_rank_\d+_(model|optim)_states\.pt"),
           "one step of a DeepSpeed checkpoint, in parts", _whole),
    Layout(_has(r"latest_checkpointed_iteration\.txt|iter_\d{7}|mp_rank_\d\d(_\d{3})*"),
           "a checkpoint of Megatron-LM, a folder for each part of the network", _fixed(convert.MEGATRON)),
    Layout(lambda names: _CONFIG in names, "an adapter of PEFT, which holds changes to a base model and not the model",
           _merge),
)  # fmt: skip
"""Told in this order, whatever else is there: the weights of a whole network beside them have a name of their own."""

OTHERS = (
    Layout(_has(r".+\.data-\d{5}-of-\d{5}"), "a checkpoint of TensorFlow", _fixed(convert.OTHER)),
    Layout(_has(r"_CHECKPOINT_METADATA|manifest\.ocdbt|ocdbt\.process_\d+"), "a checkpoint of Orbax, as flax writes it",
           _fixed(convert.OTHER)),
    Layout(_has(r"(tf_model\.h5|flax_model\.msgpack)"), "weights of transformers for TensorFlow or flax alone",
           _fixed(convert.OTHER)),
    Layout(_has(r"model\.json"), "a model of TensorFlow.js", _fixed(convert.OTHER)),
    Layout(lambda names: "model_index.json" in names, "a pipeline of diffusers, which is several networks", _networks),
    Layout(lambda names: {"Manifest.json", "Data"} <= set(names), "a model of Core ML", _fixed(convert.SOURCE)),
)  # fmt: skip
"""Told where there is nothing that could be weights of PyTorch."""


def known_layout(folder: Path, names: Collection[str], *, weights: bool) -> InputError | None:
    """Return the error for ``folder``, in which there are ``names``, if another tool laid it out.

    ``weights`` tells that there are files among them that can be read here.
    """
    for layout in (*LAYOUTS, *(() if weights else OTHERS)):
        if layout.looks_so(names):
            return InputError(layout.name, where=str(folder), fix=layout.fix(folder))
    return None


def stored_otherwise(data: Any, own: Collection[str], file: Path) -> InputError | None:
    """Return the error for the contents of ``file`` if they are an adapter's, or weights in parts or as codes.

    ``own`` are the names in the module: what has such a name in it too is nothing to tell.
    """
    if not isinstance(data, Mapping):
        return None
    if data and all(_ADAPTED.search(str(name)) for name in data):
        what = "the file holds an adapter (LoRA), which holds changes to a base model and not the model"
        return InputError(what, where=str(file), fix=_merge(file.parent))
    entries = [entry for _, entry in places(data)]
    if any(_is_hollow(entry, own) for entry in entries):
        what = "the file holds names without a number, as of a network that was cut up (DeepSpeed's ZeRO, stage 3)"
        step = Path(os.path.abspath(file)).parent
        whole = step.parent if step.name.startswith("global_step") else step
        return InputError(what, where=str(file), fix=convert.filled(convert.DEEPSPEED, whole))
    names = [name for entry in entries for name in entry]
    for way in _WAYS:
        pattern = re.compile(way.pattern)
        if not any(pattern.search(name) for name in own) and (found := [n for n in names if pattern.search(n)]):
            layer = pattern.split(found[0])[0].strip(".")
            return InputError(
                f"the file holds {way.what}: {plain(found[0])} and {len(found) - 1} more",
                where=str(file),
                fix=way.fix.replace("LAYER", plain(layer)),
            )
    return None


def _is_hollow(entry: Mapping[str, Any], own: Collection[str]) -> bool:
    """Return True if ``entry`` has names of the module, and nothing at any of them."""
    found = [entry[name] for name in own if isinstance(entry.get(name), torch.Tensor)]
    return bool(found) and not any(tensor.numel() for tensor in found)


_ADAPTED = re.compile(r"[._](lora_\w+|hada_\w+|lokr_\w+|ia3_l|vera_lambda_\w|alpha|dora_scale)(\.|$)")
"""What PEFT, diffusers and kohya call the parts of an adapter."""


@dataclass(frozen=True)
class _Way:
    """How weights are stored otherwise: what in a name tells it, how it is called, and what to do about it."""

    pattern: str
    what: str
    fix: str


_SAME = "let the factory do what was done before the training, on the same layers: "
_WAYS = (
    _Way(r"\.lora_(A|B|embedding_A)\.", "an adapter of PEFT beside the weights that it changes",
         "merge it: in Python, save the state_dict() of what merge_and_unload() of the adapted model returns"),
    _Way(r"\.(SCB|weight_format|qweight|qzeros|g_idx|weight_packed|weight_scale(_inv)?|weight_zero_point|scale_weight"
         r"|W_q|zero_point|_packed_params(\.\w+)*)$|\.(absmax|quant_map|quant_state\.\w+)$|(^|\.)scaled_fp8$",
         "a quantized network, whose weights are codes",
         "give the checkpoint that it was quantized from, or save what dequantizing it gives (in transformers, "
         "dequantize() of the model, then save_pretrained())"),
    _Way(r"\.parametrizations\.weight\.original1$", "weights in parts, of weight_norm",
         _SAME + "torch.nn.utils.parametrizations.weight_norm(module.LAYER)"),
    _Way(r"\.weight_g$", "weights in parts, of weight_norm", _SAME + "torch.nn.utils.weight_norm(module.LAYER)"),
    _Way(r"\.parametrizations\.weight\.0\._u$", "weights in parts, of spectral_norm",
         _SAME + "torch.nn.utils.parametrizations.spectral_norm(module.LAYER)"),
    _Way(r"\.weight_u$", "weights in parts, of spectral_norm", _SAME + "torch.nn.utils.spectral_norm(module.LAYER)"),
    _Way(r"\.weight_mask$", "weights in parts, pruned ones and their masks",
         _SAME + "torch.nn.utils.prune.identity(module.LAYER, 'weight')"),
    _Way(r"\.parametrizations\.\w+\.original\d*$", "weights in parts, of a parametrization",
         _SAME + "torch.nn.utils.parametrize.register_parametrization(module.LAYER, ...)"),
)  # fmt: skip
"""The first that is found is told."""
