"""Scores as the paper and our docstrings define them, one unit at a time.

Layers are dicts of lists: `magnitude` and `relevance`, one number a unit. Arithmetic is
Python's, in float64.
"""

from itertools import product


def weight_relevance(group, part):
    """`rel(w_jk) = r_in[k] + r_out[j]` of a linear layer, row by row."""
    inputs, outputs = (parts_of(group, side, part) for side in ("input", "output"))
    return [r_in + r_out for r_out, r_in in product(outputs, inputs)]


def parts_of(group, side, part):
    """The sums of one part: `positive = (sum + absolute) / 2`."""
    plain = getattr(group, side).tolist()
    absolute = getattr(group, f"{side}_absolute").tolist()
    halves = [(p + a) / 2 for p, a in zip(plain, absolute, strict=True)]
    # Of one position a sample, as these are, the absolute value of their sum is that of each.
    return {"sum": plain, "positive": halves, "absolute": absolute, "sample": absolute}[part]


def sum_blend(layers, delta, scale):
    """`(1 - delta) * M + delta * R`, each brought to the common scale first."""
    magnitudes = brought([layer["magnitude"] for layer in layers], scale)
    relevances = brought([layer["relevance"] for layer in layers], scale)
    return [
        [(1 - delta) * m + delta * r for m, r in zip(*both, strict=True)]
        for both in zip(magnitudes, relevances, strict=True)
    ]


def brought(layers, scale):
    """Each layer's numbers on the common scale."""
    everything = [value for layer in layers for value in layer]
    return [[on_scale(value, layer, everything, scale) for value in layer] for layer in layers]


def on_scale(value, layer, everything, scale):
    if scale == "rank":  # how many distinct values of the layer are smaller
        distinct = set(layer)
        return sum(other < value for other in distinct) / max(len(distinct) - 1, 1)
    if scale == "mean":  # multiples of the layer's mean absolute value
        mean = sum(abs(other) for other in layer) / len(layer)
        return value / mean if mean > 0 else value
    if scale == "cost":  # of weights, which cost the same each: multiples of the network's mean
        mean = sum(abs(other) for other in everything) / len(everything)
        return value / mean if mean > 0 else value
    among = everything if scale == "network" else layer
    low, high = min(among), max(among)
    return (value - low) / (high - low) if high > low else 0.0


def product_blend(layers, delta):
    """`M^(1 - delta) * (R / mean of the layer's R)^delta`."""
    blended = []
    for layer in layers:
        mean = sum(layer["relevance"]) / len(layer["relevance"])
        relative = [r / mean if mean > 0 else r for r in layer["relevance"]]
        pairs = zip(layer["magnitude"], relative, strict=True)
        blended.append([m ** (1 - delta) * r**delta for m, r in pairs])
    return blended
