"""Other folders of ONNX graphs, and what they make of the same graphs."""
