"""Networks of all shapes that can be followed: blocks by name, and what of them can be cut.

A block of `BLOCKS` takes and gives images [samples, c, side, side], where c is a multiple of 8;
one of `TOKENS` takes and gives [samples, tokens, WIDTH].
"""

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from networks import CLASSES, COLOURS, Call, Mixer, NormedOnTheWay, Owner, Residual, conv, random_

WIDTH, HEADS, HEAD, TOKENS_IN, VOCABULARY = 12, 4, 3, 5, 7


# --- independent counting -----------------------------------------------------------------------


def macs_by_torch(model, inputs):
    """Count the multiply-adds of one sample as torch does, attention by its plain formula."""
    counter = FlopCounterMode(display=False)
    modes = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()  # a whole layer as one operation
    torch.backends.mha.set_fastpath_enabled(False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model.eval()(inputs)
    torch.backends.mha.set_fastpath_enabled(fast)
    for module, training in modes:
        module.training = training
    macs, rest = divmod(counter.get_total_flops(), 2 * len(inputs))
    assert not rest
    return macs


def sizes_are_true(model):
    """Check every number in torch's modules against the tensors that it describes."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear):
            assert weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, nn.modules.conv._ConvTransposeNd):
            assert weight.shape[:2] == (module.in_channels, module.out_channels // module.groups)
        elif isinstance(module, nn.modules.conv._ConvNd):
            assert weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            vectors = (weight, module.bias, module.running_mean, module.running_var)
            assert all(v is None or len(v) == module.num_features for v in vectors)
        elif isinstance(module, nn.GroupNorm) and weight is not None:
            assert len(weight) == len(module.bias) == module.num_channels
            assert module.num_channels % module.num_groups == 0
        elif isinstance(module, nn.Embedding):
            assert weight.shape == (module.num_embeddings, module.embedding_dim)
        elif isinstance(module, nn.LayerNorm) and weight is not None:
            assert weight.shape == module.normalized_shape
        if isinstance(module, nn.modules.conv._ConvNd):
            assert module.in_channels % module.groups == module.out_channels % module.groups == 0
            assert module.bias is None or len(module.bias) == module.out_channels


# --- images -------------------------------------------------------------------------------------


def layers(*modules):
    return nn.ModuleList(modules)


def flow(modules, function):
    """A block of modules and how the data goes through them."""
    return Mixer(layers(*modules), function)


def conv3(channels, out=None, **options):
    return nn.Conv2d(channels, out or channels, 3, padding=1, **options)


def _shuffled(x, groups):
    n, c, *side = x.shape
    return x.view(n, groups, -1, *side).transpose(1, 2).reshape(n, c, *side)


def _gated(x, gate):
    return x * gate.sigmoid()


def _unit(c, shuffle):
    """ShuffleNet V2's: one half is left as it is, the other one worked on, and both are mixed."""

    def forward(f, x):
        left, right = x.chunk(2, dim=1)
        return shuffle(torch.cat([left, f[1](f[0](right).relu())], 1))

    return flow([conv(c // 2, 6), conv3(6, c // 2)], forward)


class Windows(nn.Module):
    """Attention among pixels, with a bias for each distance and head from a table (Swin's)."""

    def __init__(self, c, side=8):
        super().__init__()
        self.num_heads, self.window = 4, side
        self.qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.table = nn.Parameter(torch.zeros(2 * side - 1, self.num_heads))
        at = torch.arange(side)
        self.register_buffer("index", (at[:, None] - at[None] + side - 1).flatten())

    def forward(self, x):
        x = x.mean(3).transpose(1, 2)  # [samples, side, c]
        n, t, _ = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        bias = self.table[self.index].view(t, t, -1).permute(2, 0, 1)
        mixed = ((q @ k.transpose(-2, -1)) * 0.5 + bias[None]).softmax(-1) @ v
        x = self.proj(mixed.transpose(1, 2).reshape(n, t, -1))
        return x.transpose(1, 2)[..., None]


def _u_net(c):
    def forward(f, x):
        deep = f[1](functional.max_pool2d(f[0](x).relu(), 2)).relu()
        return f[3](torch.cat([f[2](deep), x], 1))

    parts = [conv3(c, 6), conv3(6, 10), nn.ConvTranspose2d(10, 5, 2, 2), conv3(5 + c, c)]
    return flow(parts, forward)


def _inception(c):
    def forward(f, x):
        pooled = functional.max_pool2d(x, 3, 1, 1)
        return torch.cat([f[0](x), f[2](f[1](x).relu()), f[3](pooled)], 1)

    return flow([conv(c, 3), conv(c, 5), conv3(5, 4), conv(c, 1)], forward)


BLOCKS = {
    "identity": lambda c: Residual(c, 5, c, 1, "identity", norm=True),
    "option A": lambda c: Residual(c, 5, c + 3, 2, "option A", norm=True),
    "projection": lambda c: Residual(c, 5, 6, 2, "conv", norm=True),
    "dense": lambda c: flow([conv3(c, 3)], lambda f, x: torch.cat([x, f[0](x).relu()], 1)),
    "inception": _inception,
    "chunk and join": lambda c: _unit(c, lambda x: x),
    "native shuffle": lambda c: _unit(c, nn.ChannelShuffle(2)),
    "shuffle by view": lambda c: _unit(c, lambda x: _shuffled(x, 2)),
    "uneven split": lambda c: flow(
        [conv(3, 4), conv(c - 3, 4)],
        lambda f, x: sum(g(y) for g, y in zip(f, x.split([3, c - 3], 1), strict=True)),
    ),
    "channels taken apart": lambda c: flow(
        [conv(c // 2, 4), conv(c // 2, 4)],
        lambda f, x: f[0](x[:, : x.shape[1] // 2]) + f[1](x[:, x.shape[1] // 2 :]),
    ),
    "groups": lambda c: conv(c, groups=4),
    "wider groups": lambda c: conv3(c, 2 * c, groups=2),
    "many groups": lambda c: nn.Sequential(
        conv(c, 16), nn.ReLU(), conv3(16, 16, groups=8), nn.ReLU(), conv(16, c)
    ),
    "ResNeXt": lambda c: flow(
        [conv(c, 2 * c), nn.BatchNorm2d(2 * c), conv3(2 * c, groups=c), conv(2 * c, c)],
        lambda f, x: x + f[3](f[2](f[1](f[0](x)).relu()).relu()),
    ),
    "groups shuffled": lambda c: nn.Sequential(
        conv(c, groups=2), nn.ChannelShuffle(2), conv3(c, groups=2)
    ),
    "depthwise": lambda c: conv3(c, groups=c),
    "depthwise, multiplied": lambda c: conv3(c, 2 * c, groups=c),
    "inverted": lambda c: flow(
        [conv(c, 2 * c), conv3(2 * c, groups=2 * c), conv(2 * c, c)],
        lambda f, x: x + f[2](f[1](f[0](x).clamp(0, 6))),
    ),
    "transposed": lambda c: nn.ConvTranspose2d(c, 6, 2, 2),
    "transposed groups": lambda c: nn.ConvTranspose2d(c, 2 * c, 3, 1, 1, groups=4),
    "transposed depthwise": lambda c: nn.ConvTranspose2d(c, c, 2, groups=c),
    "pixel shuffle": lambda c: nn.Sequential(conv(c, 4 * 5), nn.PixelShuffle(2), nn.ReLU()),
    "pixel unshuffle": lambda c: nn.Sequential(
        nn.AdaptiveAvgPool2d(4), nn.PixelUnshuffle(2), conv(4 * c, 6)
    ),
    "squeeze and excite": lambda c: flow(
        [conv(c, 4), conv(4, c)],
        lambda f, x: x * f[1](f[0](x.mean((2, 3), keepdim=True)).relu()).sigmoid(),
    ),
    "gated": lambda c: flow([conv(c, 10)], lambda f, x: functional.glu(f[0](x), 1)),
    "gated by chunk": lambda c: flow([conv(c, 10)], lambda f, x: _gated(*f[0](x).chunk(2, 1))),
    "group norm": lambda c: nn.Sequential(conv(c, 12), nn.GroupNorm(4, 12)),
    "group norm of single channels": lambda c: nn.GroupNorm(c, c),
    "weight norm": lambda c: NormedOnTheWay(c, 6),
    "channels last": lambda c: flow(
        [conv3(c, groups=c), nn.Linear(c, 2 * c), nn.Linear(2 * c, c)],
        lambda f, x: x + f[2](f[1](f[0](x).permute(0, 2, 3, 1)).relu()).permute(0, 3, 1, 2),
    ),
    "scaled layer": lambda c: Owner((c, 1, 1), lambda w, x: x * w + x),
    "tiled": lambda c: Call(lambda x: x.repeat(1, 2, 1, 1)),
    "spatial members": lambda c: Call(lambda x: x[:, :, ::2, 1:] - x[:, :, 1::2, :-1]),
    "U-Net": _u_net,
    "used twice": lambda c: flow([conv3(c)], lambda f, x: f[0](f[0](x).relu())),
    "windows": Windows,
}


class Images(nn.Module):
    """A first layer, blocks, and a head that reads either means or stripes of pixels."""

    def __init__(self, names, c=8, *, flat=False):
        super().__init__()
        self.stem = conv3(COLOURS, c)
        x, blocks = torch.zeros(2, c, 8, 8), []
        for name in names:
            if not blocks or (x.shape[1] % 8 == 0 and x.shape[2:] == (8, 8)):
                block = BLOCKS[name](x.shape[1])
                blocks.append(block.eval())
                with torch.no_grad():
                    x = block(x)
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d((1, 2) if flat else 1)
        self.head = nn.Linear(x.shape[1] * (2 if flat else 1), CLASSES)

    def forward(self, x):
        return self.head(self.pool(self.blocks(self.stem(x).relu())).flatten(1))


@st.composite
def image_networks(draw):
    """A random network of one to three blocks, in double precision."""
    names = draw(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=3))
    # no draw shrinks to fewer than 8 channels: blocks in groups need that many
    model = Images(names, draw(st.sampled_from([8, 16])), flat=draw(st.booleans()))
    return random_(model.double(), draw(st.integers(0, 99)))


# --- tokens -------------------------------------------------------------------------------------


def _rotated(x):
    """Turn pairs of features by an angle that grows with the position (Llama's)."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * 0.3
    return x * angle.cos() + turned * angle.sin()


class Attention(nn.Module):
    """Multi-head attention as people write it; how is said by the names of `how`."""

    def __init__(self, *how, width=WIDTH, heads=HEADS, shared=None, head_dim=HEAD):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = heads, shared or heads, head_dim
        self.how = how
        own, kept = heads * head_dim, self.num_kv_heads * head_dim
        if "fused" in how or "stacked" in how:
            self.qkv = nn.Linear(width, 3 * own)
        else:
            self.q, self.k = nn.Linear(width, own), nn.Linear(width, kept)
            self.v = nn.Linear(width, kept, bias=False)
        self.out = nn.Linear(own, width)

    def _parts(self, x):
        n, t, _ = x.shape
        if "stacked" in self.how:  # timm's
            made = self.qkv(x).reshape(n, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
            return made.unbind(0)
        made = self.qkv(x).chunk(3, -1) if "fused" in self.how else self._made(x)
        shape = (n, t, -1, self.head_dim)
        if "by number" in self.how:
            return [y.view(n, t, self.num_heads, -1).transpose(1, 2) for y in made]
        return [y.view(shape).transpose(1, 2) for y in made]

    def _made(self, x):
        return self.q(x), self.k(x), self.v(x)

    def _repeated(self, x):
        times = self.num_heads // self.num_kv_heads
        if "expanded" in self.how:
            n, heads, t, width = x.shape
            return x[:, :, None].expand(n, heads, times, t, width).reshape(n, -1, t, width)
        return x.repeat_interleave(times, 1) if "repeated" in self.how else x

    def forward(self, x):
        q, k, v = self._parts(x)
        if "rotary" in self.how:
            q, k = _rotated(q), _rotated(k)
        k, v = self._repeated(k), self._repeated(v)
        if "by hand" in self.how:
            mixed = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        else:
            options = {"enable_gqa": True} if "native" in self.how else {}
            mixed = functional.scaled_dot_product_attention(
                q, k, v, is_causal="causal" in self.how, **options
            )
        return self.out(mixed.transpose(1, 2).flatten(2))


def _feed_forward(*, gate):
    two = [nn.Linear(WIDTH, 2 * 10), nn.Linear(10, WIDTH)]
    if gate == "chunk":
        return flow(
            two,
            lambda f, x: f[1](_gated(*f[0](x).chunk(2, dim=-1))),
        )
    if gate == "beside":
        parts = [nn.Linear(WIDTH, 10), nn.Linear(WIDTH, 10), nn.Linear(10, WIDTH)]
        return flow(parts, lambda f, x: f[2](f[0](x) * functional.silu(f[1](x))))
    return nn.Sequential(nn.Linear(WIDTH, 10), nn.GELU(), nn.Linear(10, WIDTH))


GROUPED = {"shared": 2}
TOKENS = {
    "feed-forward": lambda: _feed_forward(gate=None),
    "gated by chunk": lambda: _feed_forward(gate="chunk"),
    "gated by another": lambda: _feed_forward(gate="beside"),
    "attention": Attention,
    "causal": lambda: Attention("causal"),
    "by hand": lambda: Attention("by hand"),
    "by number": lambda: Attention("by number"),
    "fused": lambda: Attention("fused"),
    "fused by hand": lambda: Attention("fused", "by hand", "by number"),
    "stacked": lambda: Attention("stacked"),
    "rotary": lambda: Attention("rotary", "causal", head_dim=4),
    "grouped, expanded": lambda: Attention("expanded", **GROUPED),
    "grouped, repeated": lambda: Attention("repeated", "by hand", **GROUPED),
    "grouped, native": lambda: Attention("native", "rotary", head_dim=4, **GROUPED),
    "mixed over time": lambda: flow(
        [nn.Linear(TOKENS_IN + 1, 7), nn.Linear(7, TOKENS_IN + 1)],
        lambda f, x: f[1](f[0](x.transpose(1, 2)).relu()).transpose(1, 2),
    ),
    "over time": lambda: flow(
        [nn.Conv1d(WIDTH, 8, 3, padding=1), nn.Conv1d(8, WIDTH, 1)],
        lambda f, x: f[1](f[0](x.transpose(1, 2)).relu()).transpose(1, 2),
    ),
}
HEADED = {  # name -> units of the group of heads: those of a group of them go together
    **dict.fromkeys(("attention", "causal", "by hand", "by number", "rotary"), HEADS),
    **dict.fromkeys(("fused", "fused by hand", "stacked"), HEADS),
    **dict.fromkeys(("grouped, expanded", "grouped, repeated", "grouped, native"), 2),
}


class Tokens(nn.Module):
    """Embeddings, a class token, a position table, residual blocks, and a head that may be tied."""

    def __init__(self, names, *, norm=False, tied=False):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.start = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.zeros(1, TOKENS_IN + 1, WIDTH))
        self.blocks = layers(*(TOKENS[name]() for name in names))
        self.norms = layers(*(nn.LayerNorm(WIDTH) if norm else nn.Identity() for _ in names))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = torch.cat([self.start.expand(len(x), -1, -1), x], 1) + self.positions
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.head(x[:, 0])


@st.composite
def token_networks(draw):
    """A random network of one or two residual blocks, in double precision."""
    known = sorted(TOKENS.keys() - {"mixed over time"})  # its multiply-adds are not counted right
    names = draw(st.lists(st.sampled_from(known), min_size=1, max_size=2))
    model = Tokens(names, norm=draw(st.booleans()), tied=draw(st.booleans()))
    return random_(model.double(), draw(st.integers(0, 99)))


def sentences(count=2, seed=0):
    """Return random tokens."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (count, TOKENS_IN), generator=draw)


# --- one and three dimensions -------------------------------------------------------------------

SPATIAL = {
    1: (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.MaxPool1d),
    2: (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.MaxPool2d),
    3: (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.MaxPool3d),
}


class Dimensions(nn.Module):
    """A residual block, groups, a transposed convolution, and stripes, in 1, 2 or 3 dimensions."""

    def __init__(self, dimensions):
        super().__init__()
        convolution, transposed, norm, pool = SPATIAL[dimensions]
        self.stem, self.norm = convolution(2, 6, 3, padding=1), norm(6)
        self.inner = nn.Sequential(convolution(6, 5, 1), nn.ReLU(), convolution(5, 6, 1))
        self.groups = convolution(6, 12, 3, padding=1, groups=2)
        self.depthwise = convolution(12, 12, 1, groups=12)
        self.pool, self.up = pool(2), transposed(12, 4, 2, 2)
        self.head = nn.Linear(4 * 4**dimensions, CLASSES)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = self.depthwise(self.groups(x + self.inner(x))).relu()
        return self.head(self.up(self.pool(x)).flatten(1))
