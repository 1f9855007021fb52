"""Which network something belongs to, by graph and names; and which tensors, by values."""

import hashlib
import json
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def fingerprint(model: nn.Module) -> str:
    """Return 64 hex digits that are the same for two models of the same graph and names.

    Names and kinds of all modules, the settings that torch's own tell of themselves, and names
    and shapes of all parameters and buffers count;
    values, precision, device and mode don't, so that a model's copies on several devices, and
    before and after training, have one fingerprint.
    """
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    content = {
        "modules": [
            [name, type(m).__qualname__, m.extra_repr() if type(m) in vars(nn).values() else ""]
            for name, m in model.named_modules()
        ],
        "tensors": [[name, list(tensor.shape)] for name, tensor in tensors],
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def digest(tensors: Iterable[tuple[str, Tensor | None]]) -> str:
    """Return 64 hex digits of the names, kinds, shapes and bytes of tensors."""
    sha = hashlib.sha256()
    for name, tensor in tensors:
        if tensor is None:
            continue
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        sha.update(flat.numpy().data)
    return sha.hexdigest()
