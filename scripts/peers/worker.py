"""One folder at work: answers jobs, JSON lines on stdin, with JSON lines, in an interpreter that has that folder.

Nothing but the folder, onnx and numpy is imported, and only once: a job's seconds are load, fold and save.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Fold = Callable[[Path, Path], None]


def onnxruntime(level: str) -> Fold:
    """Offline optimization: the session writes what it made of the graph; "all" would add layouts of this CPU."""
    import onnxruntime as ort

    def run(source: Path, target: Path) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4
        options.add_session_config_entry("session.disable_prepacking", "1")  # what is only needed to run takes no time
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])

    return run


def onnxruntime_transformers() -> Fold:
    """ONNX Runtime's optimizer of transformers, in Python."""
    from onnxruntime.transformers.optimizer import optimize_model

    return lambda source, target: optimize_model(str(source)).save_model_to_file(str(target))


def onnxoptimizer() -> Fold:
    """All its fusions and eliminations, which is its default."""
    import onnx
    import onnxoptimizer as library

    return lambda source, target: onnx.save(library.optimize(onnx.load(source)), target)


def onnxsim() -> Fold:
    """Its default."""
    import onnx
    import onnxsim as library

    return lambda source, target: onnx.save(library.simplify(onnx.load(source))[0], target)


def onnxslim() -> Fold:
    """Its default."""
    import onnx
    import onnxslim as library

    return lambda source, target: onnx.save(library.slim(onnx.load(source)), target)


def onnxscript(everything: bool) -> Fold:
    """What torch.onnx.export(optimize=True) runs; with ``everything``, the rules that one has to ask for as well."""
    import onnx_ir as ir
    import onnxscript.optimizer
    from onnxscript import rewriter
    from onnxscript.rewriter.rules import common
    from onnxscript.rewriter.rules.fusion import _layer_norm, _rms_normalization

    extra = [
        *(common.affine_conv_fusion_rule, common.conv_affine_fusion_rule),
        *(common.matmul_add_to_gemm_rule, common.transpose_a_matmul_add_to_gemm_rule),
        *(common.transpose_b_matmul_add_to_gemm_rule, common.transpose_ab_matmul_add_to_gemm_rule),
        *(*common.fuse_hardswish_rules().rules, *common.expand_before_binary_op_rules.rules),
        *(*_layer_norm.layer_normalization_rules, *_rms_normalization.rms_normalization_rules),
    ]

    def run(source: Path, target: Path) -> None:
        model = ir.load(source)
        onnxscript.optimizer.optimize(model)
        if everything:
            rewriter.RewritePass(extra)(model)
            onnxscript.optimizer.optimize(model)
        ir.save(model, target)

    return run


def onnxscript_for_onnxruntime() -> Fold:
    """Its rules for ONNX Runtime, attention and norms above all."""
    import onnx_ir as ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    def run(source: Path, target: Path) -> None:
        model = ir.load(source)
        fused, *_ = optimize_for_ort(model)
        ir.save(fused, target)

    return run


def openvino() -> Fold:
    """The transformations that its converter applies (MOC), into OpenVINO's own format, in float32."""
    import openvino as ov
    from openvino._offline_transformations import apply_moc_transformations

    core = ov.Core()

    def run(source: Path, target: Path) -> None:
        model = core.read_model(source)
        apply_moc_transformations(model, cf=True)
        ov.serialize(model, target)

    return run


def aimet() -> Fold:
    """Its batch norm folding, for quantization in float32."""
    import onnx
    from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight

    def run(source: Path, target: Path) -> None:
        model = onnx.load(source)
        fold_all_batch_norms_to_weight(model)
        onnx.save(model, target)

    return run


def normdeploy(**options: Any) -> Fold:
    """The folder of this repository."""
    from normdeploy.fold import fold

    return lambda source, target: fold(source, **options).save(target)


def nothing() -> Fold:
    """Load and save with onnx_ir, as onnxscript does and normdeploy does but for the saving: the rest is the fold's."""
    import onnx_ir as ir

    return lambda source, target: ir.save(ir.load(source), target)


NOTHING = "onnx_ir, no fold"
CENTRE = "normdeploy, centre, for onnxruntime"

FOLDERS: dict[str, Callable[[], Fold]] = {
    "normdeploy": normdeploy,
    "normdeploy, unvalidated": lambda: normdeploy(validate=False),
    CENTRE: lambda: normdeploy(layernorm="centre", target="onnxruntime"),
    "onnxruntime basic": lambda: onnxruntime("BASIC"),
    "onnxruntime extended": lambda: onnxruntime("EXTENDED"),
    "onnxruntime transformers": onnxruntime_transformers,
    "onnxoptimizer": onnxoptimizer,
    "onnxsim": onnxsim,
    "onnxslim": onnxslim,
    "onnxscript default": lambda: onnxscript(everything=False),
    "onnxscript all rules": lambda: onnxscript(everything=True),
    "onnxscript for onnxruntime": onnxscript_for_onnxruntime,
    "openvino": openvino,
    "aimet": aimet,
    NOTHING: nothing,
}


def openvino_answers(job: dict[str, Any]) -> dict[str, Any]:
    """Only OpenVINO reads its own format: what is left in a folded model, and what it computes on given inputs."""
    import numpy as np
    import openvino as ov

    model = ov.Core().read_model(job["read"])
    precise = {"INFERENCE_PRECISION_HINT": "f32"}
    outputs = [sorted(port.get_names()) for port in model.outputs]
    compiled = ov.compile_model(model, "CPU", precise)
    for feed, answer in job["feeds"]:
        with np.load(feed) as arrays:
            given = {name: arrays[name] for port in model.inputs for name in port.get_names() & set(arrays.files)}
        results = compiled(given)
        np.savez(answer, **{names[0]: results[i] for i, names in enumerate(outputs) if names})
    return {"nodes": [_node(operation) for operation in model.get_ordered_ops()]}


def _node(operation: Any) -> dict[str, Any]:
    """Name, type and the names of what is read, in OpenVINO's words."""
    inputs = [value.get_source_output().get_node().get_friendly_name() for value in operation.inputs()]
    return {"name": operation.get_friendly_name(), "type": operation.get_type_name(), "inputs": inputs}


def main() -> None:
    # The folders print: what they say goes to stderr, and only answers go to the pipe.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    fold = FOLDERS[sys.argv[1]]()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        answer: dict[str, Any]
        try:
            if "read" in job:
                answer = openvino_answers(job)
            else:
                begin, busy = time.perf_counter(), time.process_time()
                fold(Path(job["source"]), Path(job["target"]))
                answer = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - busy}
        except BaseException as error:  # a peer may raise anything; it is its answer
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
