"""Which dtype each weight, activation and norm is deployed in: precision lives in the graph, and is made here.

``to_precision`` turns a float32 graph into one that computes in float16 or bfloat16:

- **Inputs and outputs stay float32**, with one Cast at each border, so code that serves the model needs no change.
- Every value between is 16-bit wherever the operator's own schema, at the model's own opset, allows it.
- **Norms keep float32 statistics.** LayerNormalization, RMSNormalization, and GroupNormalization from opset 21 have
  them built in (``stash_type=1``) and take 16-bit data. Every other norm, a norm spelled out in elementary operators
  among them (mean of squares → root → division), becomes a float32 island: Cast, the operators, Cast. A builder
  fuses such an island into one kernel.
- Arithmetic on integers and masks alone (``(1 - mask) * -3.4e38``) stays float32 up to where it meets an activation,
  and is clipped to the finite range there if one of its constants lies beyond it; so is a mask constant that meets
  activations in an elementwise operator. In 16 bits both would be infinite, and 0 * inf is NaN.
- So does what an index, a size or the angle of a sine is computed by in floats of no activations (rotary and
  sinusoidal positions, timesteps): 2049 is no float16. What operators make by themselves (random numbers, windows), and
  quantized weights whose scale float16 holds with fewer digits, are float32 up to their Cast; so is a product with a
  constant that is that small.
- A scatter that adds up does so in float32: one element after the other, and ONNX Runtime has no 16-bit kernel for it.
- Any other constant that overflows is refused by the name of its module.
- Operators that ONNX does not know, and what goes through sequences, stay float32.

Fold first, convert then: a BatchNormalization inside a float32 island no longer meets its convolution. A weight that
the fold rounded to float32 and this step rounds to 16 bits lies within 0.5001 units in the last place of the exact one.

Loaded when first used: what runs a model asks for the names alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from normdeploy.lazy import loaded_from

if TYPE_CHECKING:
    from normdeploy.precision.kinds import HEAVY as HEAVY
    from normdeploy.precision.kinds import NORMS as NORMS
    from normdeploy.precision.kinds import Precision as Precision
    from normdeploy.precision.model import DTYPES as DTYPES
    from normdeploy.precision.model import to_precision as to_precision
    from normdeploy.precision.model import wrong_precision as wrong_precision
    from normdeploy.precision.norms import averaging as averaging
    from normdeploy.precision.norms import norm_chains as norm_chains

_HOME = {
    "DTYPES": "model",
    "HEAVY": "kinds",
    "NORMS": "kinds",
    "Precision": "kinds",
    "averaging": "norms",
    "norm_chains": "norms",
    "to_precision": "model",
    "wrong_precision": "model",
}
__all__ = ["DTYPES", "HEAVY", "NORMS", "Precision", "averaging", "norm_chains", "to_precision", "wrong_precision"]

__getattr__ = loaded_from(__name__, _HOME)
