"""Rules of relevance, read aloud from the papers, on layers that are explicit matrices.

`a` are the inputs of a layer `[in]`, `weight` its matrix `[in, out]`, `bias` is `[out]`; relevance
`[out]` comes in, and relevance `[in]` goes out. All of it in float64, one sample at a time.

Sources: Bach et al. 2015 (ε, αβ, pooling), Montavon et al. 2019 and Andéol et al. 2021 (γ),
Achtibat et al. 2024 (softmax, products, norms).
"""

from itertools import product
from math import exp, sqrt

import torch
from torch import nn

from reference import toeplitz


def share_out(contributions, totals, relevance):
    """`R_j = Σ_k c_jk / t_k R_k`; an output whose total is 0 sends nothing."""
    found = torch.zeros(len(contributions), dtype=torch.float64)
    for k, (total, received) in enumerate(zip(totals.tolist(), relevance.tolist(), strict=True)):
        if total != 0:
            found += contributions[:, k] / total * received
    return found


def epsilon(a, weight, bias, relevance, eps=0.0, share=0.0):
    """`z_jk / (z_k + ε sign z_k)`, with `ε = eps + share * rms(z)`."""
    contributions = a[:, None] * weight
    z = contributions.sum(0) + bias
    eps = eps + share * z.square().mean().sqrt()
    return share_out(contributions, z + eps * z.sign(), relevance)


def gamma(a, weight, bias, relevance, factor):
    """Contributions of the output's own sign count `1 + γ` times, the bias's too."""
    contributions = a[:, None] * weight
    z = contributions.sum(0) + bias

    def favoured(terms):
        agrees = terms.sign() == z.sign()
        return torch.where(agrees, (1 + factor) * terms, terms)

    totals = favoured(contributions).sum(0) + favoured(bias)
    return share_out(favoured(contributions), torch.where(z == 0, 0, totals), relevance)


def zplus(a, weight, bias, relevance, eps=0.0):
    """`z_jk⁺ / (Σ_j z_jk⁺ + b_k⁺)`: αβ with α = 1 and β = 0."""
    contributions = (a[:, None] * weight).clamp(min=0)
    return share_out(contributions, contributions.sum(0) + bias.clamp(min=0) + eps, relevance)


def entries(layer, size):
    """All entries of a layer's matrix; a convolution's inputs have the spatial size `size`."""
    if isinstance(layer, nn.Linear):
        rows, columns = map(range, layer.weight.shape)
        return [toeplitz.Entry((j,), (k,), (j, k)) for j, k in product(rows, columns)]
    if layer.transposed:
        return list(transposed_matrix(layer, size))
    return list(toeplitz.matrix(layer, size))


def transposed_matrix(layer, size):
    """A transposed convolution reads its input with zeros put between: those are units too."""
    channels, rows_per_group, *kernel = layer.weight.shape
    per_group = channels // layer.groups
    lengths = [written(layer, axis, length) for axis, length in enumerate(size)]
    for row, position in product(range(layer.out_channels), product(*map(range, lengths))):
        for channel, offset in product(range(per_group), product(*map(range, kernel))):
            column = row // rows_per_group * per_group + channel
            at = [
                stuffed(layer, axis, place, k)
                for axis, (place, k) in enumerate(zip(position, offset, strict=True))
            ]
            inside = all(x is not None and x < length for x, length in zip(at, size, strict=True))
            weight = (column, row % rows_per_group, *offset)
            yield toeplitz.Entry((row, *position), (column, *at) if inside else None, weight)


def written(layer, axis, length):
    """How many outputs a transposed convolution writes along an axis."""
    reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
    spread = (length - 1) * layer.stride[axis] + reach
    return spread - 2 * layer.padding[axis] + layer.output_padding[axis]


def stuffed(layer, axis, place, k):
    """The input position that output `place` reads at kernel position `k`, or None."""
    at = place + layer.padding[axis] - k * layer.dilation[axis]
    whole, left = divmod(at, layer.stride[axis])
    return whole if left == 0 and whole >= 0 else None


def dense(layer, shape):
    """The layer's matrix `[in, out]` and bias `[out]` for one sample of this shape."""
    table = entries(layer, shape[1:])
    rows = {row: at for at, row in enumerate(dict.fromkeys(entry.row for entry in table))}
    columns = {column: at for at, column in enumerate(product(*map(range, shape)))}
    weights = toeplitz.lookup(layer.weight.detach())
    weight = torch.zeros(len(columns), len(rows), dtype=torch.float64)
    for entry in table:
        if entry.column is not None:
            weight[columns[entry.column], rows[entry.row]] += weights[entry.weight]
    bias = torch.zeros(len(rows), dtype=torch.float64)
    if layer.bias is not None:
        bias = torch.stack([layer.bias.detach()[row[0]] for row in rows])
    return weight, bias


def weight_relevance(layer, given, made):
    """`rel(w) = Σ R(a) + R(b)` over the entries that share the weight, summed over samples."""
    found = torch.zeros(layer.weight.shape, dtype=torch.float64)
    table = entries(layer, given.shape[2:])
    for r_in, r_out in zip(given, made, strict=True):
        inputs, results = toeplitz.lookup(r_in), toeplitz.lookup(r_out)
        for entry in table:
            found[entry.weight] += results[entry.row]
            if entry.column is not None:
                found[entry.weight] += inputs[entry.column]
    return found


def norm(x, relevance, weight, bias, eps, *, centred):
    """A norm over all of `x [n]` with its deviation held constant is a matrix."""
    n = len(x)
    mean = x.mean() if centred else 0.0
    deviation = ((x - mean).square().mean() + eps).sqrt()
    matrix = torch.zeros(n, n, dtype=torch.float64)
    for j, i in product(range(n), range(n)):
        matrix[j, i] = ((i == j) - (1 / n if centred else 0)) * weight[i] / deviation
    return epsilon(x, matrix, bias, relevance)


def softmax(x, relevance, shift=None):
    """`R_i = x_i (R_i - s_i Σ_j R_j)` of one row, with `s` the softmax of `x + shift`."""
    shifted = x.tolist() if shift is None else (x + shift).tolist()
    total = sum(exp(value) for value in shifted)
    received = float(relevance.sum())
    rows = zip(x.tolist(), shifted, relevance.tolist(), strict=True)
    sent = [value * (r - exp(moved) / total * received) for value, moved, r in rows]
    return torch.tensor(sent, dtype=torch.float64)


def matmul(left, right, relevance):
    """`R(A_ij) = Σ_p A_ij B_jp / (2 O_ip) R_ip`, and of `B` alike."""
    r_left, r_right = torch.zeros_like(left), torch.zeros_like(right)
    outputs = left @ right
    for i, j, p in product(*map(range, left.shape), range(right.shape[1])):
        sent = left[i, j] * right[j, p] / (2 * outputs[i, p]) * relevance[i, p]
        r_left[i, j] += sent
        r_right[j, p] += sent
    return r_left, r_right


def attention(query, key, value, mask, relevance):
    """Scaled dot products, softmax and a product with the values, of one head of one sample."""
    scores = query @ key.T / sqrt(query.shape[1])
    chances = torch.softmax(scores + mask, dim=1)
    r_chances, r_value = matmul(chances, value, relevance)
    r_scores = torch.stack(
        [softmax(*row) for row in zip(scores, r_chances, mask, strict=True)]  # a mask is a bias
    )
    r_query, r_key = matmul(query, key.T, r_scores)
    return r_query, r_key.T, r_value


def addition(left, right, relevance):
    """Each summand gets its part of the sum."""
    total = left + right
    return left / total * relevance, right / total * relevance


def max_pool(x, relevance, kernel):
    """The winner of each window of `x [n]` takes all; of equals, the first."""
    found = torch.zeros_like(x)
    for at, received in enumerate(relevance):
        window = x[at * kernel : (at + 1) * kernel].tolist()
        found[at * kernel + window.index(max(window))] += received
    return found


def average_pool(x, relevance, kernel):
    """Each unit of a window of `x [n]` gets its part of the window's sum."""
    matrix = torch.zeros(len(x), len(relevance), dtype=torch.float64)
    for at in range(len(relevance)):
        matrix[at * kernel : (at + 1) * kernel, at] = 1 / kernel
    return epsilon(x, matrix, torch.zeros_like(relevance), relevance)
