"""Which network something belongs to: its structure and names, not its values."""

import hashlib
import json

from torch import nn


def fingerprint(model: nn.Module) -> str:
    """Return 64 hex digits that are the same for two models of the same structure and names.

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
