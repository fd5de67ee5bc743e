"""One CUDA kernel for LayerNorm and RMSNorm: with a residual in front, scale and bias, and quantization behind.

``variants`` says what a norm is and how its rows are dealt to threads, ``compile`` makes PTX of it, ``launch`` runs it
on tensors, ``reference`` is the same in float64, ``ops`` makes PyTorch operators of it. ``layernorm.cu`` is the kernel.
"""
