"""N:M and blocks by their definition: every entry of a weight is put into its group, in loops."""

import itertools
from collections import defaultdict


def places(layer):
    """Yield each entry's index, its output, its input within the convolution's group, and where
    in the kernel it is, counted row by row."""
    weight, groups = layer.weight, getattr(layer, "groups", 1)
    transposed = "Transpose" in type(layer).__name__
    kernel = list(itertools.product(*map(range, weight.shape[2:])))
    for index in itertools.product(*map(range, weight.shape)):
        first, second, *where = index
        output, one = first, second
        if transposed:
            inputs = weight.shape[0] // groups
            group, one = divmod(first, inputs)
            output = group * weight.shape[1] + second
        yield index, output, one, kernel.index(tuple(where))


def sizes(layer):
    """Return how many outputs there are, and how many inputs each has."""
    entries = list(places(layer))
    return 1 + max(e[1] for e in entries), 1 + max(e[2] for e in entries)


def kept_of_groups(layer, scores, kept, of):
    """Return the indices of the entries that N:M keeps."""
    _, inputs = sizes(layer)
    keep, groups = set(), defaultdict(list)
    for index, output, one, where in places(layer):
        if one >= inputs // of * of:
            keep.add(index)  # left over at the end
        else:
            groups[output, where, one // of].append((-scores[index].item(), one, index))
    for group in groups.values():
        assert len(group) == of
        keep |= {index for _, _, index in sorted(group)[:kept]}
    return keep


def blocks(layer, rows, columns):
    """Return the indices of the entries of each block, block by block, row of blocks by row."""
    outputs, inputs = sizes(layer)
    of_one_group = outputs // getattr(layer, "groups", 1)
    found = defaultdict(list)
    for index, output, one, where in places(layer):
        group, row = divmod(output, of_one_group)
        found[group, row // rows, (where * inputs + one) // columns].append(index)
    return [found[key] for key in sorted(found)]
