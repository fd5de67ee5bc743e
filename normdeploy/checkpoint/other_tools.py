"""What other tools write, told by the names of files or of weights: what it is, and what makes weights of it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normdeploy.checkpoint import convert
from normdeploy.disk import read_plain
from normdeploy.errors import InputError


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


def adapter(data: Any, file: Path) -> InputError | None:
    """Return the error for the contents of ``file`` if all of it are an adapter's: what LoRA or the like learned."""
    names = [str(name) for name in data] if isinstance(data, Mapping) else []
    if not names or not all(_ADAPTED.search(name) for name in names):
        return None
    what = "the file holds an adapter (LoRA), which holds changes to a base model and not the model"
    return InputError(what, where=str(file), fix=_merge(file.parent))


_ADAPTED = re.compile(r"[._](lora_\w+|hada_\w+|lokr_\w+|ia3_l|vera_lambda_\w|alpha|dora_scale)(\.|$)")
"""What PEFT, diffusers and kohya call the parts of an adapter."""
