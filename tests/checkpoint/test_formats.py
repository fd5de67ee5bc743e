"""Formats are told by their bytes, under any name, and the advice for each is right."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.distributed.checkpoint as dcp
from converting import converted
from layouts import net, same, state
from safetensors.torch import save_file

from normdeploy.checkpoint import load
from normdeploy.checkpoint.files import read
from normdeploy.errors import InputError


def refusal(path: Path, **options: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    return caught.value


BYTES = {
    b"GGUF\x03\x00\x00\x00" + bytes(60): "a GGUF file",
    b"\x89HDF\r\n\x1a\n" + bytes(60): "an HDF5 file",
    b"\x1c\x00\x00\x00TFL3" + bytes(60): "a TensorFlow Lite model",
    b"\x08\x01\x12\x05" + bytes(60): "a SavedModel of TensorFlow",
    b"\x93NUMPY\x01\x00" + bytes(60): "an array of NumPy",
    b"<!DOCTYPE html><html>Not found</html>": "a web page",
    b"<?xml version='1.0'?><Error/>": "a web page",
    b"\x1f\x8b\x08\x00" + bytes(60): "a compressed file",
    b"\x81\xa6params\x80": "a msgpack file",
    b"\xde\x00\x11\xa6params\x80": "a msgpack file",
    bytes(257) + b"ustar" + bytes(300): "a tar archive",
    json.dumps({"architectures": ["Bert"]}).encode(): "JSON text",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 10\n": "a pointer of git-lfs",
}


@pytest.mark.parametrize("content", BYTES, ids=[*BYTES.values()])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w"])
def test_foreign_formats_are_named(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    error = refusal(tmp_path / name)
    assert error.what.startswith(BYTES[content])
    assert error.fix


def test_an_onnx_model_is_folded_as_advised(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    onnx.save(
        onnx.parser.parse_model('<ir_version: 9, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) {y = Neg(x)}'),
        path,
    )
    error = refusal(path)
    assert error.what == "an ONNX model, not a file of weights"
    converted(error.fix)
    onnx.checker.check_model(onnx.load(tmp_path / "model.folded.onnx"))


# Shards


def shards(folder: Path, write: Callable[[dict[str, Any], Path], None], suffix: str) -> Path:
    """Two shards of ``state()`` and their index, which is returned."""
    parts = [dict(list(state().items())[:3]), dict(list(state().items())[3:])]
    names = [f"model-0000{number}-of-00002{suffix}" for number in (1, 2)]
    for part, name in zip(parts, names, strict=True):
        write(part, folder / name)
    places = {name: file for part, file in zip(parts, names, strict=True) for name in part}
    index = folder / f"model{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


@pytest.mark.parametrize(("write", "suffix"), [(save_file, ".safetensors"), (torch.save, ".bin")])
def test_shards_by_their_index_or_folder(write: Any, suffix: str, tmp_path: Path) -> None:
    index = shards(tmp_path, write, suffix)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "training_args.bin").write_bytes(b"x")
    one, other = read(index), read(tmp_path)
    assert same(one.data, state())
    assert same(other.data, state())
    assert one.sha256 == other.sha256
    index.unlink()
    (tmp_path / "training_args.bin").unlink()
    assert same(read(tmp_path).data, state())


def test_the_sha256_of_shards_is_of_the_lines_of_sha256sum(tmp_path: Path) -> None:
    import hashlib
    import subprocess

    index = shards(tmp_path, save_file, ".safetensors")
    lines = subprocess.run("sha256sum model*", shell=True, cwd=tmp_path, capture_output=True, check=True).stdout
    assert read(index).sha256 == hashlib.sha256(lines).hexdigest()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: (d / "model-00002-of-00002.safetensors").unlink(), "no such file"),
        (lambda d: save_file({"x": torch.ones(1)}, d / "model-00002-of-00002.safetensors"), "are in no shard"),
        (lambda d: save_file(state(), d / "model-00002-of-00002.safetensors"), "two shards hold"),
        (lambda d: torch.save([1], d / "model-00002-of-00002.safetensors"), "no shard of a checkpoint"),
    ],
)
def test_shards_that_do_not_go_together(change: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    shards(tmp_path, save_file, ".safetensors")
    change(tmp_path)
    assert words in refusal(tmp_path).what


def test_shards_without_an_index_are_all_there(tmp_path: Path) -> None:
    shards(tmp_path, save_file, ".safetensors").unlink()
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    assert refusal(tmp_path).what == "shards are missing: [1]"


@pytest.mark.parametrize("name", ["../w.safetensors", "/etc/passwd", "a/b", ".hidden", "", ".", ".."])
def test_an_index_names_files_beside_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "i.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert refusal(tmp_path / "i.json").what.startswith("the index names what is no file beside it")


@pytest.mark.parametrize(
    "text", ['{"weight_map": 3}', '{"weight_map": {"a": 1}}', '{"weight_map"', '{"weight_map": {}}']
)
def test_an_index_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "i.json").write_text(text)
    assert "index" in refusal(tmp_path / "i.json").what


def test_a_folder_with_two_checkpoints_names_both(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        torch.save(state(), tmp_path / name)
    error = refusal(tmp_path)
    assert error.what == "the folder holds 2 checkpoints"
    assert str(tmp_path / "a.pt") in error.fix
    torch.save(state(), tmp_path / "pytorch_model.bin")
    assert read(tmp_path).notes == ("of the folder, pytorch_model.bin was read",)


def test_a_distributed_checkpoint_is_converted_as_advised(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process saves alone
        dcp.save({"model": state()}, checkpoint_id=str(tmp_path / "dcp"), no_dist=True)
    for path in (tmp_path / "dcp", tmp_path / "dcp" / "__0_0.distcp", tmp_path / "dcp" / ".metadata"):
        error = refusal(path)
        assert "distributed checkpoint" in error.what
        assert str(tmp_path / "dcp.weights.pt") in error.fix
    converted(error.fix)
    assert same(read(tmp_path / "dcp.weights.pt").data["model"], state())


def test_what_numpy_wrote(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.pt", a=np.ones(3))
    (tmp_path / "w.pt.npz").rename(tmp_path / "w.pt")
    assert refusal(tmp_path / "w.pt").what == "an archive of NumPy arrays (.npz)"


def test_a_net_is_what_its_state_says() -> None:
    assert same(net(seed=1).state_dict(), state())


# What other tools lay out

LAYOUTS = {
    "deepspeed": (
        ["latest", "zero_to_fp32.py", "global_step2/mp_rank_00_model_states.pt"],
        "a checkpoint of DeepSpeed",
    ),
    "deepspeed step": (
        ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"],
        "one step of a Deep",
    ),
    "deepspeed bf16": (["bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"], "one step of a DeepSpeed"),
    "megatron": (
        ["latest_checkpointed_iteration.txt", "iter_0000010/mp_rank_00/model_optim_rng.pt"],
        "a checkpoint of Meg",
    ),
    "megatron step": (["mp_rank_00_001/model_optim_rng.pt"], "a checkpoint of Megatron-LM"),
    "peft": (["adapter_config.json", "adapter_model.safetensors"], "an adapter of PEFT"),
    "tensorflow": (["checkpoint", "model.ckpt.index", "model.ckpt.data-00000-of-00001"], "a checkpoint of TensorFlow"),
    "orbax": (["_CHECKPOINT_METADATA", "manifest.ocdbt", "d/x"], "a checkpoint of Orbax"),
    "flax": (["config.json", "flax_model.msgpack"], "weights of transformers for TensorFlow or flax"),
    "tfjs": (["model.json", "group1-shard1of1.bin.gz"], "a model of TensorFlow.js"),
    "core ml": (["Manifest.json", "Data/weights"], "a model of Core ML"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_other_tools_lay_out_is_named(name: str, tmp_path: Path) -> None:
    files, words = LAYOUTS[name]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"{}")
    error = refusal(tmp_path)
    assert error.what.startswith(words)
    assert error.fix
    save_file(state(), tmp_path / "model.safetensors")  # a merged or converted one beside it is read
    assert same(read(tmp_path).data, state())


@pytest.mark.parametrize("name", ["model.json", "flax_model.msgpack", "w.data-00000-of-00001"])
def test_a_file_of_another_tool_beside_weights_is_no_matter(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"{}")
    torch.save(state(), tmp_path / "weights.pt")
    assert same(read(tmp_path).data, state())


@pytest.mark.parametrize(
    "config", ["", "[]", '{"task_type": ["SEQ_CLS"]}', '{"task_type": "x\\n  rm -rf"}', "[" * 9000]
)
def test_an_adapter_of_no_known_task_prints_no_command(config: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(config)
    assert "\n" not in refusal(tmp_path).fix


def test_an_adapter_given_as_a_file_is_named(tmp_path: Path) -> None:
    peft = {"base_model.model.1.lora_A.weight": torch.ones(2, 4), "base_model.model.1.lora_B.weight": torch.ones(4, 2)}
    kohya = {"lora_unet_1.lora_down.weight": torch.ones(2, 4), "lora_unet_1.alpha": torch.ones(())}
    for adapter in (peft, kohya):
        save_file(adapter, tmp_path / "w.safetensors")
        with pytest.raises(InputError, match=r"the file holds an adapter \(LoRA\)"):
            load(
                "torch.nn:Linear",
                model_args={"in_features": "4", "out_features": "4"},
                weights=tmp_path / "w.safetensors",
            )
    save_file({**peft, "weight": torch.ones(4, 4)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="an adapter of PEFT beside the weights that it changes"):
        load(
            "torch.nn:Linear", model_args={"in_features": "4", "out_features": "4"}, weights=tmp_path / "w.safetensors"
        )


def test_the_command_for_arrays_makes_a_state_dict_of_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **{"0.weight": np.arange(6.0).reshape(2, 3), "0.bias": np.ones(2, np.int64)})
    converted(refusal(tmp_path / "w.npz").fix)
    found = read(tmp_path / "w.weights.pt").data
    np.testing.assert_array_equal(found["0.weight"].numpy(), np.arange(6.0).reshape(2, 3))
    assert found["0.bias"].dtype == torch.int64


@pytest.mark.parametrize("kind", ["csr", "csc", "coo"])
def test_the_command_for_a_sparse_matrix_makes_a_dense_weight_of_it(kind: str, tmp_path: Path) -> None:
    """As scipy.sparse.save_npz lays it out."""
    matrix = torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 4.0]])
    if kind == "coo":
        row, col = (each.numpy().astype(np.int32) for each in matrix.nonzero(as_tuple=True))
        parts = {"row": row, "col": col, "data": matrix[matrix != 0].numpy()}
    else:
        sparse = matrix.to_sparse_csr() if kind == "csr" else matrix.to_sparse_csc()
        starts = sparse.crow_indices() if kind == "csr" else sparse.ccol_indices()
        indices = sparse.col_indices() if kind == "csr" else sparse.row_indices()
        parts = {"indptr": starts.int().numpy(), "indices": indices.int().numpy(), "data": sparse.values().numpy()}
    np.savez(tmp_path / "w.npz", format=np.array(kind.encode()), shape=np.array(matrix.shape), **parts)
    error = refusal(tmp_path / "w.npz")
    assert error.what == "a sparse matrix of SciPy (.npz)"
    converted(error.fix.replace(" NAME", " fc.weight"))
    assert torch.equal(read(tmp_path / "w.weights.pt").data["fc.weight"], matrix)


@pytest.mark.parametrize("made", ["to_sparse", "to_sparse_csr", "quantized"])
def test_the_command_for_sparse_and_quantized_tensors_makes_them_dense(made: str, tmp_path: Path) -> None:
    weight = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    stored = torch.quantize_per_tensor(weight, 0.5, 0, torch.qint8) if made == "quantized" else getattr(weight, made)()
    torch.save({"model": {"weight": stored, "bias": torch.ones(2)}, "epoch": 3}, tmp_path / "w.pt")
    converted(refusal(tmp_path / "w.pt").fix)
    found = read(tmp_path / "w.dense.pt").data
    assert torch.equal(found["model"]["weight"], weight)
    assert found["epoch"] == 3


def test_of_a_pipeline_the_folders_of_its_networks_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "a pipeline" / "unet"
    folder.mkdir(parents=True)
    (folder.parent / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    save_file({"weight": torch.ones(2)}, folder / "diffusion_pytorch_model.safetensors")
    error = refusal(folder.parent)
    assert error.what == "a pipeline of diffusers, which is several networks"
    (named,) = shlex.split(error.fix.partition(": ")[2])
    assert torch.equal(read(Path(named)).data["weight"], torch.ones(2))
