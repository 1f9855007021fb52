"""The latency kit of a network: what another device times, so that it can be pruned for it."""

from pathlib import Path

import torch
from torch import nn

from flexrel.core.batches import RawBatches
from flexrel.core.caches import uncached
from flexrel.core.latency import Latency
from flexrel.core.network import plain_network
from flexrel.core.running import duplicate, fingerprint
from flexrel.io import DENSE, write_kit
from flexrel.pruning.data import calibration_data
from flexrel.pruning.even import even_plans
from flexrel.pruning.options import PruneOptions
from flexrel.pruning.request import requested
from flexrel.pruning.sources import Sources
from flexrel.pruning.width_grid import MULTIPLES, grid_points, half_points, layer_widths
from flexrel.structure import apply
from flexrel.tracing import layer_works


@torch.inference_mode(mode=False)
def latency_kit(
    model: nn.Module,
    path: str | Path,
    *,
    calibration: RawBatches,
    batch: int = 1,
    granularity: str = "channel",
    multiple_of: int = 1,
) -> int:
    """Write a kit for `flexrel-edge profile`, which times it on a device in onnxruntime.

    It holds layers at widths, the network and cuts of it, all with constants for weights, as times
    do not depend on them. What is measured goes into `Latency(..., profile=...)`.

    Args:
        model: as in `prune`; never changed.
        path: of the zip; written whole or not at all.
        calibration: of which the first batch is enough: it has the inputs' sizes.
        batch: samples a call.
        granularity: "channel", "head" or "depth".
        multiple_of: that widths will be rounded up to; 1: what is found to be fast.

    Returns:
        How many layers and networks are in it.

    Raises:
        UsageError: the request or the data are wrong, or the extra "export" is missing.
        ModelError: the network can't be analysed or exported.
    """
    budget = Latency("100%", "onnxruntime", batch)
    request = requested(
        evaluate=None,
        target=None,
        budgets=budget,
        criterion="magnitude",
        granularity=granularity,
        recover="none",
        values="float32",
        keep=(),
        seed=0,
        options=PruneOptions(multiple_of=multiple_of),
    )
    network = uncached(plain_network(model).network)
    data = calibration_data(network, calibration, fits=False)
    target = Sources(network, data, request).first()
    works = layer_works(target.network, target.examples[0])
    halved = multiple_of == 1
    layers = layer_widths(works, target.graph, halved=halved)
    points = [*half_points(layers)]
    for multiple in MULTIPLES if halved else (multiple_of,):
        points += grid_points(layers, multiple)
    networks = {DENSE: constant(target.network)}
    for name, plan in even_plans(target.graph):
        networks[name] = constant(apply(target.network, plan))
    named = fingerprint(target.network)
    return write_kit(path, networks, points, data.first, budget, named)


def constant(network: nn.Module) -> nn.Module:
    """Return a copy whose weights are constants that let activations neither grow nor vanish."""
    copied = duplicate(network)
    with torch.no_grad():
        for name, tensor in (*copied.named_parameters(), *copied.named_buffers()):
            if tensor.is_floating_point():
                scales = name.endswith(("weight", "var"))
                tensor.fill_(tensor.shape[0] / tensor.numel() if tensor.ndim > 1 else float(scales))
    return copied
