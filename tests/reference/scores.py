"""Scores of single weights as the paper and our docstrings define them, one weight at a time.

Layers are dicts of lists: `magnitude` and `relevance`, one number a weight. Arithmetic is
Python's, in float64.
"""

from itertools import product


def weight_relevance(layer):
    """`rel(w_jk) = r_in[k] + r_out[j]` of a linear layer's positive relevance, row by row."""
    inputs = positive(layer.input, layer.input_absolute)
    outputs = positive(layer.output, layer.output_absolute)
    return [r_in + r_out for r_out, r_in in product(outputs, inputs)]


def positive(sums, absolutes):
    """Sums of the positive terms: half of what all terms and their absolute values add up to."""
    return [(s + a) / 2 for s, a in zip(sums.tolist(), absolutes.tolist(), strict=True)]


def sum_blend(layers, delta):
    """`(1 - delta) * M + delta * R`, each min-max normalised over the network first."""
    magnitudes = min_max([layer["magnitude"] for layer in layers])
    relevances = min_max([layer["relevance"] for layer in layers])
    return [
        [(1 - delta) * m + delta * r for m, r in zip(*both, strict=True)]
        for both in zip(magnitudes, relevances, strict=True)
    ]


def min_max(layers):
    """Each layer's numbers in [0, 1], from the least of all layers to the largest."""
    everything = [value for layer in layers for value in layer]
    low, high = min(everything), max(everything)
    span = high - low if high > low else 1.0
    return [[(value - low) / span for value in layer] for layer in layers]


def product_blend(layers, delta):
    """`M^(1 - delta) * (R / mean of the layer's R)^delta`."""
    blended = []
    for layer in layers:
        mean = sum(layer["relevance"]) / len(layer["relevance"])
        relative = [r / mean if mean > 0 else r for r in layer["relevance"]]
        pairs = zip(layer["magnitude"], relative, strict=True)
        blended.append([m ** (1 - delta) * r**delta for m, r in pairs])
    return blended
