"""How relevance goes back through a layer with weights: one small object a rule.

Relevance is kept as a *modified gradient* `G`: the relevance of an activation `a` is `R(a) = a G`.
A rule turns the modified gradient of a layer's output `z` into that of its input `a`, so one
ordinary backward pass carries it through the network. With the layer's own transpose,
`G(a) = Wᵀ G(z)`, that is gradient x input; the others change what is sent back.

A rule is any object that fits `Rule`; there is nothing to inherit and nothing to register.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from flexrel.errors import UsageError
from flexrel.relevance.layer import Affine

_EPSILON, _GAMMA, _POSITIVE_EPSILON = 1e-6, 0.25, 1e-9  # defaults that no name has to tell


@runtime_checkable
class Rule(Protocol):
    """What `calibrate` asks of a rule."""

    @property
    def name(self) -> str:
        """Name in stats; stats of different rules don't add."""

    def __call__(self, layer: Affine, inputs: Tensor, outputs: Tensor, gradient: Tensor) -> Tensor:
        """Return the modified gradient of the layer's inputs.

        Args:
            layer: the call; `layer.forward` and `layer.backward` take any weight of its shape.
            inputs: `a`, as the layer got it.
            outputs: `z = a W + b`. Where a ReLU follows and nothing else reads `z`, it may be
                the ReLU's result: the two differ only where the gradient is zero.
            gradient: `G(z)`, so that `R(z) = z G(z)`. Not to be changed in place.

        Returns:
            `G(a)`, of the inputs' shape: `R(a) = a G(a)`.
        """


@dataclass(frozen=True, slots=True)
class GradientInput:
    """`R(a) = a * dy/da`: sensitivity by gradient times input, the cheapest rule.

    Source:
        Simonyan et al. 2013; Ancona et al. 2018, section 3.
    """

    name: str = "gradient-input"

    def __call__(self, layer: Affine, inputs: Tensor, outputs: Tensor, gradient: Tensor) -> Tensor:
        """Return `Wᵀ G(z)`, by the layer's plain transpose."""
        del outputs
        return layer.backward(gradient, layer.weight, inputs)


@dataclass(frozen=True, slots=True)
class Epsilon:
    """LRP-ε: in proportion to contributions, small outputs damped.

    Attributes:
        epsilon: added to the size of `z`, in its unit.
        share: of the root mean square of `z` that is added too; 0.25 in Montavon et al. 2019.
            It is that of each sample of a convolution, of each row of a linear layer.

    Source:
        Bach et al. 2015, equation 58: `R_j = Σ_k a_j w_jk / (z_k + ε sign z_k) R_k`.
    """

    epsilon: float = _EPSILON
    share: float = 0.0

    def __post_init__(self) -> None:
        for what in ("epsilon", "share"):
            _check_at_least_zero(what, getattr(self, what))

    @property
    def name(self) -> str:
        """Name with what is not the default."""
        shown = "" if self.epsilon == _EPSILON else f"{self.epsilon:g}"
        shown += f" {self.share:g} rms" if self.share else ""
        return f"epsilon({shown.strip()})" if shown else "epsilon"

    def __call__(self, layer: Affine, inputs: Tensor, outputs: Tensor, gradient: Tensor) -> Tensor:
        """Return `Wᵀ (G z / (z + ε sign z))`; an output of 0 sends nothing."""
        size = outputs.abs()  # z / (z + ε sign z) = |z| / (|z| + ε)
        if self.share:
            axes = tuple(range(1, outputs.ndim)) if layer.geometry else (-1,)
            rms = size.square().mean(axes, keepdim=True).sqrt_()
            damped = size + (rms * self.share + self.epsilon)
            damping = size.div_(damped.clamp_(min=torch.finfo(size.dtype).tiny))
        else:
            damping = size.div_(size + self.epsilon) if self.epsilon else size.sign_()
        return layer.backward(gradient * damping, layer.weight, inputs)


@dataclass(frozen=True, slots=True)
class Gamma:
    """LRP-γ: positive contributions count `1 + γ` times; negative outputs likewise mirrored.

    For a positive output, positive contributions are favoured; for a negative one, negative
    contributions. Inputs may have any sign. It takes one more pass forward and one back through
    the layer, with all signs removed (how: ours; `docs/relevance.md`).

    Attributes:
        gamma: at least 0; 0 is LRP-0, large values come near z⁺.

    Source:
        Montavon et al. 2019, section 10.2.1; for inputs and outputs of any sign Andéol et al.
        2021, appendix B.
    """

    gamma: float = _GAMMA

    def __post_init__(self) -> None:
        _check_at_least_zero("gamma", self.gamma)

    @property
    def name(self) -> str:
        """Name with what is not the default."""
        return "gamma" if self.gamma == _GAMMA else f"gamma({self.gamma:g})"

    def __call__(self, layer: Affine, inputs: Tensor, outputs: Tensor, gradient: Tensor) -> Tensor:
        """Return the modified gradient; see the class."""
        half = self.gamma / 2
        weight, bias = layer.weight.abs(), None if layer.bias is None else layer.bias.abs()
        # Of each output, positive and negative contributions: P = (z + q) / 2, N = (z - q) / 2.
        # Both favoured sums are then z (1 + γ/2) + sign(z) q γ/2, of the sign of z.
        denominator = layer.forward(inputs.abs(), weight, bias).mul_(half)
        denominator.add_(outputs.abs(), alpha=1 + half)
        denominator.clamp_(min=torch.finfo(denominator.dtype).tiny)
        sent = gradient * outputs.abs().div_(denominator)  # R / denominator, of either sign
        plain = layer.backward(sent, layer.weight, inputs).mul_(1 + half)
        favoured = layer.backward(sent.mul_(outputs.sign()), weight, inputs)
        return plain.addcmul_(inputs.sign(), favoured, value=half)


@dataclass(frozen=True, slots=True)
class ZPlus:
    """LRP-z⁺ (αβ with α = 1, β = 0): relevance follows positive contributions only.

    Attributes:
        epsilon: added to the sum of positive contributions, in its unit.

    Source:
        Bach et al. 2015, equation 60; Montavon et al. 2017. A positive bias is one of the
        contributions.
    """

    epsilon: float = _POSITIVE_EPSILON

    def __post_init__(self) -> None:
        _check_at_least_zero("epsilon", self.epsilon)

    @property
    def name(self) -> str:
        """Name with what is not the default."""
        return "zplus" if self.epsilon == _POSITIVE_EPSILON else f"zplus({self.epsilon:g})"

    def __call__(self, layer: Affine, inputs: Tensor, outputs: Tensor, gradient: Tensor) -> Tensor:
        """Return the modified gradient; see the class."""
        positive = layer.weight.clamp(min=0)
        bias = None if layer.bias is None else layer.bias.clamp(min=0)
        if bool((inputs >= 0).all()):
            total = layer.forward(inputs, positive, bias)
            return layer.backward(self._sent(outputs, gradient, total), positive, inputs)
        negative = layer.weight.clamp(max=0)
        total = layer.forward(inputs.clamp(min=0), positive, bias)
        total += layer.forward(inputs.clamp(max=0), negative, None)
        sent = self._sent(outputs, gradient, total)
        found = layer.backward(sent, positive, inputs)
        return torch.where(inputs >= 0, found, layer.backward(sent, negative, inputs))

    def _sent(self, outputs: Tensor, gradient: Tensor, total: Tensor) -> Tensor:
        """Return `R / total`: 0 where nothing contributes."""
        total.add_(self.epsilon)
        return (outputs * gradient).div_(total).masked_fill_(total == 0, 0)


@dataclass(frozen=True, slots=True)
class ByDepth:
    """One rule for the layers near the input, others for those further on.

    Attributes:
        steps: `(depth, rule)`, depths rising to 1: a layer takes the first rule whose depth is
            not below its own. The network's first layer has depth 0, its last 1.
        name: in stats.

    Source:
        The idea of a composite by depth: Montavon et al. 2019, section 10.3.
    """

    steps: tuple[tuple[float, Rule], ...]
    name: str

    def __post_init__(self) -> None:
        depths = [depth for depth, _ in self.steps]
        if not depths or depths != sorted(depths) or depths[-1] < 1:
            raise UsageError(f"depths of a composite must rise to 1, but are {depths}")

    def __call__(self, layer: Affine, inputs: Tensor, outputs: Tensor, gradient: Tensor) -> Tensor:
        """Return what the rule of the layer's depth does."""
        rule = next(rule for depth, rule in self.steps if layer.depth <= depth)
        return rule(layer, inputs, outputs, gradient)


@dataclass(frozen=True, slots=True)
class ByName:
    """A rule for layers whose name fits a pattern, another for the rest.

    Attributes:
        patterns: `(pattern, rule)`, as in a shell: `*` is any text. The first that fits holds.
        default: for layers that fit none.
    """

    patterns: tuple[tuple[str, Rule], ...]
    default: Rule

    @property
    def name(self) -> str:
        """All of it in one line."""
        shown = [f"{pattern}: {rule.name}" for pattern, rule in self.patterns]
        return ", ".join([*shown, f"else {self.default.name}"])

    def of(self, layer: str) -> Rule:
        """Return the rule for the layer of this name."""
        fits = (rule for pattern, rule in self.patterns if fnmatchcase(layer, pattern))
        return next(fits, self.default)

    def __call__(self, layer: Affine, inputs: Tensor, outputs: Tensor, gradient: Tensor) -> Tensor:
        """Return what the rule of the first pattern that fits does."""
        return self.of(layer.name)(layer, inputs, outputs, gradient)


@dataclass(frozen=True, slots=True)
class AttnLRP:
    """What AttnLRP's authors use for language models: ε in every layer.

    The rest of AttnLRP, for softmax, products and norms, holds between layers under every rule
    but "gradient-input". For vision transformers the authors use γ in layers: rule "gamma".

    Source:
        Achtibat et al. 2024, sections 3.1 to 3.3.
    """

    name: str = "attnlrp"

    def __call__(self, layer: Affine, inputs: Tensor, outputs: Tensor, gradient: Tensor) -> Tensor:
        """Return what ε does."""
        return Epsilon()(layer, inputs, outputs, gradient)


def _check_at_least_zero(what: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise UsageError(f"{what}={value} of a rule must be a number from 0 on")


# Montavon et al. 2019, section 10.3: γ near the input, ε in the middle, 0 near the output.
_COMPOSITE = ByDepth(
    ((1 / 3, Gamma()), (2 / 3, Epsilon(0.0, share=0.25)), (1.0, Epsilon(0.0))), "composite"
)

_RULES: list[Rule] = [GradientInput(), Epsilon(), Gamma(), ZPlus(), _COMPOSITE, AttnLRP()]
RULES: Mapping[str, Rule] = {rule.name: rule for rule in _RULES}

RuleLike = str | Rule | Mapping[str, "str | Rule"]


def rule_of(given: RuleLike) -> Rule:
    """Return the rule that is asked for.

    Args:
        given: a rule's name, a rule, or a mapping of name patterns of layers to either; layers
            that fit no pattern take "epsilon".

    Raises:
        UsageError: no such rule; lists those that there are.
    """
    if isinstance(given, Mapping):
        patterns = tuple((pattern, rule_of(rule)) for pattern, rule in given.items())
        if any(isinstance(rule, ByName) for _, rule in patterns):
            raise UsageError("a rule for a pattern of names must be one rule, not a mapping")
        return ByName(patterns, RULES["epsilon"])
    if isinstance(given, str):
        if given not in RULES:
            raise UsageError(f"rule {given!r} is not known; there are: {', '.join(RULES)}")
        return RULES[given]
    if not isinstance(given, Rule):
        raise UsageError(
            f"rule= must be a name, a rule or a mapping of name patterns to rules, "
            f"but is a {type(given).__name__}"
        )
    return given
