"""README's commands for networks of transformers and timm, and the conversions that are advised for other formats."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from normdeploy.checkpoint.files import read
from normdeploy.errors import InputError

pytestmark = pytest.mark.real

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ROOT / ".venv-real"
FOREIGN = PACKAGES / "foreign"

# PyPI's torchvision is built for torch with CUDA: beside a CPU build its operators must be declared.
DECLARED = """
import importlib.abc, sys

class Declare(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch
            self.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                self.library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.declared = self

sys.meta_path.insert(0, Declare())
"""


def run(command: str, folder: Path, *packages: Path, **environment: str) -> str:
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(DECLARED)
    paths = os.pathsep.join(map(str, (folder / "site", ROOT, *packages)))
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "PATH": search, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def readme_command(model: str) -> str:
    """The command in the README that exports ``model``, on one line."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    return next(line for line in text.splitlines() if line.startswith("normdeploy export") and model in line)


BERT = """
import torch
from transformers import BertConfig, BertForSequenceClassification
torch.manual_seed(0)
sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
module = BertForSequenceClassification(BertConfig(vocab_size=100, num_labels=3, **sizes)).eval()
module.save_pretrained("path/to/folder")
"""

BERT_AGAIN = """
import sys, numpy as np, torch
from transformers import BertForSequenceClassification
module = BertForSequenceClassification.from_pretrained("path/to/folder").eval()
feeds = {name: torch.from_numpy(array) for name, array in np.load("out/classifier/golden/inputs.npz").items()}
expected = module(**feeds).logits.detach().numpy()
np.testing.assert_allclose(np.load("out/classifier/golden/outputs.npz")["logits"], expected, rtol=1e-4, atol=1e-5)
"""


def test_a_folder_of_transformers(tmp_path: Path) -> None:
    run(f"python -c {shlex.quote(BERT)}", tmp_path, PACKAGES)
    run(f"{readme_command('transformers:Auto')} --no-bench", tmp_path, PACKAGES)
    run(f"python -c {shlex.quote(BERT_AGAIN)}", tmp_path, PACKAGES)


VIT = """
import torch
from transformers import ViTConfig, ViTForImageClassification
sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=5, **sizes)).save_pretrained("vit")
"""

VIT_AGAIN = """
import torch
from pathlib import Path
from transformers import ViTForImageClassification
from normdeploy.checkpoint import load
from normdeploy.errors import InputError
loaded = load("transformers:AutoModelForImageClassification", weights=Path("vit"))
expected = ViTForImageClassification.from_pretrained("vit").eval()
x = torch.randn(2, 3, 32, 32)
assert torch.equal(loaded.module(x).logits, expected(x).logits)
assert any("as transformers reads them" in note for note in loaded.notes)
try:
    load("transformers:AutoModelForImageClassification", weights=Path("vit"), model_args={"num_hidden_layers": "1"})
except InputError as error:
    assert "unexpected" in str(error), error
else:
    raise AssertionError("a layer was dropped")
"""


def test_a_folder_that_an_older_transformers_could_read(tmp_path: Path) -> None:
    """transformers 5 renames the layers of some networks, and writes files under the old names."""
    run(f"python -c {shlex.quote(VIT)}", tmp_path, PACKAGES)
    run(f"python -c {shlex.quote(VIT_AGAIN)}", tmp_path, PACKAGES)


TIMM = """
import timm, torch
from safetensors.torch import save_file
torch.manual_seed(0)
module = timm.create_model("resnet10t")
for norm in module.modules():
    if isinstance(norm, torch.nn.BatchNorm2d):
        torch.nn.init.normal_(norm.running_mean), torch.nn.init.uniform_(norm.running_var, 0.5, 2)
import pathlib
pathlib.Path("path/to").mkdir(parents=True)
save_file(module.state_dict(), "path/to/model.safetensors")
torch.save(module.state_dict(), "model.pt")
"""


def test_a_network_of_timm(tmp_path: Path) -> None:
    run(f"python -c {shlex.quote(TIMM)}", tmp_path, PACKAGES, FOREIGN)
    told = run(f"{readme_command('timm:create_model')} --no-bench", tmp_path, PACKAGES, FOREIGN)
    assert re.search(r"BatchNormalization \d+ → 0", told)


# Conversions


def advised(path: Path, what: str) -> str:
    """The commands that are advised for the file ``path``, which is ``what``."""
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.what.startswith(what)
    return "\n".join(line.strip() for line in caught.value.fix.splitlines() if line.startswith("  "))


KERAS = """
import keras, numpy as np
keras.utils.set_random_seed(0)
layers = [keras.layers.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()]
model = keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
model.layers[1].set_weights([np.linspace(0.5, 2, 4) for _ in range(4)])
model.save("model.keras"), model.save("model.h5")
np.save("expected.npy", keras.ops.convert_to_numpy(model(np.ones((1, 8, 8, 3), "float32"))))
"""


@pytest.mark.parametrize(("name", "what"), [("model.keras", "a model of Keras"), ("model.h5", "an HDF5 file")])
def test_a_model_of_keras_is_exported_and_folded_as_advised(name: str, what: str, tmp_path: Path) -> None:
    import onnxruntime

    run(f"python -c {shlex.quote(KERAS)}", tmp_path, PACKAGES, FOREIGN, KERAS_BACKEND="torch")
    run(f"set -e\n{advised(tmp_path / name, what)}", tmp_path, PACKAGES, FOREIGN)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.folded.onnx"))
    (given,) = session.run(None, {session.get_inputs()[0].name: np.ones((1, 8, 8, 3), np.float32)})
    np.testing.assert_allclose(given, np.load(tmp_path / "expected.npy"), rtol=1e-4, atol=1e-5)


GGUF = """
import gguf, numpy as np
writer = gguf.GGUFWriter("model.gguf", "llama")
values = np.arange(192, dtype=np.float32).reshape(6, 32) / 100
writer.add_tensor("plain", values)
kind = gguf.GGMLQuantizationType.Q8_0
writer.add_tensor("quantized", gguf.quantize(values, kind), raw_dtype=kind)
writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
"""


def test_a_gguf_file_is_unpacked_as_advised(tmp_path: Path) -> None:
    run(f"python -c {shlex.quote(GGUF)}", tmp_path, PACKAGES, FOREIGN)
    run(advised(tmp_path / "model.gguf", "a GGUF file"), tmp_path, PACKAGES, FOREIGN)
    unpacked = read(tmp_path / "model.weights.pt").data
    values = torch.arange(192, dtype=torch.float32).reshape(6, 32) / 100
    assert torch.equal(unpacked["plain"], values)
    assert torch.allclose(unpacked["quantized"], values, atol=0.01)


ZERO = """
import torch
from collections import OrderedDict
from pathlib import Path
net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
net[1].running_mean.normal_()
step = Path("run/global_step2")
step.mkdir(parents=True)
(step.parent / "latest").write_text("global_step2")
shapes = OrderedDict((name, each.shape) for name, each in net.named_parameters())
buffers = [name for name, _ in net.named_buffers()]
model = {"module": net.state_dict(), "buffer_names": buffers, "param_shapes": [shapes], "shared_params": {}}
model |= {"frozen_param_shapes": None, "frozen_param_fragments": None, "ds_version": "0.19.8"}
torch.save(model, step / "mp_rank_00_model_states.pt")
flat = torch.cat([each.detach().reshape(-1) for each in net.parameters()])
state = {"zero_stage": 2, "partition_count": 1, "single_partition_of_fp32_groups": [flat], "ds_version": "0.19.8"}
torch.save({"optimizer_state_dict": state}, step / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
torch.save(net.state_dict(), "expected.pt")
"""
"""The files of a run with ZeRO 2 on one GPU, as the tool that is advised reads them."""


@pytest.mark.parametrize(("given", "what"), [("run", "a checkpoint of DeepSpeed"), ("run/global_step2", "one step of")])
def test_parts_of_deepspeed_are_put_together_as_advised(given: str, what: str, tmp_path: Path) -> None:
    run(f"python -c {shlex.quote(ZERO)}", tmp_path, PACKAGES)
    run(advised(tmp_path / given, what), tmp_path, PACKAGES, FOREIGN)
    state, expected = read(tmp_path / "run.merged").data, torch.load(tmp_path / "expected.pt")
    assert expected.keys() == state.keys()
    assert all(torch.equal(state[name], each) for name, each in expected.items())


PEFT = """
import peft, torch, transformers
sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=50)
base = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes)).eval()
base.save_pretrained("base")
lora = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=2, init_lora_weights=False)
adapted = peft.get_peft_model(base, lora).eval()
adapted.peft_config["default"].base_model_name_or_path = "base"
adapted.save_pretrained("adapter")
torch.save(adapted(torch.arange(6)[None]).logits.detach(), "expected.pt")
"""


def test_an_adapter_of_peft_is_merged_as_advised(tmp_path: Path) -> None:
    run(f"python -c {shlex.quote(PEFT)}", tmp_path, PACKAGES, FOREIGN)
    run(advised(tmp_path / "adapter", "an adapter of PEFT"), tmp_path, PACKAGES, FOREIGN)
    answers = (
        "import torch, transformers; "
        "m = transformers.AutoModelForSequenceClassification.from_pretrained('adapter.merged').eval(); "
        "torch.testing.assert_close(m(torch.arange(6)[None]).logits, torch.load('expected.pt'))"
    )
    run(f"python -c {shlex.quote(answers)}", tmp_path, PACKAGES)
    assert read(tmp_path / "adapter.merged").data


DETECT = """
import re, sys
import torch
from torchvision.models import detection
from normdeploy.errors import InputError
from normdeploy.export import to_graph
from normdeploy.specs import parse
torch.manual_seed(0)
module = getattr(detection, sys.argv[1])(weights=None, weights_backbone=None).eval()
try:
    to_graph(module, parse(["images.0:3x160x160"]))
except InputError as error:
    told = re.search(r'return module\\.([.\\w]+), with --input "([^"]+)"', error.fix)
    assert told, error
else:
    raise AssertionError("exported")
part = to_graph(module.get_submodule(told[1]), parse([told[2]]))
print(told[1], [output for output in part.outputs])
"""


@pytest.mark.parametrize(
    "name",
    ["fasterrcnn_mobilenet_v3_large_320_fpn", "keypointrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "ssd300_vgg16"],
)
def test_the_backbone_of_a_detector_is_advised_and_exported(name: str, tmp_path: Path) -> None:
    """Without torchvision's C++ operators, as in this environment; with them the choice of boxes is refused alike."""
    assert run(f"python -c {shlex.quote(DETECT)} {name}", tmp_path, FOREIGN, PACKAGES).startswith("backbone ")
