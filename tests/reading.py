"""What is read of a network, in forms that tests compare."""

import torch
from torch import nn

from flexrel.structure import analyse
from networks import (
    COLOURS,
    batch,
)

LAYERS = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
image = torch.zeros(2, COLOURS, 8, 8)


def read(model, inputs=image, granularity="channel", keep=()):
    return analyse(model, batch(inputs), granularity, keep)


def named_groups(graph):
    return {group.name: group for group in graph.groups}


def members_of(group):
    """Return (tensor, axis) -> role, and the entries of each unit."""
    return {(p.tensor, p.axis): (p.role, p.index.tolist()) for p in group.members}


def stripes(units, inner):
    """Return the entries of each unit where it has `inner` in a row."""
    return [list(range(unit * inner, (unit + 1) * inner)) for unit in range(units)]


def reasons(graph):
    found = {p.name: p.reason for p in graph.protected}
    assert len(found) == len(graph.protected), "a layer is protected twice"
    return found


def chain(*between, out=4):
    """A network whose first layer could be cut if what stands between were harmless."""
    return nn.Sequential(nn.Conv2d(COLOURS, 4, 3, 1, 1), *between, nn.Conv2d(out, 2, 1))


def check_that_every_layer_is_accounted_for(model, graph):
    tensors = {id(p): name for name, p in model.named_parameters()}
    layers = {
        n: tensors.get(id(m.weight)) for n, m in model.named_modules() if isinstance(m, LAYERS)
    }
    members = [member for group in graph.groups for member in group.members]
    cut = {member.tensor for member in members if member.axis == 0 or member.makes}
    alone = reasons(graph)
    for name, weight in layers.items():
        assert (name in alone) != (weight in cut), f"{name} must be cut or protected, not both"
    assert all(alone.values())
