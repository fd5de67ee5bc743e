"""A graph run in float64 by our own hands: what the graph means, without the rounding of any runtime.

Every real value is float64, whatever type the graph gives it, and a cast between real types changes nothing; integers,
booleans, text, complex values and sequences are carried as they are. A weight that was rounded to 16 bits keeps the
value it was rounded to. So what separates this run from the module in float64 is the graph: how it was exported,
cleaned, folded and rounded.

An operator is run by the first that knows it: the tables of this package, the fold's evaluators, the function by which
ONNX defines it, onnx.reference. The tests hold each to a second one: to the cases that the onnx package ships.
"""

from normdeploy.runtime.float64.operators import RANDOM
from normdeploy.runtime.float64.runner import Float64Runner, NoFloat64Error

__all__ = ["RANDOM", "Float64Runner", "NoFloat64Error"]
