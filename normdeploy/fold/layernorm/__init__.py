"""LayerNorm down to its core: what is linear in it goes into its neighbours, the division by the RMS stays.

    LN(x) = gamma ⊙ rms(C x) + beta,   C = I - 11ᵀ/N,   rms(z) = z / sqrt(mean(z²) + eps)

``gamma`` and ``beta`` are an affine map on the output and travel down as any other (:mod:`.affine`).
"""
