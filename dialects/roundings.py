"""Where a norm rounds, by name; needs no MLIR, so that options can name it."""

WEIGHT_ROUNDINGS = ("before", "after")
"""Whether the normed value is rounded before the weight multiplies it, or after that alone."""

QUANTIZE_ROUNDINGS = ("value", "f32")
"""Whether what is quantized is the value, rounded to its type, or what that is rounded from; the
first is what a program does that quantizes apart."""
