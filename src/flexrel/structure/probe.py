"""Trying a cut: does the network with channels removed compute what it does with them zeroed?

A trace can't see what Python does with sizes: `x.view(-1, 320)` runs on the network it was
written for and on no smaller one. So cuts are tried before they are offered, and the one that
is made is checked again before it is returned.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from flexrel.batches import Batch
from flexrel.errors import ModelError
from flexrel.records import Plan, Site, Structure
from flexrel.running import call, reason, tensors_of, undisturbed
from flexrel.structure.cut import mask_, shrink_

_AGREE = 1e-4  # largest difference of outputs, as a share of the largest, dense or masked


def duplicate(model: nn.Module) -> nn.Module:
    """Return a deep copy of the model.

    Raises:
        ModelError: it can't be copied.
    """
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"the model can't be copied: {reason(error)}") from error


def disagreement(model: nn.Module, pruned: nn.Module, plan: Plan, example: Batch) -> str | None:
    """Return how the pruned network's outputs differ from the masked model's; None: they agree.

    Args:
        model: that the plan's structure was read from; not changed.
        pruned: the plan carried out on a copy of it.
        plan: says which units are zeroed in the masked model.
        example: one or two samples.

    Raises:
        ModelError: a network does not run on the example.
    """
    masked = duplicate(model)
    mask_(masked, plan)
    dense, expected, found = (_outputs(network, example) for network in (model, masked, pruned))
    if len(expected) != len(found):
        return f"the cut network returns {len(found)} tensors, the masked one {len(expected)}"
    for whole, want, have in zip(dense, expected, found, strict=True):
        if want.shape != have.shape:
            return f"the cut network returns {list(have.shape)}, the masked one {list(want.shape)}"
        if want.numel() == 0:
            continue
        apart = float(torch.where(want == have, 0.0, want - have).abs().max())  # inf agrees
        largest = max(float(t.nan_to_num(0.0, 0.0, 0.0).abs().max()) for t in (whole, want))
        if not apart <= _AGREE * largest:
            return f"the cut network's outputs differ from the masked one's by {apart:.3g}"
    return None


def probe(
    model: nn.Module, example: Batch, structure: Structure
) -> tuple[tuple[Site, ...], dict[str, str]]:
    """Return the sites whose channels can be removed, and why the others' can't, by name.

    Args:
        model: is copied and cut by one channel at every site; site by site if that fails.
        example: one or two samples.
        structure: of granularity "channel", as the trace shows it.
    """
    if not structure.sites or _failure(model, example, structure, structure.sites) is None:
        return structure.sites, {}
    good: tuple[Site, ...] = ()
    failed: dict[str, str] = {}
    for site in structure.sites:
        failure = _failure(model, example, structure, (*good, site))
        if failure is None:
            good += (site,)
        else:
            failed[site.name] = f"a cut of it was tried and failed: {failure}"
    return good, failed


def _failure(
    model: nn.Module, example: Batch, structure: Structure, sites: Sequence[Site]
) -> str | None:
    masks = {site.name: torch.arange(site.units) < site.units - 1 for site in sites}
    plan = Plan(replace(structure, sites=tuple(sites)), masks)
    pruned = duplicate(model)
    shrink_(pruned, plan)
    try:
        return disagreement(model, pruned, plan, example)
    except ModelError as error:
        return str(error)


def _outputs(network: nn.Module, example: Batch) -> list[Tensor]:
    with undisturbed(network), torch.no_grad():
        return [tensor.float() for tensor in tensors_of(call(network, example))]
