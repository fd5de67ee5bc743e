"""A folder of transformers from elsewhere: its config.json runs nothing, fetches nothing and takes no machine."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

pytestmark = pytest.mark.real

PACKAGES = Path(__file__).parent.parent.parent / ".venv-real"
SMALL = {
    "model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
    "vocab_size": 16, "max_position_embeddings": 16,
}  # fmt: skip
EVIL = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass Net: pass\nclass Config: pass\n"
HOSTILE: dict[str, tuple[str, dict[str, Any] | str, str]] = {
    "a class of no local code": ("AutoModelForCausalLM", {"model_type": "evil", "auto_map": {
        "AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Net"}}, "is not run"),
    "a class that the type has not": ("AutoModelForCTC", SMALL | {
        "auto_map": {"AutoModelForCTC": "evil.Net"}}, "is not run"),
    "a class of a repository": ("AutoModelForCTC", SMALL | {
        "auto_map": {"AutoModelForCTC": "a/b--evil.Net"}}, "is not run"),
    "its own permission": ("AutoModelForCTC", SMALL | {
        "trust_remote_code": True, "auto_map": {"AutoModelForCTC": "evil.Net"}}, "is not run"),
    "a kernel": ("AutoModel", SMALL | {"_attn_implementation": "someone/kernel"}, "names a kernel"),
    "a kernel of a part": ("AutoModel", SMALL | {"text_config": {"attn_implementation": "a/b:c"}}, "names a kernel"),
    "layers without end": ("AutoModel", SMALL | {"num_hidden_layers": 10**9}, "num_hidden_layers is 1,000,000,000"),
    "labels without end": ("AutoModel", SMALL | {"num_labels": 10**9}, "num_labels is 1,000,000,000"),
    "a number of 5,000 digits": ("AutoModel", '{"vocab_size": 1' + "0" * 5000 + "}", "no JSON that can be read"),
    "a vocabulary of terabytes": ("AutoModel", SMALL | {"vocab_size": 2**30}, "AutoModel raised"),
    "nested 100,000 deep": ("AutoModel", '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "no JSON that can be read"),
    "no object": ("AutoModel", "[1]", "error: "),
    "a device": ("AutoModel", "", "there is no config.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_config_of_anyone_is_refused_in_time(case: str, tmp_path: Path) -> None:
    name, config, said = HOSTILE[case]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "evil.py").write_text(EVIL)
    save_file({"a.weight": torch.ones(2)}, folder / "model.safetensors")
    if case == "a device":
        (folder / "config.json").symlink_to("/dev/zero")
    else:
        (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    command = [sys.executable, "-m", "normdeploy", "export", "--app-dir", str(PACKAGES), "--weights", str(folder)]
    command += ["--model", f"transformers:{name}", "--input", "input_ids:1x4@i64[0..9]", "--out", str(tmp_path / "out")]
    begin = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(command, input="y\n", capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert "trust_remote_code=True" not in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "evil.py", "model.safetensors"]
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - begin < 30  # most of it is importing two libraries
