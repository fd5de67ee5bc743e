"""Files that are read and written weight by weight are those that protobuf knows, to the last field."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from normdeploy import onnxfile
from normdeploy.errors import InputError
from normdeploy.fold import fold
from normdeploy.onnxfile.claims import bitwidth

DTYPES = [np.float32, np.float16, np.float64, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_, ml_dtypes.int4]


@pytest.mark.parametrize(
    "dtype", [each for each in ir.DataType if each not in (ir.DataType.UNDEFINED, ir.DataType.STRING)]
)
def test_every_type_is_as_wide_as_onnx_ir_has_it(dtype: ir.DataType) -> None:
    assert bitwidth(dtype.value) == dtype.bitwidth


def model(*tensors: ir.TensorProtocol) -> ir.Model:
    """An Identity of each of ``tensors``, with every field of a model that an exporter may fill."""
    values, nodes = [], []
    for tensor in tensors:
        value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), const_value=tensor)
        value.shape = ir.Shape(tensor.shape.numpy())
        values.append(value)
        nodes.append(ir.node("Identity", [value], metadata_props={"normdeploy.module": "stem"}))
        output = nodes[-1].outputs[0]
        output.name, output.type, output.shape = f"{tensor.name}_out", value.type, value.shape
    outputs = [node.outputs[0] for node in nodes]
    graph = ir.Graph(
        [], outputs, nodes=nodes, initializers=values, opset_imports={"": 21}, name="g", doc_string="of all"
    )
    graph.metadata_props["graph"] = "its own"
    return ir.Model(graph, ir_version=10, producer_name="normdeploy", metadata_props={"ledger": "none"})


def weights() -> Iterator[ir.TensorProtocol]:
    random = np.random.default_rng(0)
    for index, dtype in enumerate(DTYPES):
        yield ir.Tensor(random.integers(0, 2, (3, index)).astype(dtype), name=f"w{index}", doc_string="a weight")
    yield ir.Tensor(np.float32(0.5), name="scalar", metadata_props={"of": "one"})
    yield ir.StringTensor([b"a", b""], shape=ir.Shape([2]), name="words")
    yield ir.LazyTensor(
        lambda: ir.Tensor(np.ones((2, 2), np.float32)), ir.DataType.FLOAT, ir.Shape([2, 2]), name="lazy"
    )
    yield ir.from_proto(onnx.TensorProto(name="typed", data_type=1, dims=[2], float_data=[1.0, -2.0]))


def same(file: Path, given: ir.Model) -> bool:
    """Whether ``file`` holds what onnx_ir and protobuf would write; typed fields may have become bytes."""
    written, expected = onnx.load_model(file, load_external_data=False), ir.to_proto(given)
    for proto in (written, expected):
        for tensor in proto.graph.initializer:
            if tensor.float_data:
                tensor.raw_data = np.array(tensor.float_data, np.float32).tobytes()
                tensor.ClearField("float_data")
    return bool(written == expected)


def test_every_field_is_what_protobuf_writes(tmp_path: Path) -> None:
    given = model(*weights())
    onnxfile.save(given, tmp_path / "a.onnx")
    assert same(tmp_path / "a.onnx", given)
    onnx.checker.check_model(onnx.load(tmp_path / "a.onnx"), full_check=True)


@pytest.mark.parametrize("size", [0, 1, 31, 32, 4095, 4096, 600_000])
def test_lengths_of_every_number_of_digits(size: int, tmp_path: Path) -> None:
    given = model(ir.Tensor(np.arange(size, dtype=np.float32), name="w"))
    onnxfile.save(given, tmp_path / "a.onnx")
    assert same(tmp_path / "a.onnx", given)


def test_a_weight_bears_the_name_of_its_value(tmp_path: Path) -> None:
    given = model(*weights())
    for value in given.graph.initializers.values():
        assert value.const_value is not None
        value.const_value.name = "another"
    onnxfile.save(given, tmp_path / "a.onnx")
    assert same(tmp_path / "a.onnx", given)


def test_the_model_is_not_changed(tmp_path: Path) -> None:
    given = model(*weights())
    before = ir.to_proto(given).SerializeToString(deterministic=True)
    onnxfile.save(given, tmp_path / "a.onnx")
    assert ir.to_proto(given).SerializeToString(deterministic=True) == before


def test_what_is_written_reads_no_other_file(tmp_path: Path) -> None:
    """A reference to a file by its name would find another model's weights beside the new file, or none."""
    numbers = [weight for weight in weights() if weight.dtype != ir.DataType.STRING]
    (tmp_path / "given").mkdir()
    ir.save(model(*numbers), tmp_path / "given" / "a.onnx", external_data="a.data", size_threshold_bytes=0)
    given = ir.load(tmp_path / "given" / "a.onnx")
    assert any(isinstance(value.const_value, ir.ExternalTensor) for value in given.graph.initializers.values())
    (tmp_path / "a.data").write_bytes(bytes(10_000))
    onnxfile.save(given, tmp_path / "b.onnx")
    for tensor, number in zip(onnx.load(tmp_path / "b.onnx").graph.initializer, numbers, strict=True):
        assert not tensor.external_data
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), number.numpy())


def test_weights_go_beside_the_file_where_that_is_asked(tmp_path: Path) -> None:
    given = model(ir.Tensor(np.ones(900, np.float32), name="w"))
    onnxfile.save(given, tmp_path / "c.onnx", external_data="c.data")
    assert (tmp_path / "c.data").stat().st_size == 3600
    assert (tmp_path / "c.onnx").stat().st_size < 1000
    with pytest.raises(InputError, match="own file"):
        onnxfile.save(given, tmp_path / "d.onnx", external_data="d.onnx")
    assert not (tmp_path / "d.onnx").exists()


def test_initializers_that_are_inputs_and_bodies_stay_what_they_are(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model("""<ir_version: 3, opset_import: ["" : 20]>
        g (bool c, float[2] w) => (float[2] y) <float[2] w = {1, 2}>
        { y = If (c) <then_branch = t () => (float[2] a) <float[2] v = {3, 4}> { a = Add (w, v) },
                      else_branch = e () => (float[2] b) { b = Neg (w) }> }""")
    given = ir.from_proto(proto)
    onnxfile.save(given, tmp_path / "a.onnx")
    assert same(tmp_path / "a.onnx", given)


def test_a_folded_model_is_saved_as_it_is(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 20]>
        g (float[N,2] x) => (float[N,3] y) <float[2,3] w = {1, 2, 3, 4, 5, 6}, float[3] s = {2, 0.5, 4}>
        { m = MatMul (x, w) y = Mul (m, s) }""")
    result = fold(proto)
    result.save(tmp_path / "a.onnx")
    assert same(tmp_path / "a.onnx", result.model)
    assert [node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node] == ["MatMul"]


def test_a_file_of_more_than_2_gigabytes_is_refused_before_it_is_begun(tmp_path: Path) -> None:
    def never() -> ir.Tensor:
        raise AssertionError("it was evaluated")

    weight = ir.LazyTensor(never, ir.DataType.FLOAT, ir.Shape([2**29]), name="huge")
    with pytest.raises(InputError, match="one ONNX file cannot hold"):
        onnxfile.save(model(weight), tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


def test_a_weight_of_another_size_than_it_says_is_an_error(tmp_path: Path) -> None:
    weight = ir.LazyTensor(lambda: ir.Tensor(np.ones(3, np.float32)), ir.DataType.FLOAT, ir.Shape([2]), name="liar")
    with pytest.raises(ValueError, match="liar has 12 bytes and not 8"):
        onnxfile.save(model(weight), tmp_path / "a.onnx")


# -- reading ---------------------------------------------------------------------------------------


def read(load: Callable[[Path], ir.Model], path: Path) -> onnx.ModelProto | type[Exception]:
    """What ``load`` makes of ``path``; the kind of its error where it makes nothing."""
    try:
        return ir.to_proto(load(path))
    except Exception as error:
        return type(error)


def large(dtype: npt.DTypeLike = np.float32) -> ir.Tensor:
    return ir.Tensor(np.arange(6000).reshape(3, 2000).astype(dtype), name="large", doc_string="a large one")


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_read_is_what_onnx_ir_reads(dtype: npt.DTypeLike, tmp_path: Path) -> None:
    onnx.save(ir.to_proto(model(*weights(), large(dtype))), tmp_path / "a.onnx")
    assert read(onnxfile.load, tmp_path / "a.onnx") == read(ir.load, tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("field", "dtype"), [("float_data", np.float32), ("double_data", np.float64), ("int64_data", np.int64)]
)
def test_numbers_in_fields_of_their_own_are_read(field: str, dtype: npt.DTypeLike, tmp_path: Path) -> None:
    proto = ir.to_proto(model(large(dtype)))
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    getattr(tensor, field).extend(large(dtype).numpy().ravel().tolist())
    onnx.save(proto, tmp_path / "a.onnx")
    found = onnxfile.load(tmp_path / "a.onnx").graph.initializers["large"].const_value
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), large(dtype).numpy())


def test_large_weights_stay_in_the_file(tmp_path: Path) -> None:
    onnx.save(ir.to_proto(model(large(), *weights())), tmp_path / "a.onnx")
    array = onnxfile.load(tmp_path / "a.onnx").graph.initializers["large"].const_value
    assert array is not None
    with (tmp_path / "a.onnx").open("r+b") as file:
        at = file.read().index(np.arange(6000, dtype=np.float32).tobytes())
        file.seek(at)
        file.write(np.float32(42).tobytes())
    assert array.numpy()[0, :3].tolist() == [42, 1, 2]


def test_weights_beside_the_file_are_found(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    ir.save(model(large()), tmp_path / "given" / "a.onnx", external_data="a.data")
    found = onnxfile.load(tmp_path / "given" / "a.onnx").graph.initializers["large"].const_value
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), large().numpy())


@pytest.mark.parametrize("external_data", [None, "a.data"])
def test_a_model_may_be_saved_where_it_was_read(external_data: str | None, tmp_path: Path) -> None:
    onnx.save(ir.to_proto(model(large())), tmp_path / "a.onnx")
    onnxfile.save(onnxfile.load(tmp_path / "a.onnx"), tmp_path / "a.onnx", external_data=external_data)
    found = onnxfile.load(tmp_path / "a.onnx").graph.initializers["large"].const_value
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), large().numpy())
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", external_data or "a.onnx"}


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_file_that_changes_under_its_model_is_named(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights would be of two models; where it changes while they are written, nothing is left behind either."""
    onnx.save(ir.to_proto(model(large())), tmp_path / "a.onnx")
    given = onnxfile.load(tmp_path / "a.onnx")

    def change(*_: object) -> None:
        with (tmp_path / "a.onnx").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"x")

    if when == "before":
        change()
    else:
        write = onnxfile.write._write
        monkeypatch.setattr(onnxfile.write, "_write", lambda *args: (write(*args), change()))
    with pytest.raises(InputError, match="was changed while it was in use") as caught:
        onnxfile.save(given, tmp_path / "b.onnx")
    assert caught.value.where == str(tmp_path / "a.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


@pytest.mark.parametrize("name", ["a.onnx", "a.data"])
def test_a_file_that_is_written_to_by_what_sets_its_time_back_is_named(name: str, tmp_path: Path) -> None:
    """As ``cp -p`` does, ``rsync --inplace -t``, and each who restores a backup."""
    ir.save(model(large()), tmp_path / "a.onnx", external_data="a.data" if name == "a.data" else None)
    given, before = onnxfile.load(tmp_path / "a.onnx"), (tmp_path / name).stat()
    time.sleep(0.02)  # the clock of a file system goes in steps
    with (tmp_path / name).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    os.utime(tmp_path / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match="was changed while it was in use"):
        onnxfile.save(given, tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


def test_a_file_that_gets_another_name_is_the_same(tmp_path: Path) -> None:
    ir.save(model(large()), tmp_path / "a.onnx", external_data="a.data")
    given = onnxfile.load(tmp_path / "a.onnx")
    time.sleep(0.02)
    (tmp_path / "link.data").hardlink_to(tmp_path / "a.data")
    onnxfile.save(given, tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx").exists()


def test_a_small_file_is_read_whole_and_may_change(tmp_path: Path) -> None:
    onnx.save(ir.to_proto(model(ir.Tensor(np.ones(3, np.float32), name="small"))), tmp_path / "a.onnx")
    given = onnxfile.load(tmp_path / "a.onnx")
    (tmp_path / "a.onnx").write_bytes(b"another")
    onnxfile.save(given, tmp_path / "b.onnx")
    found = onnxfile.load(tmp_path / "b.onnx").graph.initializers["small"].const_value
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), np.ones(3, np.float32))


@pytest.mark.parametrize("other", [b"", bytes(30_000)])
def test_weights_beside_that_are_replaced_are_still_the_old_ones(other: bytes, tmp_path: Path) -> None:
    ir.save(model(large()), tmp_path / "a.onnx", external_data="a.data")
    given = onnxfile.load(tmp_path / "a.onnx")
    (tmp_path / "a.data").unlink()
    if other:
        (tmp_path / "a.data").write_bytes(other)
    onnxfile.save(given, tmp_path / "b.onnx")
    found = onnxfile.load(tmp_path / "b.onnx").graph.initializers["large"].const_value
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), large().numpy())


@pytest.mark.parametrize("name", ["a.onnx", "a.data"])
def test_weights_that_are_cut_off_are_named(name: str, tmp_path: Path) -> None:
    ir.save(model(large()), tmp_path / "a.onnx", external_data="a.data" if name == "a.data" else None)
    given = onnxfile.load(tmp_path / "a.onnx")
    with (tmp_path / name).open("r+b") as file:
        file.truncate(100)
    weight = given.graph.initializers["large"].const_value
    assert weight is not None
    with pytest.raises(InputError, match="was cut off while it was read") as caught:
        weight.numpy()
    assert caught.value.where == str(tmp_path / name)
    with pytest.raises(InputError, match="was changed while it was in use"):
        onnxfile.save(given, tmp_path / "b.onnx")


def test_the_weights_of_the_given_model_are_not_overwritten(tmp_path: Path) -> None:
    ir.save(model(large()), tmp_path / "a.onnx", external_data="a.data")
    before = (tmp_path / "a.data").read_bytes()
    given = onnxfile.load(tmp_path / "a.onnx")
    with pytest.raises(InputError, match="that the given model has its own in"):
        onnxfile.save(given, tmp_path / "b.onnx", external_data="a.data")
    assert (tmp_path / "a.data").read_bytes() == before
    for _ in range(2):  # in its own place they may
        onnxfile.save(given, tmp_path / "a.onnx", external_data="a.data")
    found = onnxfile.load(tmp_path / "a.onnx").graph.initializers["large"].const_value
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), large().numpy())


def test_weights_take_no_other_files_place(tmp_path: Path) -> None:
    """An older model would be read with the weights of a newer one, until that is in its place; a notebook is lost."""
    onnxfile.save(model(large()), tmp_path / "a.onnx", external_data="a.data")
    (tmp_path / "mine").write_text("notes")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = ir.tensor(large().numpy() + 1, name="large")
    for name in ("a.data", "mine"):
        for target in ("a.onnx", "b.onnx"):
            with pytest.raises(InputError, match="another file has their name"):
                onnxfile.save(model(other), tmp_path / target, external_data=name)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    onnxfile.save(model(large()), tmp_path / "a.onnx", external_data="a.data")  # the very same may stay
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_large_texts_cannot_go_beside_the_file(tmp_path: Path) -> None:
    words = ir.StringTensor(np.array([b"word"] * 500, object), shape=ir.Shape([500]), name="words")
    with pytest.raises(InputError, match="text tensor"):
        onnxfile.save(model(large(), words), tmp_path / "a.onnx", external_data="a.data")
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_read_as_onnx_ir_reads_them(tmp_path: Path) -> None:
    """Cut anywhere, or with any byte another one: the same model, or one error, as always where onnx_ir has one."""
    first = ir.Tensor(large().numpy(), name="large")
    whole = ir.to_proto(model(first, ir.Tensor(np.ones(3, np.float32), name="small"))).SerializeToString()
    weight = whole.index(large().tobytes())
    places = [*range(weight + 40), *range(weight + large().nbytes - 40, len(whole))]
    random = np.random.default_rng(0)
    for place in places:
        other = bytes([whole[place] ^ int(random.integers(1, 256))])
        for damaged in (whole[:place], whole[:place] + other + whole[place + 1 :]):
            (tmp_path / "a.onnx").write_bytes(damaged)
            found, expected = read(onnxfile.load, tmp_path / "a.onnx"), read(ir.load, tmp_path / "a.onnx")
            assert found is InputError or found == expected, place


@pytest.mark.parametrize("end", ["textproto", "json", "onnxtxt"])
def test_texts_are_read_as_onnx_reads_them(end: str, tmp_path: Path) -> None:
    onnx.save(ir.to_proto(model(large(np.int64))), tmp_path / f"a.{end}")
    assert read(onnxfile.load, tmp_path / f"a.{end}") == read(ir.load, tmp_path / f"a.{end}")
    (tmp_path / f"a.{end}").write_text("<")
    with pytest.raises(InputError, match="cannot be read as an ONNX model"):
        onnxfile.load(tmp_path / f"a.{end}")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist") as caught:
        onnxfile.load(tmp_path / "none.onnx")
    assert caught.value.where == str(tmp_path / "none.onnx")
