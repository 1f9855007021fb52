"""One small network of each kind that is cut in its own way, for what must hold for all of them."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from networks import Residual, random_


class Grouped(nn.Module):
    """A ResNeXt-like block: the middle convolution is cut by whole groups."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.reduce = nn.Conv2d(8, 12, 1)
        self.norm1 = nn.BatchNorm2d(12)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=4, bias=False)
        self.norm2 = nn.BatchNorm2d(12)
        self.expand = nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        y = functional.relu(self.norm1(self.reduce(x)))
        y = functional.relu(self.norm2(self.grouped(y)))
        return self.head(functional.relu(x + self.expand(y)).mean((2, 3)))


class Normed(nn.Module):
    """Group norms, whose channels go by whole groups."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.GroupNorm(4, 12)
        self.second = nn.Conv2d(12, 8, 3, padding=1)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        x = functional.silu(self.norm(self.first(x)))
        return self.last(functional.relu(self.second(x)).mean((2, 3)))


class Attention(nn.Module):
    """Self-attention that reshapes by its own numbers: of heads, and of features in all heads."""

    def __init__(self, width, heads):
        super().__init__()
        self.num_heads, self.head_dim, self.all_heads = heads, width // heads, width
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(n, t, self.all_heads))


class Transformer(nn.Module):
    """One block on patches of an image, with a class token and positions."""

    def __init__(self, width=20, heads=4):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 5, width))
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.grow, self.shrink = nn.Linear(width, 14), nn.Linear(14, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        x = x + self.attention(self.norm1(x))
        x = x + self.shrink(functional.gelu(self.grow(self.norm2(x))))
        return self.head(x[:, 0])


class Dense(nn.Module):
    """DenseNet-like: each layer reads all that came before it, concatenated."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(6 + 4 * at), nn.ReLU(), nn.Conv2d(6 + 4 * at, 4, 3, padding=1)
            )
            for at in range(3)
        )
        self.norm = nn.BatchNorm2d(18)
        self.head = nn.Linear(18, 3)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(functional.relu(self.norm(x)).mean((2, 3)))


class Residuals(nn.Module):
    """Two stages of residual blocks, with a projection between them, and a flattened end."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.blocks = nn.Sequential(
            Residual(6, 5, 6, 1, "identity", norm=True),
            Residual(6, 7, 10, 2, "conv", norm=True),
            Residual(10, 6, 10, 1, "identity", norm=True),
        )
        self.head = nn.Linear(40, 3)

    def forward(self, x):
        x = self.blocks(functional.relu(self.norm(self.stem(x))))
        return self.head(functional.adaptive_avg_pool2d(x, 2).flatten(1))


class Transposed(nn.Module):
    """Down and up again, the way up by transposed convolutions, one of them in groups."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 8, 4, 2, 1)
        self.up = nn.ConvTranspose2d(8, 6, 4, 2, 1)
        self.grouped = nn.ConvTranspose2d(6, 12, 3, 1, 1, groups=3)
        self.last = nn.Conv2d(12, 3, 1)

    def forward(self, x):
        x = functional.relu(self.grouped(functional.relu(self.up(functional.relu(self.down(x))))))
        return self.last(x).mean((2, 3))


class Separable(nn.Module):
    """Depthwise convolutions, and norms that have no parameters, some not even statistics."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.norm1 = nn.BatchNorm2d(8, affine=False)
        self.doubled = nn.Conv2d(8, 16, 3, groups=8)
        self.norm2 = nn.InstanceNorm2d(16)
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        x = functional.relu(self.norm1(self.depthwise(self.first(x))))
        return self.last(functional.relu(self.norm2(self.doubled(x))).mean((2, 3)))


class Scaled(nn.Module):
    """A table by channel that is a buffer which no state dict has."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)
        self.register_buffer("scale", torch.linspace(0.5, 2, 8).view(8, 1, 1), persistent=False)

    scale: Tensor

    def forward(self, x):
        return self.last(functional.relu(self.first(x) * self.scale).mean((2, 3)))


FAMILIES = {
    kind.__name__.lower(): kind
    for kind in (
        Residuals,
        Grouped,
        Normed,
        Transformer,
        Dense,
        Transposed,
        Separable,
        Scaled,
    )
}


def family(name, seed=0):
    """Return a random network of one kind; the seed makes no difference to its unsaved buffers."""
    model = FAMILIES[name]()
    unsaved = {key: t.clone() for key, t in model.named_buffers() if key not in model.state_dict()}
    random_(model, seed)
    with torch.no_grad():
        for key, tensor in unsaved.items():
            model.get_buffer(key).copy_(tensor)
    return model.eval()


def numbers_are_true(model):
    """Check the numbers that layers are told by against their tensors, and heads against widths."""
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            assert module.weight.shape[0] == module.in_channels
            assert module.weight.shape[1] * module.groups == module.out_channels
            assert module.in_channels % module.groups == 0
        elif isinstance(module, nn.modules.conv._ConvNd):
            assert module.weight.shape[0] == module.out_channels
            assert module.weight.shape[1] * module.groups == module.in_channels
            assert module.out_channels % module.groups == 0
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, nn.GroupNorm):
            assert module.weight.shape == (module.num_channels,)
            assert module.num_channels % module.num_groups == 0
        elif isinstance(module, nn.BatchNorm2d):
            vectors = (module.weight, module.bias, module.running_mean)
            assert all(v is None or v.shape == (module.num_features,) for v in vectors)
        elif isinstance(module, Attention):
            assert module.qkv.out_features == 3 * module.num_heads * module.head_dim
            assert module.out.in_features == module.all_heads == module.num_heads * module.head_dim
