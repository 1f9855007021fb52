"""Whether tensors fit a recurrent layer together."""

from collections.abc import Mapping

from torch import Tensor, nn

from flexrel.errors import UsageError
from flexrel.structure import RecurrentLayer, gates_of


def check_recurrent(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse sizes that a recurrent layer can't have: torch reads beyond its weights, unchecked.

    All layers and directions have as many units, and both directions read as many inputs.

    Args:
        model: has the layers.
        tensors: all of its state, by name.
        source: said in errors.

    Raises:
        UsageError: a tensor does not fit the others of its layer.
    """
    for path, module in model.named_modules():
        if not isinstance(module, RecurrentLayer):
            continue
        shapes = {
            name.rpartition(".")[2]: list(tensors[name].shape)
            for name, _ in module.named_parameters(path, recurse=False)
        }
        rows, state = next(shape for key, shape in shapes.items() if key.startswith("weight_hh"))
        inputs = next(shape[1] for key, shape in shapes.items() if key.startswith("weight_ih"))
        units = rows // gates_of(module)
        below = state * (2 if getattr(module, "bidirectional", False) else 1)
        for key, shape in shapes.items():
            kind, _, layer = key.partition("_l")
            wanted = [gates_of(module) * units]
            if kind == "weight_ih":
                wanted.append(inputs if layer in ("", "0", "0_reverse") else below)
            elif kind == "weight_hh":
                wanted.append(state if getattr(module, "proj_size", 0) else units)
            elif kind == "weight_hr":
                wanted = [state, units]
            if shape != wanted or not units:
                name = f"{path}.{key}".removeprefix(".")
                raise UsageError(
                    f"{source} does not fit the model: {name} is {shape}, and {path or 'it'}, "
                    f"{type(module).__name__} of {units} units, takes {wanted}"
                )
