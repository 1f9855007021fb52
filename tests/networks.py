"""Small random networks for tests, what a plan may remove of them, and independent counting."""

import copy
import inspect
import itertools
import random

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from flexrel.core.batches import read_batches
from flexrel.core.plan import Plan

SIDE = 8  # pixels of an input image
COLOURS = 3
CLASSES = 3


def unchecked(function):
    """Return a function of the library as users have it, without the type checks of tests."""
    return inspect.unwrap(function)


def batch(inputs):
    """Return inputs as the library reads them."""
    return next(read_batches([inputs], nn.Module()))


def random_(model, seed=0):
    """Fill all parameters and statistics with random numbers, so that no channel is trivial."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.5)
        for module in model.modules():
            for positive in ("running_var", "weight") if is_norm(module) else ():
                if (tensor := getattr(module, positive)) is not None:
                    tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.5)
    return model


def is_norm(module):
    """Whether the module is a batch norm."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def random_plan(graph, seed):
    """Return a plan that keeps each unit of every group by the toss of a coin, at least one."""
    draw = random.Random(seed)  # noqa: S311 - a test's coin
    masks = {}
    for group in graph.groups:
        kept = [draw.random() < 0.5 for _ in range(group.units)]
        kept[draw.randrange(group.units)] = True
        masks[group.name] = torch.tensor(kept).view(group.shape)
    return Plan(graph, masks)


def macs_by_hooks(model, inputs):
    """Count the multiply-adds of one sample while the model runs: outputs times patch size."""
    total = 0

    def count(layer, args, output):
        nonlocal total
        if isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features
        else:
            patch = layer.in_channels // layer.groups * layer.weight[0, 0].numel()
            total += output.numel() * patch

    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    modes = [(module, module.training) for module in model.modules()]
    with torch.no_grad():
        model.eval()(inputs)
    for module, training in modes:
        module.training = training
    for handle in handles:
        handle.remove()
    assert total % len(inputs) == 0
    return total // len(inputs)


def bits(model):
    """Return a deep copy of all that could change of a model: state, modes, hooks, flags."""
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [
            len(hooks)
            for module in model.modules()
            for hooks in (
                module._forward_hooks,
                module._forward_pre_hooks,
                module._backward_hooks,
                module._backward_pre_hooks,
            )
        ],
        [id(tensor) for tensor in (*model.parameters(), *model.buffers())],
    )


def same_bits(one, two):
    """Whether two answers of `bits` agree, NaN and signs of zero included."""
    state, other = one[0], two[0]
    return (
        state.keys() == other.keys()
        and all(
            state[n].dtype == other[n].dtype
            and state[n].shape == other[n].shape
            and state[n]
            .contiguous()
            .flatten()
            .view(torch.uint8)
            .equal(other[n].contiguous().flatten().view(torch.uint8))
            for n in state
        )
        and one[1:3] == two[1:3]
        and all(
            (a is None) == (b is None) and (a is None or torch.equal(a, b))
            for a, b in zip(one[3], two[3], strict=True)
        )
        and one[4:] == two[4:]
    )


def attributes_are_true(model):
    """Check every size attribute against the tensor that it describes."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, nn.modules.conv._ConvNd):
            assert module.weight.shape[0] == module.out_channels
            assert module.weight.shape[1] * module.groups == module.in_channels
            assert module.out_channels % module.groups == 0
        elif is_norm(module):
            vectors = (module.weight, module.bias, module.running_mean, module.running_var)
            assert all(v is None or v.shape == (module.num_features,) for v in vectors)
        if getattr(module, "bias", None) is not None:
            assert len(module.bias) == len(module.weight)


class Witness:
    """Is the same in every copy of a network, and so tells what became of the copies.

    Attributes:
        calls: how many there were.
        failure: what the network raises, if anything, in
        failing: this call of it.
    """

    def __init__(self):
        self.calls, self.failure, self.failing = 0, None, 0

    def __deepcopy__(self, _):
        return self

    def see(self):
        """Count a call."""
        self.calls += 1
        if self.failure is not None and self.calls == self.failing:
            raise self.failure


class Call(nn.Module):
    """A function as a module: the functional spelling of a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Convolutional(nn.Module):
    """All kinds of convolutions, a norm and a sum: images [samples, 3, 8, 8] to five scores."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.up = nn.ConvTranspose2d(12, 6, 2)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        x = x + self.depthwise(x)
        return self.head(self.up(x).relu().mean((2, 3)))


class Residual(nn.Module):
    """A ResNet's basic block: identity, 1x1 convolution, or the paper's parameter-free option A."""

    def __init__(self, channels, hidden, out, stride, shortcut, norm):
        super().__init__()
        self.first = nn.Conv2d(channels, hidden, 3, stride, 1, bias=not norm)
        self.norm = nn.BatchNorm2d(hidden) if norm else nn.Identity()
        self.second = nn.Conv2d(hidden, out, 3, 1, 1)
        self.shortcut = nn.Conv2d(channels, out, 1, stride) if shortcut == "conv" else None
        self.stride, self.extra = stride, out - channels

    def forward(self, x):
        y = self.second(functional.relu(self.norm(self.first(x))))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.stride > 1 or self.extra:
            low = self.extra // 2
            x = functional.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, low, self.extra - low)
            )
        return functional.relu(x + y)


ACTIVATIONS = (
    lambda: Call(lambda x: nn.ReLU(inplace=True)(x * 1)),  # not onto what autograd still needs
    nn.ReLU6,
    nn.Sigmoid,
    nn.GELU,
    nn.Tanh,
    lambda: nn.Dropout(0.5),
    lambda: Call(functional.relu),
    lambda: Call(functional.hardswish),
    lambda: Call(lambda x: x * torch.sigmoid(x)),
    lambda: Call(lambda x: 2 - x / (1 + x.abs())),
    lambda: Call(lambda x: x.clamp(-1.0, 0.7).add_(0.1)),
)
POOLS = (
    lambda: nn.MaxPool2d(2),
    lambda: nn.AvgPool2d(2),
    lambda: Call(lambda x: functional.max_pool2d(x, 3, 1, 1)),
    lambda: Call(lambda x: functional.avg_pool2d(x, 2, 1)),
    lambda: nn.AdaptiveAvgPool2d(2),
    lambda: nn.AdaptiveMaxPool2d((3, 2)),
    lambda: Call(lambda x: functional.adaptive_avg_pool2d(x, (1, 2))),
)
FLATTENS = (
    nn.Flatten,
    lambda: Call(lambda x: torch.flatten(x, 1)),
    lambda: Call(lambda x: x.view(x.shape[0], -1)),
    lambda: Call(lambda x: x.reshape(len(x), -1)),
    lambda: Call(lambda x: x.mean((2, 3))),
    lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
)
few = st.integers(1, 5)  # channels; one channel is a case of its own


def _convolution(draw, channels, side):
    kernel = draw(st.integers(1, min(3, side)))
    stride, padding = draw(st.integers(1, 2)), draw(st.integers(0, 2))
    return nn.Conv2d(channels, draw(few), kernel, stride, padding, bias=draw(st.booleans()))


def _depthwise(draw, channels, side):
    return nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=draw(st.booleans()))


def _grouped(draw, channels, side):
    groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
    return nn.Conv2d(channels, groups * draw(st.integers(1, 2)), 1, groups=groups)


def _norm(draw, channels, side):
    return nn.BatchNorm2d(channels, affine=draw(st.booleans()))


def _pool(draw, channels, side):
    return draw(st.sampled_from(POOLS))() if side >= 2 else nn.Identity()


def _residual(draw, channels, side):
    shortcut = draw(st.sampled_from(["identity", "conv", "option A"]))
    if shortcut == "identity":
        return Residual(channels, draw(few), channels, 1, shortcut, draw(st.booleans()))
    out, stride = channels + draw(st.integers(0, 3)), draw(st.integers(1, 2))
    return Residual(channels, draw(few), out, stride, shortcut, draw(st.booleans()))


def _activation(draw):
    return draw(st.sampled_from([nn.Identity, *ACTIVATIONS]))()


BLOCKS = (_convolution, _convolution, _depthwise, _grouped, _norm, _pool, _residual)


@st.composite
def networks(draw):
    """A random convolutional network, as a module that takes [batch, COLOURS, SIDE, SIDE]."""
    parts, x = [], torch.zeros(2, COLOURS, SIDE, SIDE)

    def add(part):
        nonlocal x
        with torch.no_grad():
            x = part.eval()(x)
        parts.append(part)

    for _ in range(draw(st.integers(1, 5))):
        add(draw(st.sampled_from(BLOCKS))(draw, x.shape[1], min(x.shape[2:])))
        add(_activation(draw))
    add(draw(st.sampled_from(FLATTENS))())
    for _ in range(draw(st.integers(0, 2))):
        add(nn.Linear(x.shape[1], draw(few), bias=draw(st.booleans())))
        if draw(st.booleans()):
            add(nn.BatchNorm1d(x.shape[1], affine=draw(st.booleans())))
        add(_activation(draw))
    add(nn.Linear(x.shape[1], CLASSES))
    return random_(nn.Sequential(*parts).double(), draw(st.integers(0, 99)))


def images(count=2, seed=0):
    """Return random images in double precision."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, COLOURS, SIDE, SIDE, generator=draw, dtype=torch.float64)


def masked(model, plan):
    """The slow twin of a cut: the units' entries zeroed one by one, all shapes kept.

    Only readers are touched: whatever a removed unit is, nothing reads it.
    """
    twin = copy.deepcopy(model)
    tensors = dict(twin.named_parameters())
    with torch.no_grad():
        for group in plan.graph.groups:
            for part, unit in itertools.product(group.members, range(group.units)):
                if part.reads and not plan.masks[group.name][unit]:
                    for at in part.index[unit].tolist():
                        tensors[part.tensor].select(part.axis, at).zero_()
    return twin


# --- what can't be followed, or not all the way -------------------------------------------------


@torch.library.custom_op("flexrel_tests::relu", mutates_args=())
def misnamed_relu(x: torch.Tensor) -> torch.Tensor:
    """Mix the channels under a name that another library uses for an elementwise operation."""
    return x.cumsum(1)


class Mixer(nn.Module):
    """A layer and a function of it and its input."""

    def __init__(self, layer, function):
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x):
        return self.function(self.layer, x)


class Owner(nn.Module):
    """A parameter and a function of it and the input."""

    def __init__(self, shape, function):
        super().__init__()
        self.weight, self.function = nn.Parameter(torch.zeros(shape)), function

    def forward(self, x):
        return self.function(self.weight, x)


def _written(x):
    out = torch.zeros(len(x), 2 * x.shape[1], *x.shape[2:], dtype=x.dtype)
    out[:, : x.shape[1]] = x
    out[:, x.shape[1] :] = x.relu()
    return out


def _shuffled(x):
    n, c, *side = x.shape
    groups = 2 if c % 2 == 0 else 1
    return x.view(n, groups, c // groups, *side).transpose(1, 2).reshape(n, c, *side)


def _zeroed(x):
    x = x.clone()
    x[:, 0] = 0
    return x


def _by_numpy(x):
    return x * float(x.detach().numpy()[:, -1].mean())


def _fed_with(constant):
    return Mixer(conv(constant.shape[1], 4), lambda f, x: f(x) * f(constant.to(x)))


def conv(channels, out=None, **options):
    return nn.Conv2d(channels, out or channels, 1, **options)


class NormedOnTheWay(nn.Module):
    """A convolution that makes its weight in `forward`, as weight norm does."""

    def __init__(self, channels, out):
        super().__init__()
        layer = conv(channels, out)
        self.g, self.v, self.bias = nn.Parameter(torch.ones(out, 1, 1, 1)), layer.weight, layer.bias

    def forward(self, x):
        return functional.conv2d(x, torch._weight_norm(self.v, self.g, 0), self.bias)


# Each makes a part for `channels` channels from [batch, channels, side, side].
WILD = {
    "cat with itself": lambda c: Call(lambda x: torch.cat([x, x.relu()], 1)),
    "cat with a layer": lambda c: Mixer(conv(c, 3), lambda f, x: torch.cat([f(x), x], 1)),
    "cat over samples": lambda c: Call(lambda x: torch.cat([x, x], 0)[: len(x)]),
    "chunk": lambda c: Call(lambda x: x.chunk(2, 1)[0] if x.shape[1] > 1 else x),
    "gated halves": lambda c: Mixer(
        conv(c, 2 * c), lambda f, x: torch.mul(*f(x).chunk(2, dim=1)).sigmoid()
    ),
    "permute there and back": lambda c: Call(
        lambda x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2)
    ),
    "linear on the last axis": lambda c: nn.Sequential(
        nn.AdaptiveAvgPool2d(4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 5)
    ),
    "convolution over made columns": lambda c: Mixer(
        nn.ModuleList([nn.Linear(2, 4), nn.Linear(4, 2), nn.Conv2d(c, 4, (1, 4))]),
        lambda f, x: f[2](h := f[0](x[..., :2])) * f[1](h).mean(),
    ),
    "pool over made columns": lambda c: Mixer(
        nn.ModuleList([nn.Linear(2, 4), nn.Linear(4, 2)]),
        lambda f, x: functional.max_pool2d(h := f[0](x[..., :2]), (1, 3)) * f[1](h).mean(),
    ),
    "convolution over made samples": lambda c: Mixer(
        nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 1), conv(c)]),
        lambda f, x: (
            f[2](h := f[0](x.movedim(0, -1)).movedim(-1, 0)) + f[1](h.movedim(0, -1)).sum()
        ),
    ),
    "linear on channels last": lambda c: Mixer(
        nn.Linear(c, 4), lambda f, x: f(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    ),
    "cumsum": lambda c: Call(lambda x: torch.cumsum(x, 1)),
    "cumsum in place": lambda c: Call(lambda x: x.clone().cumsum_(1)),
    "custom operation": lambda c: Call(lambda x: misnamed_relu(x + 0)),
    "softmax": lambda c: Call(lambda x: x.softmax(1)),
    "flip": lambda c: Call(lambda x: x.flip(1)),
    "roll": lambda c: Call(lambda x: x.roll(1, 1)),
    "shift by padding": lambda c: Call(lambda x: functional.pad(x, (0, 0, 0, 0, 1, -1))),
    "every other channel": lambda c: Call(lambda x: x[:, ::2]),
    "one channel": lambda c: Call(lambda x: x[:, -1:]),
    "channels by index": lambda c: Call(lambda x: x[:, [0, -1, 0]]),
    "written into zeros": lambda c: Call(_written),
    "first channel zeroed": lambda c: Call(_zeroed),
    "channel shuffle": lambda c: Call(_shuffled),
    "pixel unshuffle": lambda c: Call(lambda x: functional.pixel_unshuffle(x[..., :2, :2], 2)),
    "einsum": lambda c: Owner((4, c), lambda w, x: torch.einsum("dc,nchw->ndhw", w, x)),
    "bilinear": lambda c: Call(lambda x: torch.einsum("nchw,ndhw->ncd", x, x)[..., None]),
    "attention": lambda c: Call(
        lambda x: functional.scaled_dot_product_attention(*[x.flatten(2)] * 3).view(x.shape)
    ),
    "group norm": lambda c: nn.GroupNorm(1, c),
    "instance norm": lambda c: nn.InstanceNorm2d(c, affine=True),
    "batch statistics": lambda c: nn.BatchNorm2d(c, track_running_stats=False),
    "layer norm": lambda c: Call(lambda x: functional.layer_norm(x, x.shape[1:])),
    "prelu": nn.PReLU,
    "squeeze and excite": lambda c: Mixer(
        nn.Sequential(nn.Linear(c, 3), nn.ReLU(), nn.Linear(3, c), nn.Sigmoid()),
        lambda f, x: x * f(x.mean((2, 3)))[:, :, None, None],
    ),
    "channel mean": lambda c: Call(lambda x: x - x.mean(1, keepdim=True)),
    "channel maximum": lambda c: Call(lambda x: x / (1 + x.abs().amax(1, keepdim=True))),
    "global norm": lambda c: Call(lambda x: x / (1 + x.norm())),
    "its own number of channels": lambda c: Call(lambda x: x / x.shape[1]),
    "a size written down": lambda c: Call(lambda x: x.view(-1, c, *x.shape[2:])),
    "an assertion of its size": lambda c: Call(lambda x: x if x.shape[1] == c else 1 / 0),
    "numpy": lambda c: Call(_by_numpy),
    "where": lambda c: Call(lambda x: torch.where(x > 0, x, x.exp() - 1)),
    "tensor exponent": lambda c: Owner(
        (c, 1, 1), lambda w, x: torch.pow(x.abs() + 1, w.clamp(0, 1))
    ),
    "tensor bound": lambda c: Owner((c, 1, 1), lambda w, x: torch.clamp(x, max=w)),
    "scale and shift": lambda c: Owner((c, 1, 1), lambda w, x: x * w + w),
    "scale by view": lambda c: Owner((c,), lambda w, x: x * w.view(1, -1, 1, 1)),
    "computed scale, then the scale": lambda c: Owner(
        (c, 1, 1), lambda w, x: (x * w.exp()).relu() + 0 * (w.sum() if c > 1 else 0) * w
    ),
    "transposed convolution": lambda c: nn.ConvTranspose2d(c, 4, 1),
    "upsampling": lambda c: nn.Upsample(scale_factor=2),
    "weight norm": lambda c: NormedOnTheWay(c, 4),
    "standardised weight": lambda c: Mixer(
        conv(c, 4), lambda f, x: functional.conv2d(x, f.weight - f.weight.mean(), f.bias)
    ),
    "functional convolution": lambda c: Mixer(
        conv(c, 4), lambda f, x: functional.conv2d(x, f.weight, f.bias)
    ),
    "a layer used twice": lambda c: Mixer(conv(c), lambda f, x: f(f(x).relu())),
    "a layer used beside itself": lambda c: Mixer(conv(c, 4), lambda f, x: f(x) * f(x.relu())),
    "a layer fed with a constant too": lambda c: _fed_with(torch.ones(1, c, 1, 1)),
    "a weight used as a number": lambda c: Mixer(
        conv(c, 4), lambda f, x: f(x) * f.weight.square().mean()
    ),
    "a weight first copied": lambda c: Mixer(
        conv(c, 4), lambda f, x: functional.conv2d(x, f.weight.tanh()) + f(x)
    ),
    "dynamic convolution": lambda c: Mixer(
        nn.Sequential(conv(c, 4), nn.ReLU()),
        lambda f, x: (
            functional.conv2d(x, f[0](x).mean((2, 3))[:1, : x.shape[1], None, None])
            if c <= 4
            else f(x)
        ),
    ),
    "addmm onto a layer": lambda c: Mixer(
        nn.ModuleList([nn.Linear(c, 4), nn.Linear(c, 4), nn.Linear(4, 4)]),
        lambda f, x: (
            torch.addmm(h := f[0](x.mean((2, 3))), x.amax((2, 3)), f[1].weight.t())[
                :, :, None, None
            ]
            * f[2](h).sum()
        ),
    ),
}

# What Python does with sizes and values no trace can see; only trying a cut shows it.
PYTHON = {
    "its own number of channels",
    "a size written down",
    "an assertion of its size",
    "numpy",
}


class Several(nn.Module):
    """Parts, and around them layers that could be cut if the parts were harmless."""

    def __init__(self, names):
        super().__init__()
        self.stem = nn.Conv2d(COLOURS, 5, 3, 1, 1)
        parts, x = [], torch.zeros(2, 5, SIDE, SIDE)
        for name in names:
            around = [nn.AdaptiveAvgPool2d(SIDE), nn.Conv2d(x.shape[1], 4, 1), nn.BatchNorm2d(4)]
            parts.append(nn.Sequential(*around, nn.Sigmoid(), WILD[name](4)).eval())
            with torch.no_grad():
                x = parts[-1](x)
        self.parts = nn.Sequential(*parts)
        self.head = nn.Conv2d(x.shape[1], 4, 1)
        self.last = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.last(self.head(self.parts(self.stem(x))).tanh().mean((2, 3)))


@st.composite
def wild_networks(draw):
    """A network of one to three parts that can't be followed, or only with care."""
    names = draw(st.lists(st.sampled_from(sorted(WILD.keys() - PYTHON)), min_size=1, max_size=3))
    return random_(Several(names).double(), draw(st.integers(0, 99)))
