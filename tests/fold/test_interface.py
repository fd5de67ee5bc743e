"""What a model declares stays declared, and what comes out of a fold is valid before anyone gets it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from harness import bn, fill, folded, norm, op_types, parsed
from onnx import helper, numpy_helper
from support import says

from normdeploy import onnxfile
from normdeploy.errors import InputError, NormdeployError
from normdeploy.fold import closing, fold, rewrite
from normdeploy.fold.graph.edits import Edit
from normdeploy.fold.graph.state import take_over
from normdeploy.fold.proof import commute
from normdeploy.fold.proof.stored import require_stored

Patch = pytest.MonkeyPatch
CONV_NORM = f"float[4,4,1,1] w, {bn(4)}"
IMAGE = "float[2,4,6,6]"


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(item) for item in session.run(None, feeds)]


def spelled(
    body: str, *, weights: str = CONV_NORM, inputs: str = f"{IMAGE} x", outputs: str = f"{IMAGE} y"
) -> onnx.ModelProto:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) <{weights}> {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    fill(proto.graph)
    return proto


def agrees(proto: onnx.ModelProto, **options: object) -> onnx.ModelProto:
    """``proto`` folded, which loads in ONNX Runtime and computes the same there."""
    new, ledger = folded(proto, **options)
    assert not ledger.dropped
    rng = np.random.default_rng(1)
    feeds = {"x": rng.standard_normal((2, 4, 6, 6)).astype(np.float32)}
    if len(proto.graph.input) > 1:
        feeds["k"] = np.asarray(True)
    for right, got in zip(run(proto, feeds), run(new, feeds), strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-5)
    return new


# -- types -----------------------------------------------------------------------------------------

INDEX = ", int64 i = {0}"
FOLDS = "c = Conv (x, w)\n" + norm("c", "n")
SEQUENCES = {
    "a sequence of one value twice":
        "s = SequenceConstruct (x, x)\n a = SequenceAt (s, i)\n c = Conv (a, w)\n" + norm("c", "y"),
    "the parts of a split":
        "s = SplitToSequence <axis = 0> (x)\n a = SequenceAt (s, i)\n c = Conv (a, w)\n" + norm("c", "n")
        + "y = Concat <axis = 0> (n, n)",
    "a sequence of what was folded": FOLDS + "s = SequenceConstruct (n, n)\n y = SequenceAt (s, i)",
    "an optional": FOLDS + "o = Optional (n)\n y = OptionalGetElement (o)",
}  # fmt: skip


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_and_optionals_stay_what_they_are(name: str) -> None:
    proto = spelled(SEQUENCES[name], weights=CONV_NORM + INDEX)
    new = agrees(proto)
    assert op_types(new)["BatchNormalization"] == 0
    kinds = {
        info.name: info.type.WhichOneof("value") for info in onnx.shape_inference.infer_shapes(proto).graph.value_info
    }
    for info in new.graph.value_info:
        assert info.type.WhichOneof("value") == kinds.get(info.name, "tensor_type"), info.name


def test_an_output_that_is_a_sequence_stays_one() -> None:
    proto = spelled(
        "c = Conv (x, w)\n" + norm("c", "n") + "y = SequenceConstruct (n, n)", outputs="seq(float[2,4,6,6]) y"
    )
    new, _ = folded(proto)
    assert new.graph.output[0].type == proto.graph.output[0].type
    assert op_types(new) == {"Conv": 1, "SequenceConstruct": 1}


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv (x, w)\n" + norm("c", "y"),
        "c = Conv (x, w)\n d = Mul (c, k)\n y = Add (d, k)",
        "c = Conv (x, w)\n d = Conv (x, v)\n y = Add (c, d)",
        "c = Conv (x, w)\n n = Mul (c, k)\n" + norm("n", "y"),
    ],
)
def test_named_dimensions_of_outputs_stay_named(body: str) -> None:
    proto = spelled(
        body, inputs="float[batch,4,H,W] x", outputs="float[batch,4,height,width] y",
        weights=CONV_NORM + ", float[4,1,1] k, float[4,4,1,1] v",
    )  # fmt: skip
    new, _ = folded(proto)
    assert [node.op_type for node in new.graph.node] == ["Conv"]
    assert new.graph.output == proto.graph.output
    assert new.graph.input == proto.graph.input


def test_declared_shapes_inside_stay_and_are_only_added_to() -> None:
    body = "c = Conv (x, w)\n r = Sigmoid (c)\n d = Conv (r, w)\n" + norm("d", "y")
    proto = spelled(body, inputs="float[batch,4,6,6] x", outputs="float[batch,4,6,6] y")
    declared = helper.make_tensor_value_info("r", 1, ["rows", None, 6, "side"])
    proto.graph.value_info.append(declared)
    new, _ = folded(proto)
    (found,) = (info for info in new.graph.value_info if info.name == "r")
    dims = [dim.dim_param or dim.dim_value for dim in found.type.tensor_type.shape.dim]
    assert dims[0] == "rows"
    assert dims[1] in (0, 4)
    assert dims[2:] == [6, "side"]


def test_a_negative_size_is_an_unknown_one() -> None:
    """As Paddle declares them."""
    weights = CONV_NORM + ", int64[3] to = {0, 4, -1}, float[4,1] k"
    proto = spelled(
        "c = Conv (x, w)\n r = Reshape (c, to)\n y = Mul (r, k)", weights=weights, outputs="float[2,4,36] y"
    )
    proto.graph.value_info.append(helper.make_tensor_value_info("c", 1, [-1, 4, -1, -1]))
    result = fold(proto)
    assert not result.ledger.dropped
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 4, 6, 6)).astype(np.float32)}
    (right,), (got,) = run(proto, feeds), run(ir.to_proto(result.model), feeds)
    np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-5)


# -- borders ---------------------------------------------------------------------------------------

BODIES = {
    "two outer convolutions": ("c1 = Conv (x, w)\n c2 = Conv (x, v)", "t = Add (c1, c2)"),
    "an outer convolution and its input": ("c1 = Conv (x, w)", "t = Add (c1, x)"),
    "an outer and an inner convolution": ("c1 = Conv (x, w)", "c2 = Conv (x, v)\n t = Add (c1, c2)"),
    "an outer convolution and an inner norm": ("c1 = Conv (x, w)", norm("x", "n") + "t = Add (c1, n)"),
    "an inner convolution of an outer one": ("c1 = Conv (x, w)", "c2 = Conv (c1, v)\n t = Add (c2, c1)"),
    "an inner convolution of an outer input": ("c1 = Relu (x)", "c2 = Conv (x, v)\n t = Add (c2, x)"),
    "a norm of an outer convolution": ("c1 = Conv (x, w)", norm("c1", "t")),
    "an identity of an outer value": ("c1 = Conv (x, w)", "t = Mul (c1, one)"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_returns_its_own_values(name: str) -> None:
    outer, inner = BODIES[name]
    body = f"""{outer} y = If (k) <then_branch = a () => ({IMAGE} t) {{ {inner} }},
      else_branch = b () => ({IMAGE} e) {{ e = Relu (x) }}>"""
    proto = spelled(body, inputs=f"{IMAGE} x, bool k", weights=CONV_NORM + ", float[4,4,1,1] v, float one = {1}")
    agrees(proto)


def test_a_number_in_a_body_that_becomes_a_vector_stays_one() -> None:
    """As Silero's voice detector has it: the size of a state, put together inside of an If."""
    body = f"""y = If (k) <then_branch = a () => ({IMAGE} t) {{
        n = Constant <value = int64 {{4}}> ()  at = Constant <value = int64[1] {{0}}> ()  h = Unsqueeze (n, at)
        q = Shape (x)  b = Gather (q, zero)  v = Unsqueeze (b, at)  s = Concat <axis = 0> (v, h, rest)
        f = Reshape (x, s)  c = Conv (f, w) {norm("c", "t")} }},
      else_branch = b () => ({IMAGE} e) {{ e = Relu (x) }}>"""
    weights = CONV_NORM + ", int64 zero = {0}, int64[2] rest = {6, 6}"
    agrees(spelled(body, inputs=f"{IMAGE} x, bool k", weights=weights))


def test_what_is_said_of_a_bodys_output_is_true() -> None:
    body = f"""y = If (k) <then_branch = a () => ({IMAGE} t) {{ s = Sigmoid (x) {norm("s", "t")} }},
      else_branch = b () => ({IMAGE} e) {{ e = Relu (x) }}>"""
    _, ledger = folded(spelled(body, inputs=f"{IMAGE} x, bool k"))
    (entry,) = ledger
    assert says(entry, "NF002")
    assert "of the model" not in entry.reason


# -- what is read ----------------------------------------------------------------------------------


def sparse_model(*, constant: bool, coordinates: bool) -> tuple[onnx.ModelProto, np.ndarray]:
    w = np.zeros((4, 3), np.float32)
    w[0, 1], w[2, 0], w[3, 2] = 2, -1, 0.5
    places = np.argwhere(w) if coordinates else np.flatnonzero(w)
    values = numpy_helper.from_array(w[w != 0], "w")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(places.astype(np.int64), "at"), [4, 3])
    head = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,3] y)'
    proto = parsed(f"{head} <float[4,3] w, {bn(3)}> {{ c = MatMul (x, w) {norm('c', 'y')} }}")
    kept = [tensor for tensor in proto.graph.initializer if tensor.name != "w"]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    if constant:
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse))
    else:
        proto.graph.sparse_initializer.append(sparse)
    return proto, w


@pytest.mark.parametrize("coordinates", [True, False])
@pytest.mark.parametrize("constant", [True, False])
def test_sparse_weights_are_read(constant: bool, coordinates: bool, tmp_path: Path) -> None:
    proto, w = sparse_model(constant=constant, coordinates=coordinates)
    onnx.save(proto, tmp_path / "given.onnx")
    held = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}
    x = np.random.default_rng(0).standard_normal((2, 4))
    factor = held["gamma"] / np.sqrt(held["var"] + 1e-5)
    right = (x @ w - held["mean"]) * factor + held["beta"]
    for given in (proto, tmp_path / "given.onnx"):
        new = ir.to_proto(fold(given).model)
        assert "BatchNormalization" not in op_types(new)
        (got,) = run(new, {"x": x.astype(np.float32)})
        np.testing.assert_allclose(got, right, rtol=1e-5, atol=1e-5)


def test_a_sparse_weight_that_asks_for_too_much_is_refused(tmp_path: Path) -> None:
    proto, _ = sparse_model(constant=False, coordinates=False)
    proto.graph.sparse_initializer[0].dims[:] = [1 << 20, 1 << 20]
    with pytest.raises(InputError, match="too large to be made dense"):
        fold(proto)


ZIPPED = """<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 1]> g (float[N,3] x)
    => (seq(map(int64, float)) y, float[N,3] z)
    <float[3,3] w, float[3] gamma, float[3] beta, float[3] mean, float[3] var>
    { c = MatMul (x, w)  z = BatchNormalization (c, gamma, beta, mean, var)
      y = ai.onnx.ml.ZipMap <classlabels_int64s = [1, 2, 3]> (z) }"""


@pytest.mark.parametrize("beside", [None, "weights"])
@pytest.mark.parametrize("where", ["message", "file", "ir"])
def test_outputs_that_are_sequences_of_maps_stay_so(where: str, beside: str | None, tmp_path: Path) -> None:
    proto = parsed(ZIPPED)
    onnx.save(proto, tmp_path / "given.onnx")
    given = {"message": proto, "file": tmp_path / "given.onnx", "ir": onnxfile.load(tmp_path / "given.onnx")}[where]
    fold(given).save(tmp_path / "out.onnx", external_data=beside)
    new = onnx.load(tmp_path / "out.onnx")
    assert [info.SerializeToString() for info in new.graph.output] == [
        info.SerializeToString() for info in proto.graph.output
    ]
    assert "BatchNormalization" not in op_types(new)
    onnx.checker.check_model(new, full_check=True)
    x = np.random.default_rng(2).standard_normal((4, 3)).astype(np.float32)
    runs = [onnxruntime.InferenceSession(each, providers=["CPUExecutionProvider"]).run(None, {"x": x})
            for each in (str(tmp_path / "given.onnx"), str(tmp_path / "out.onnx"))]  # fmt: skip
    for before, after in zip(runs[0][0], runs[1][0], strict=True):
        assert before == pytest.approx(after, rel=1e-5, abs=1e-5)


def test_a_map_in_a_body_is_refused_with_what_helps() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 1]> g (float[N,3] x, bool k)
      => (seq(map(int64, float)) y) { y = If (k) <
        then_branch = a () => (seq(map(int64, float)) p) { p = ai.onnx.ml.ZipMap <classlabels_int64s = [1, 2, 3]> (x) },
        else_branch = b () => (seq(map(int64, float)) q) { q = ai.onnx.ml.ZipMap <classlabels_int64s = [1, 2, 3]> (x) }
      > }"""
    with pytest.raises(InputError, match="a map, and in the body of a node such types cannot be kept") as caught:
        fold(onnx.parser.parse_model(text))
    assert "zipmap" in caught.value.fix


# -- what comes out --------------------------------------------------------------------------------


def test_a_model_that_came_out_invalid_is_not_handed_out(monkeypatch: Patch, tmp_path: Path) -> None:
    """A planted mistake of the writer: the names of two values become one."""
    proto = spelled("c = Conv (x, w)\n r = Sigmoid (c)\n d = Conv (r, w)\n" + norm("d", "y"))

    def wrong(value: ir.Value, output: ir.Value) -> None:
        take_over(value, output)
        producer = value.producer()
        assert producer is not None
        producer.op_type = "Convolution"

    monkeypatch.setattr(rewrite, "take_over", wrong)
    with pytest.raises(
        NormdeployError, match="the fold made a mistake, and nothing is written: the model is not valid"
    ) as e:
        fold(proto)
    assert not isinstance(e.value, InputError)


HIDDEN = "float[5,6] w, float[5] b, int64[1] two = {2}, int64[1] rest = {6}"
UNFIT = {
    "MatMul read [6, 4] and [5, 6]": "y = MatMul (h, w)",
    "Gemm read [6, 4] and [5, 6]": "r = Relu (h)\n y = Gemm (r, w)",
    "Add read [6, 4] and [5]": "y = Add (h, b)",
    "Concat read [N, 12] and [6, 4]": "y = Concat <axis = 0> (x, h)",
}


@pytest.mark.parametrize("said", UNFIT)
def test_sizes_that_constants_hide_and_that_fit_nowhere_are_the_models_fault(said: str) -> None:
    """What no checker evaluates: ONNX Runtime loads such a model, and stops where it runs."""
    body = f"k = Mul (two, two)\n s = Concat <axis = 0> (rest, k)\n h = Reshape (x, s)\n {UNFIT[said]}"
    proto = spelled(body, weights=HIDDEN, inputs="float[N,12] x", outputs="float[A,B] y")
    onnx.checker.check_model(proto, full_check=True)
    with pytest.raises(Exception, match="Non-zero status code"):
        run(proto, {"x": np.ones((2, 12), np.float32)})
    with pytest.raises(InputError, match=f"the given model cannot run: .* make {re.escape(said)}") as caught:
        fold(proto)
    assert caught.value.where == "y"


def test_a_mistake_in_the_sizes_of_a_fold_is_not_the_models_fault(monkeypatch: Patch) -> None:
    proto = spelled("c = Conv (x, w)\n r = Sigmoid (c)\n d = Conv (r, w)\n" + norm("d", "y"))

    def wrong(value: ir.Value, output: ir.Value) -> None:
        take_over(value, output)
        producer = value.producer()
        assert producer is not None
        producer.attributes["strides"] = ir.AttrInt64s("strides", [2, 2])

    monkeypatch.setattr(rewrite, "take_over", wrong)
    with pytest.raises(
        NormdeployError, match="the fold made a mistake, and nothing is written: the model is not valid"
    ) as e:
        fold(proto)
    assert not isinstance(e.value, InputError)
    assert "--keep '*'" in e.value.fix
    assert not fold(proto, keep=["*"]).ledger.dropped


def test_an_output_whose_type_changed_is_not_handed_out(monkeypatch: Patch) -> None:
    proto = spelled("c = Conv (x, w)\n" + norm("c", "y"), outputs="float[2,channels,6,6] y")

    def wrong(value: ir.Value, output: ir.Value) -> None:
        value.name, value.type = output.name, ir.TensorType(ir.DataType.DOUBLE)

    monkeypatch.setattr(rewrite, "take_over", wrong)
    with pytest.raises(NormdeployError, match="the declared outputs of the model changed"):
        fold(proto)


def test_what_the_checker_has_against_the_given_model_is_not_the_folds() -> None:
    """ONNX Runtime takes what its own domain knows; the checker does not know every attribute."""
    proto = spelled("c = Conv (x, w)\n" + norm("c", "n") + "y = Relu (n)")
    proto.graph.node[-1].attribute.append(helper.make_attribute("unheard_of", 1))
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(proto, full_check=True)
    result = fold(proto)
    assert [node.op_type for node in result.model.graph] == ["Conv", "Relu"]


def test_the_size_of_weights_is_no_matter_to_the_check() -> None:
    proto = spelled("c = Conv (x, w)\n" + norm("c", "y"))
    light = closing.light(ir.from_proto(proto))
    assert not any(len(tensor.raw_data) > 1000 for tensor in light.graph.initializer)
    onnx.checker.check_model(light, full_check=True)


# -- the second formula ----------------------------------------------------------------------------

MISTAKES = {
    "a factor a ten-thousandth off": lambda array: array * 1.0001,
    "one element off in its last places": lambda array: array + 1e-5 * (np.indices(array.shape).sum(0) == 3),
    "rows in reverse": lambda array: array[::-1],
    "a lost shift": lambda array: array - array.mean(),
}


@pytest.mark.parametrize("proven", [True, False])
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_what_is_stored_is_seen(name: str, proven: bool, monkeypatch: Patch) -> None:
    """The evaluation of edits is wrong, and the proof, which shares it, sees nothing: the second formula does."""
    right = Edit._evaluate

    def wrong(self: Edit, original: np.ndarray | None, part: object, into: np.ndarray) -> np.ndarray:
        array = right(self, original, part, into)  # type: ignore[arg-type]
        if array.ndim == 4:
            array[...] = MISTAKES[name](array.copy())
        return array

    proto = spelled("c = Conv (x, w)\n" + norm("c", "y"))
    monkeypatch.setattr(Edit, "_evaluate", wrong)
    if not proven:
        monkeypatch.setattr(commute, "residual", lambda *_: 0.0)
        with pytest.raises(NormdeployError, match="are not as proven"):
            fold(proto)
    else:
        try:
            result = fold(proto)
        except NormdeployError:
            return
        assert [node.op_type for node in result.model.graph] == ["Conv", "BatchNormalization"]


KINDS = {"float16": ir.DataType.FLOAT16, "float32": ir.DataType.FLOAT, "float64": ir.DataType.DOUBLE,
         "bfloat16": ir.DataType.BFLOAT16}  # fmt: skip


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("centred", [None, 0, 1])
def test_the_second_formula_takes_what_is_right_and_sees_what_is_not(dtype: str, centred: int | None) -> None:
    rng, kind = np.random.default_rng(0), KINDS[dtype]
    weight = rng.standard_normal((7, 5, 3)).astype(kind.numpy())
    edit = Edit(ir.tensor(weight, dtype=kind), kind)
    edit = edit.scaled(left=rng.standard_normal((7, 1, 1)), right=rng.standard_normal((5, 1)))
    edit = edit.shifted(rng.standard_normal((7, 1, 1)))
    if centred is not None:
        edit = edit.without_mean(centred)
    require_stored(edit, edit.rounded())
    off = edit.rounded().copy()
    step = {"float16": 3e-3, "float32": 5e-7, "float64": 1e-12, "bfloat16": 3e-2}[dtype]
    off[3, 2, 1] = np.float64(off[3, 2, 1]) * (1.0 + step)
    with pytest.raises(NormdeployError, match="1 numbers of"):
        require_stored(edit, off)


@pytest.mark.parametrize("dtype", KINDS)
def test_the_second_formula_sees_what_overflowed(dtype: str) -> None:
    kind = KINDS[dtype]
    large = {"float16": 6e4, "float32": 3e38, "float64": 1.7e308, "bfloat16": 3e38}[dtype]
    edit = Edit(ir.tensor(np.full((2, 3), large).astype(kind.numpy()), dtype=kind), kind).scaled(left=np.array(16.0))
    with pytest.raises(NormdeployError, match="6 numbers of"):
        require_stored(edit, np.full((2, 3), np.inf).astype(kind.numpy()))


def test_saved_and_read_again(tmp_path: Path) -> None:
    proto = spelled("c = Conv (x, w)\n" + norm("c", "y"), outputs="float[2,4,high,wide] y")
    fold(proto).save(tmp_path / "new.onnx")
    assert onnx.load(tmp_path / "new.onnx").graph.output == proto.graph.output
    assert onnxfile.load(tmp_path / "new.onnx").graph.outputs[0].name == "y"


# -- training_info ---------------------------------------------------------------------------------


def trained() -> onnx.ModelProto:
    """A convolution and a norm, with the algorithm that trains the weight: a step against its sign."""
    proto = spelled("c = Conv (x, w)\n" + norm("c", "y"))
    info = proto.training_info.add()
    info.algorithm.CopyFrom(
        helper.make_graph(
            [helper.make_node("Sign", ["w"], ["s"]), helper.make_node("Sub", ["w", "s"], ["w_new"])], "step", [],
            [helper.make_tensor_value_info("w_new", onnx.TensorProto.FLOAT, [4, 4, 1, 1])],
        )
    )  # fmt: skip
    info.update_binding.add(key="w", value="w_new")
    return proto


@pytest.mark.parametrize("as_file", [True, False])
def test_training_info_is_taken_out_and_that_is_said(as_file: bool, tmp_path: Path) -> None:
    proto = trained()
    onnx.save(proto, tmp_path / "given.onnx")
    result = fold(tmp_path / "given.onnx" if as_file else proto)
    assert [note.code for note in result.ledger.notes] == ["NF417"]
    assert [entry.outcome for entry in result.ledger] == ["folded"]
    result.save(tmp_path / "new.onnx")
    new = onnx.load(tmp_path / "new.onnx")
    assert not new.training_info
    assert len(proto.training_info) == 1
    onnx.checker.check_model(new, full_check=True)
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 4, 6, 6)).astype(np.float32)}
    np.testing.assert_allclose(run(new, feeds)[0], run(proto, feeds)[0], rtol=1e-4, atol=1e-5)


def test_training_info_is_spoken_of_where_nothing_folds_too() -> None:
    proto = trained()
    del proto.graph.node[1]
    proto.graph.node[0].output[0] = "y"
    assert [note.code for note in fold(proto).ledger.notes] == ["NF417"]
    assert not fold(ir.from_proto(proto)).ledger.notes  # onnx_ir has taken it out before
