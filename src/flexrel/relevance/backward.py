"""Operations whose backward pass is a rule: one autograd function serves them all."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Back = Callable[[Tensor, Tensor, Tensor], Tensor]  # G(outputs), inputs, outputs -> G(inputs)


def modified(inputs: Tensor, outputs: Tensor, back: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `outputs`, through which the backward pass goes to `inputs` by `back`.

    Args:
        inputs: what the modified gradient goes to.
        outputs: a value already computed, attached to no graph; it is the result itself.
        back: from the modified gradient of the outputs to that of the inputs. It is freed, with
            all that it holds on to, once it was called.
    """
    found: Tensor = _Modified.apply(inputs, [outputs], back)  # type: ignore[no-untyped-call]
    return found


class _Modified(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        _: Tensor,
        outputs: list[Tensor],
        back: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.back = back
        found = outputs[0]  # in a list: a result that is an argument could not be overwritten
        if found._is_view():  # noqa: SLF001 - nor could a view; this shares its memory, untracked
            found = torch.ops.aten._unsafe_view.default(found, found.shape)  # noqa: SLF001
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # noqa: ANN401
        back, ctx.back = ctx.back, None
        return back(gradient), None, None


def shared(tensor: Tensor, count: int) -> Tensor:
    """Return the tensor; its modified gradient is divided by `count` on its way back.

    Where an operation is linear in each of `count` operands, each gets an equal share of the
    relevance (Achtibat et al. 2024, section 3.3.2).
    """
    if count == 1:
        return tensor
    return modified(tensor, tensor.detach(), lambda gradient: gradient / count)
