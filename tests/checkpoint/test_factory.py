from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from normdeploy.checkpoint import factory, load
from normdeploy.checkpoint.factory import build, usual_app_dir
from normdeploy.errors import InputError

App = Callable[[str], str]


def refusal(factory: str, app_dir: Path | None, **model_args: str) -> InputError:
    with pytest.raises(InputError) as caught:
        build(factory, app_dir=app_dir, model_args=model_args)
    return caught.value


def test_a_factory_in_app_dir(app: App, tmp_path: Path) -> None:
    name = app("def net():\n    return nn.Linear(2, 3)")
    module, notes = build(f"{name}:net", app_dir=tmp_path, model_args={})
    assert isinstance(module, nn.Linear)
    assert notes == ()


def test_a_dotted_attribute_and_a_class(app: App, tmp_path: Path) -> None:
    name = app("class Net(nn.Linear):\n    @classmethod\n    def tiny(cls):\n        return cls(1, 1)")
    assert build(f"{name}:Net.tiny", app_dir=tmp_path, model_args={})[0].weight.shape == (1, 1)
    arguments = {"in_features": "4", "out_features": "5"}
    assert build(f"{name}:Net", app_dir=tmp_path, model_args=arguments)[0].weight.shape == (5, 4)


def test_an_installed_package_needs_no_app_dir() -> None:
    module, _ = build("torch.nn:BatchNorm1d", app_dir=None, model_args={"num_features": "3", "eps": "1e-3"})
    assert module.eps == 1e-3


def test_model_args_are_literals_where_they_can_be(app: App, tmp_path: Path) -> None:
    name = app("def net(**given):\n    module = nn.Identity()\n    module.given = given\n    return module")
    texts = {"a": "3", "b": "(1, 2)", "c": "None", "d": "true", "e": "r'x'", "f": "resnet-18", "g": "", "h": "1e-3"}
    module, _ = build(f"{name}:net", app_dir=tmp_path, model_args=texts)
    expected = {"a": 3, "b": (1, 2), "c": None, "d": "true", "e": "x", "f": "resnet-18", "g": "", "h": 1e-3}
    assert module.given == expected


def test_a_model_arg_is_never_evaluated(app: App, tmp_path: Path) -> None:
    name = app("def net(a, b):\n    module = nn.Identity()\n    module.given = a, b\n    return module")
    code, deep = "__import__('os').getcwd()", "(" * 5000
    module, _ = build(f"{name}:net", app_dir=tmp_path, model_args={"a": code, "b": deep})
    assert module.given == (code, deep)


@pytest.mark.parametrize(
    "factory", ["models/digits.py:resnet", "digits", "digits:", ":net", "a..b:net", "a:b c", "", "a:b:c"]
)
def test_what_does_not_name_a_factory(factory: str) -> None:
    error = refusal(factory, None)
    assert "does not name a factory" in error.what
    assert "--app-dir" in error.fix


def test_a_missing_folder(tmp_path: Path) -> None:
    error = refusal("a:b", tmp_path / "nowhere")
    assert error.what.startswith("no such folder")
    assert str(tmp_path / "nowhere") in error.where
    (tmp_path / "file").touch()
    assert refusal("a:b", tmp_path / "file").what.startswith("no such folder")


def test_a_missing_module(tmp_path: Path) -> None:
    error = refusal("no_such_module.sub:net", tmp_path)
    assert error.what == "there is no module 'no_such_module' on the import path"
    assert refusal("torch.no_such_part:net", None).what == "there is no module 'torch.no_such_part' on the import path"


def test_a_missing_dependency_is_told_from_a_missing_module(app: App, tmp_path: Path) -> None:
    name = app("import no_such_dependency")
    error = refusal(f"{name}:net", tmp_path)
    assert "No module named 'no_such_dependency'" in error.what
    assert error.where == f"{tmp_path / name}.py:4"
    assert error.fix == "install what provides 'no_such_dependency'"


@pytest.mark.parametrize(
    ("source", "told", "line"),
    [
        ("raise ValueError('bad day')", "ValueError: bad day", 4),
        ("import sys\nsys.exit(3)", "SystemExit: 3", 5),
        ("def net(:", "SyntaxError", 4),
        ("from torch import no_such_name", "ImportError: cannot import name 'no_such_name'", 4),
    ],
)
def test_an_import_that_raises(app: App, tmp_path: Path, source: str, told: str, line: int) -> None:
    name = app(source)
    error = refusal(f"{name}:net", tmp_path)
    assert error.what.startswith(f"importing {name} raised {told}")
    assert error.where == f"{tmp_path / name}.py:{line}"


def test_a_missing_attribute_suggests_near_ones(app: App, tmp_path: Path) -> None:
    name = app("def resnet():\n    return nn.Identity()")
    error = refusal(f"{name}:resnt", tmp_path)
    assert error.what == f"{name} has no 'resnt'"
    assert error.fix == "did you mean resnet?"
    assert refusal(f"{name}:resnet.zzz", tmp_path).fix == "correct the name after the colon"


def test_an_attribute_whose_import_fails(app: App, tmp_path: Path) -> None:
    name = app("def __getattr__(name):\n    raise RuntimeError('no backend')")
    assert refusal(f"{name}:net", tmp_path).what == f"getting {name}:net raised RuntimeError: no backend"


@pytest.mark.parametrize("value", ["nn.Linear(2, 2)", "3", "None"])
def test_what_is_not_a_factory(app: App, tmp_path: Path, value: str) -> None:
    name = app(f"net = {value}")
    assert "not a factory" in refusal(f"{name}:net", tmp_path).what


@pytest.mark.parametrize(
    ("body", "told", "line"),
    [
        ("raise KeyError('depth')", "KeyError: 'depth'", 5),
        ("raise SystemExit", "SystemExit", 5),
        ("return helper()\n\ndef helper():\n    raise OSError", "OSError", 8),
    ],
)
def test_a_factory_that_raises(app: App, tmp_path: Path, body: str, told: str, line: int) -> None:
    name = app(f"def net():\n    {body}")
    error = refusal(f"{name}:net", tmp_path)
    assert error.what == f"{name}:net raised {told}"
    assert error.where == f"{tmp_path / name}.py:{line}"
    assert error.__cause__ is not None, "a debugger wants the cause"


def test_an_error_inside_torch_names_its_line() -> None:
    error = refusal("torch.nn:Linear", None, in_features="-1", out_features="2")
    assert "torch.nn:Linear raised RuntimeError" in error.what


@pytest.mark.parametrize(
    ("value", "told"), [("None", "None"), ("{'w': 1}", "of type dict"), ("nn.Linear", "of type type")]
)
def test_a_factory_that_returns_no_module(app: App, tmp_path: Path, value: str, told: str) -> None:
    name = app(f"def net():\n    return {value}")
    assert refusal(f"{name}:net", tmp_path).what == f"{name}:net returned {told}, not an nn.Module"


def test_wrong_and_missing_model_args_show_the_signature(app: App, tmp_path: Path) -> None:
    name = app("def net(depth, width=8):\n    return nn.Identity()")
    error = refusal(f"{name}:net", tmp_path, depht="3")
    assert "wrong arguments for the factory" in error.what
    assert "net(depth, width=8)" in error.fix
    assert "missing a required argument: 'depth'" in refusal(f"{name}:net", tmp_path).what


def test_a_type_error_inside_the_factory_is_not_called_a_wrong_argument(app: App, tmp_path: Path) -> None:
    name = app("def net():\n    return nn.Linear()")
    assert f"{name}:net raised TypeError" in refusal(f"{name}:net", tmp_path).what


def test_what_the_factory_prints_stays_off_stdout(app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = app("print('importing')\n\ndef net():\n    print('building')\n    return nn.Identity()")
    build(f"{name}:net", app_dir=tmp_path, model_args={})
    assert capsys.readouterr() == ("", "importing\nbuilding\n")


def test_app_dir_is_on_the_path_once_first_for_the_factory_and_last_behind_it(app: App, tmp_path: Path) -> None:
    name = app("import sys\ndef net():\n    net.first = sys.path[0]\n    return nn.Identity()")
    before = list(sys.path)
    for _ in range(2):
        build(f"{name}:net", app_dir=tmp_path, model_args={})
        assert sys.modules[name].net.first == str(tmp_path)
    assert [entry for entry in sys.path if entry != str(tmp_path)] == before
    assert sys.path[sys.path.index(str(tmp_path)) :] == factory._LATER  # behind it are those of earlier tests alone


def test_what_lies_beside_the_factory_takes_no_packages_place_later(app: App, tmp_path: Path) -> None:
    """A user's folder has a json.py, or a report.py that imports one: what is imported after the factory is not it."""
    name = app("def net():\n    return nn.Identity()")
    for package in ("jinja2", "this"):
        (tmp_path / f"{package}.py").write_text("raise RuntimeError('the wrong one')")
    kept = {key: sys.modules.pop(key) for key in list(sys.modules) if key.partition(".")[0] in ("jinja2", "this")}
    try:
        build(f"{name}:net", app_dir=tmp_path, model_args={})
        assert importlib.import_module("jinja2").__file__ != str(tmp_path / "jinja2.py")
        assert importlib.util.find_spec("this").origin != str(tmp_path / "this.py")  # type: ignore[union-attr]
    finally:
        sys.modules.update(kept)


def test_a_failure_leaves_the_import_path_as_it_was(app: App, tmp_path: Path) -> None:
    before = list(sys.path)
    refusal(f"{app('raise ValueError')}:net", tmp_path)
    assert sys.path == before


def test_a_later_app_dir_comes_before_an_earlier_one(app: App, tmp_path: Path) -> None:
    for folder, width in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"only_{folder}.py").write_text(
            f"from torch import nn\ndef net(): return nn.Linear(1, {width})"
        )
    for folder in ("one", "two", "one"):
        build(f"only_{folder}:net", app_dir=tmp_path / folder, model_args={})
        last = [entry for entry in sys.path if Path(entry).parent == tmp_path]
        assert last[0] == str(tmp_path / folder)
    assert sys.path.count(str(tmp_path / "one")) == 1


def test_forward_may_import_from_app_dir_later(app: App, tmp_path: Path) -> None:
    late = app("factor = 3")
    name = app(
        "class Net(nn.Module):\n    def forward(self, x):\n"
        f"        from {late} import factor\n        return x * factor"
    )
    module, _ = build(f"{name}:Net", app_dir=tmp_path, model_args={})
    assert module(torch.tensor(2.0)) == 6


@pytest.mark.parametrize("package", [True, False])
def test_a_module_imported_from_elsewhere_is_not_taken_for_the_one_in_app_dir(
    app: App, tmp_path: Path, package: bool
) -> None:
    name = f"{app('')}_twin"
    for folder, width in (("one", 1), ("two", 2)):
        home = tmp_path / folder / name if package else tmp_path / folder
        home.mkdir(parents=True)
        file = "net.py" if package else f"{name}.py"
        (home / file).write_text(f"from torch import nn\ndef net(): return nn.Linear(1, {width})")
    factory = f"{name}.net:net" if package else f"{name}:net"
    assert build(factory, app_dir=tmp_path / "one", model_args={})[0].out_features == 1
    assert build(factory, app_dir=tmp_path / "one", model_args={})[0].out_features == 1
    error = refusal(factory, tmp_path / "two")
    assert "already imported from" in error.what
    assert "new Python process" in error.fix


def test_a_helper_imported_from_elsewhere_is_noted(app: App, tmp_path: Path) -> None:
    helper = f"{app('')}_helper"
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{helper}.py").touch()
        (tmp_path / folder / f"{helper}_{folder}.py").write_text(
            f"import {helper}\nfrom torch import nn\nnet = nn.Identity\n"
        )
    assert build(f"{helper}_one:net", app_dir=tmp_path / "one", model_args={})[1] == ()
    (note,) = build(f"{helper}_two:net", app_dir=tmp_path / "two", model_args={})[1]
    assert note.startswith(f"{helper} is already imported from {tmp_path / 'one'}")


_COMMAND = """
import sys
from pathlib import Path
from normdeploy.checkpoint import factory, load
from normdeploy.checkpoint.factory import build, usual_app_dir
from normdeploy.errors import InputError
try:
    build("here:net", app_dir={app_dir}, model_args={{}})
    print("built", sys.path[-1])
except InputError as error:
    print(error.what, "|", error.fix)
"""


@pytest.mark.parametrize("start", ["-c", "-m"])
def test_the_current_directory_is_importable_only_as_app_dir(tmp_path: Path, start: str) -> None:
    (tmp_path / "here.py").write_text("from torch import nn\nnet = nn.Identity\n")

    def run(app_dir: str) -> str:
        code = _COMMAND.format(app_dir=app_dir)
        (tmp_path / "command.py").write_text(code)
        command = [sys.executable, "-c", code] if start == "-c" else [sys.executable, "-m", "command"]
        root = str(Path(__file__).parents[2])
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True, env={"PYTHONPATH": root}
        ).stdout

    assert run("None") == (
        "there is no module 'here' on the import path | "
        "add --app-dir .  (the current directory is not on the import path)\n"
    )
    assert run("Path('.')") == f"built {tmp_path}\n"


def test_the_current_folder_is_taken_where_nothing_else_has_the_module(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = app("def net():\n    return nn.Identity()")
    monkeypatch.chdir(tmp_path)
    assert usual_app_dir(f"{name}:net") == Path()
    assert f"--app-dir . is taken: {name} is found in the current folder" in load(f"{name}:net").notes


@pytest.mark.parametrize("name", ["json", "numpy", "torch.nn", "nowhere_at_all"])
def test_the_current_folder_replaces_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name != "nowhere_at_all":
        folder = tmp_path.joinpath(*name.split(".")[:-1])
        folder.mkdir(exist_ok=True)
        (folder / f"{name.rpartition('.')[2]}.py").write_text("raise SystemExit('ran')")
    assert usual_app_dir(f"{name}:net") is None
