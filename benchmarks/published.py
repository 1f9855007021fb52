"""Criteria of others, written from their papers, for networks of linear layers and convolutions.

Wanda (Sun et al. 2024), SparseGPT (Frantar and Alistarh 2023) and LAMP (Lee et al. 2021) set single
weights to zero; Pruning by eXplaining (Yeom et al. 2021, Hatefi et al. 2024) orders channels by
relevance alone. The first two were made for the linear layers of transformers' blocks, whatever
comes before or after these left as it is: so are a first convolution and the layer that makes the
outputs here, and a convolution is a linear layer whose inputs are its patches.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from flexrel.relevance import Attribution

DAMPING = 0.01  # of SparseGPT: of the mean of the Hessian's diagonal
BLOCK = 128  # of its columns
ROWS = 4096  # of inputs, drawn of each batch


def layers_of(model):
    """Return the layers whose weights go, by name, in the order of their definition."""
    kinds = nn.Linear | nn.Conv2d
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds)}


def inner_layers(model):
    """Return those that neither read images nor make the outputs."""
    (first, layer), *rest, _ = layers_of(model).items()
    return dict(rest) if isinstance(layer, nn.Conv2d) else {first: layer, **dict(rest)}


def rows_of(layer, inputs):
    """Return the layer's inputs as rows: `[groups, rows, inputs of one output]`."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(1, -1, inputs.shape[-1])
    patches = functional.unfold(
        functional.pad(inputs, [p for side in reversed(layer.padding) for p in (side, side)]),
        layer.kernel_size,
        layer.dilation,
        0,
        layer.stride,
    )
    grouped = patches.unflatten(1, (layer.groups, -1))  # [samples, groups, inputs, positions]
    return grouped.movedim(1, 0).movedim(2, 3).flatten(1, 2)


class _SeenAllError(Exception):
    """The network need not run on."""


def squares_of(model, layers, inputs):
    """Return the second moments of each layer's inputs, summed over rows: `[groups, k, k]`.

    Of token ids, 0 is padding, which is no input.
    """
    found = dict.fromkeys(layers, 0)
    last, real = list(layers)[-1], None

    def note(name, layer, args):
        taken = args[0]
        if real is not None and taken.shape[:2] == real.shape:
            taken = taken[real]
        rows = rows_of(layer, taken)
        rows = rows[:, :: max(1, rows.shape[1] // ROWS)].float()
        found[name] = found[name] + rows.mT @ rows
        if name == last:
            raise _SeenAllError

    handles = [m.register_forward_pre_hook(partial(note, n)) for n, m in layers.items()]
    with torch.inference_mode():
        for batch in inputs:
            real = None if batch.is_floating_point() else batch != 0
            with suppress(_SeenAllError):
                model(batch)
    for handle in handles:
        handle.remove()
    return {name: squares.clone() for name, squares in found.items()}


def wanda_(model, inputs, kept):
    """Keep in every row of every layer the largest products of weight and norm of its input."""
    layers = inner_layers(model)
    squares = squares_of(model, layers, inputs)
    for name, layer in layers.items():
        rows = _rows(layer)  # [groups, outputs, inputs]
        norms = squares[name].diagonal(dim1=1, dim2=2).sqrt()[:, None]
        scores = rows.abs() * norms
        count = max(1, round(kept * rows.shape[2]))
        best = scores.topk(count, dim=2).indices
        mask = torch.zeros_like(rows).scatter_(2, best, 1.0)
        _write_(layer, rows * mask)


def sparsegpt_(model, inputs, kept):
    """Take weights away block of columns by block, and make up for each in the columns after it.

    Layers go one after the other, each with the inputs that the pruned ones before it give.
    """
    for name, layer in inner_layers(model).items():
        squares = squares_of(model, {name: layer}, inputs)[name].double()
        rows = _rows(layer).double()
        made = [_sparse_rows(*pair, kept) for pair in zip(rows, squares, strict=True)]
        _write_(layer, torch.stack(made).float())


def _sparse_rows(rows, squares, kept):
    dead = squares.diagonal() == 0
    squares.diagonal()[dead] = 1
    rows = rows.masked_fill(dead, 0.0)
    squares.diagonal().add_(DAMPING * squares.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(squares))
    upper = torch.linalg.cholesky(inverse, upper=True)
    for start in range(0, rows.shape[1], BLOCK):
        stop = min(start + BLOCK, rows.shape[1])
        scores = (rows[:, start:stop] / upper.diagonal()[start:stop]).square()
        count = round((1 - kept) * scores.numel())
        order = scores.flatten().argsort(stable=True)[:count]
        gone = torch.zeros(scores.numel(), dtype=torch.bool).index_fill_(0, order, 1)
        gone = gone.view(scores.shape)
        errors = torch.empty_like(rows[:, start:stop])
        for column in range(start, stop):
            error = rows[:, column] * gone[:, column - start] / upper[column, column]
            rows[:, column:stop] -= error[:, None] * upper[column, column:stop]
            rows[gone[:, column - start], column] = 0.0
            errors[:, column - start] = error
        rows[:, stop:] -= errors @ upper[start:stop, stop:]
    return rows


def lamp_scores(values):
    """Return each value's square over the sum of those of its tensor that are no smaller."""
    squares = values.detach().flatten().double().square()
    order = squares.argsort(stable=True)
    rest = squares[order].flip(0).cumsum(0).flip(0).clamp(min=1e-300)
    found = torch.empty_like(squares).index_copy_(0, order, squares[order] / rest)
    return found.view_as(values)


def lamp_(model, _inputs, kept):
    """Keep the weights with the largest square over the sum of all squares no smaller."""
    scores = {n: lamp_scores(layer.weight).flatten() for n, layer in layers_of(model).items()}
    whole = torch.cat(list(scores.values()))
    floor = whole.kthvalue(max(1, round((1 - kept) * len(whole)))).values
    for name, layer in layers_of(model).items():
        mask = (scores[name] > floor).view_as(layer.weight)
        with torch.no_grad():
            layer.weight.masked_fill_(~mask, 0.0)


def _rows(layer):
    """Return the weight as `[groups, outputs, inputs]`."""
    groups = getattr(layer, "groups", 1)
    return layer.weight.detach().flatten(1).unflatten(0, (groups, -1))


def _write_(layer, rows):
    with torch.no_grad():
        layer.weight.copy_(rows.reshape(layer.weight.shape))


@dataclass(frozen=True)
class Explained:
    """Pruning by eXplaining: keep the channels with the largest relevance, in absolute value."""

    output: str = "auto"
    name: str = "PbX"

    @property
    def needs(self):
        """Relevance by a composite of LRP rules, as in its authors' work."""
        return frozenset({Attribution("composite", self.output)})

    def scores(self, signals):
        """Yield each channel's relevance: of a sample in absolute value, summed over samples."""
        return (group.relevance("sample") for group in signals)
