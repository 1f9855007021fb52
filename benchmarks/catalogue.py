"""Networks that are to be cut as they are: of libraries, trained ones, and some defined here."""

import importlib
from functools import partial

import torch
from torch import nn
from torch.nn import functional

import common
import survivors

TOKENS, VOCABULARY = 32, 1000


# --- networks that are defined here -----------------------------------------------------------


def convolutions(inputs, outputs):
    layers = []
    for before in (inputs, outputs):
        layers += [nn.Conv2d(before, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Segmentation: skips are concatenated, transposed convolutions go up."""

    def __init__(self, widths=(32, 64, 128, 256), classes=5):
        super().__init__()
        pairs = list(zip((3, *widths), widths, strict=False))
        self.down = nn.ModuleList(convolutions(*pair) for pair in pairs)
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(low, high, 2, 2) for low, high in steps)
        self.merge = nn.ModuleList(convolutions(2 * high, high) for _, high in steps)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x):
        skips = []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = merge(torch.cat([skip, up(x)], 1))
        return self.head(x)


class Distillation(nn.Module):
    """A block that keeps a quarter of its channels at each step and goes on with the rest."""

    def __init__(self, width):
        super().__init__()
        self.kept = width // 4
        self.rest = width - self.kept
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(self.rest, width, 3, padding=1)
        self.third = nn.Conv2d(self.rest, self.kept, 3, padding=1)
        self.fuse = nn.Conv2d(3 * self.kept, width, 1)

    def forward(self, x):
        kept, rest = self.split(self.first(x))
        more, rest = self.split(self.second(rest))
        return x + self.fuse(torch.cat([kept, more, self.third(rest)], 1))

    def split(self, x):
        return torch.split(functional.leaky_relu(x, 0.05), (self.kept, self.rest), dim=1)


class SuperResolution(nn.Module):
    """Two times the side: channel splits, chunks that gate each other, and pixel shuffle."""

    def __init__(self, width=48, blocks=4, scale=2):
        super().__init__()
        self.scale = scale
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(Distillation(width) for _ in range(blocks)))
        self.gate = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.tail = nn.Conv2d(width, 3 * scale**2, 3, padding=1)

    def forward(self, x):
        features = self.head(x)
        value, gate = self.gate(self.body(features) + features).chunk(2, dim=1)
        details = functional.pixel_shuffle(self.tail(value * torch.sigmoid(gate)), self.scale)
        return details + functional.interpolate(x, scale_factor=self.scale, mode="bilinear")


class Dilated(nn.Module):
    def __init__(self, width, dilation):
        super().__init__()
        self.wide = nn.Conv1d(width, 2 * width, 3, padding=dilation, dilation=dilation)
        self.norm = nn.BatchNorm1d(2 * width)
        self.narrow = nn.Conv1d(width, width, 1)

    def forward(self, x):
        return x + self.narrow(functional.glu(self.norm(self.wide(x)), dim=1))


class Audio(nn.Module):
    """Sound as it is, to classes: strided convolutions, then gated and dilated ones."""

    def __init__(self, width=64, classes=35):
        super().__init__()
        layers, before = [], 1
        for after, kernel, stride in ((width // 2, 80, 16), (width, 3, 4)):
            layers += [nn.Conv1d(before, after, kernel, stride, bias=False)]
            layers += [nn.BatchNorm1d(after), nn.ReLU()]
            before = after
        self.stem = nn.Sequential(*layers)
        self.blocks = nn.Sequential(*(Dilated(width, 2**level) for level in range(4)))
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean(2))


class Recurrent(nn.Module):
    """Text to classes: an LSTM of two layers in both directions, and a small head."""

    def __init__(self, width=128, classes=10):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True, bidirectional=True)
        self.hidden, self.head = nn.Linear(2 * width, width), nn.Linear(width, classes)

    def forward(self, ids):
        states, _ = self.lstm(self.tokens(ids))
        return self.head(functional.relu(self.hidden(states.mean(1))))


def defined_networks():
    """Yield each network's name, and how to make it and its batch."""
    image = partial(survivors.image, 64)
    ids = partial(torch.randint, VOCABULARY, (survivors.SAMPLES, TOKENS))
    sound = partial(torch.randn, survivors.SAMPLES, 1, 8000)
    kinds = {
        "u-net": (UNet, image),
        "super-resolution": (SuperResolution, image),
        "audio": (Audio, sound),
        "lstm": (Recurrent, ids),
    }

    def make(network, batch):
        return network(), batch()

    for name, (network, batch) in kinds.items():
        yield name, partial(make, network, batch)


# --- networks of others -----------------------------------------------------------------------


def zoo_networks():
    """Yield the networks of the data packs, with the weights they were trained to."""
    packs = common.data_packs()
    sides = {"lenet": (1, 28), "efficientnet_lite0": (3, 96), "mobilenetv2": (3, 96)}
    sides |= {"squeezenet11": (3, 96)}

    def make(name):
        if name == "minilm":
            return packs.minilm(), common.sentences(packs)[: survivors.SAMPLES]
        channels, side = sides.get(name, (3, 32))
        return packs.network(name), torch.randn(survivors.SAMPLES, channels, side, side)

    for name in (*packs.NETWORKS, "minilm"):
        yield name, partial(make, name)


def transformers_networks():
    library = importlib.import_module("transformers")
    small = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    classes = {"num_labels": 10, "vocab_size": VOCABULARY, "pad_token_id": 0}
    text = {**small, "intermediate_size": 512, **classes}
    vision = {**small, "intermediate_size": 512, "num_labels": 10, "image_size": 64}
    vision |= {"patch_size": 8}
    gpt = {"n_embd": 128, "n_layer": 4, "n_head": 4, **classes}
    gpt |= {"bos_token_id": 1, "eos_token_id": 2}
    distil = {"dim": 128, "n_layers": 4, "n_heads": 4, "hidden_dim": 512, **classes}
    t5 = {"d_model": 128, "d_kv": 32, "d_ff": 512, "num_layers": 4, "num_heads": 4, **classes}
    grouped = {**text, "intermediate_size": 344, "num_key_value_heads": 2}
    swin = {"image_size": 64, "patch_size": 2, "embed_dim": 32, "depths": [2, 2, 2]}
    swin |= {"num_heads": [2, 4, 8], "window_size": 4, "num_labels": 10}
    kinds = survivors.transformers_kinds(text, distil, gpt, grouped, t5, vision, swin)

    def make(name, config, settings):
        configured = getattr(library, config)(**settings)
        configured.use_cache = False
        model = getattr(library, name)(configured)
        if "image_size" in settings:
            return model, {"pixel_values": survivors.image(settings["image_size"])}
        ids = torch.randint(3, VOCABULARY, (survivors.SAMPLES, TOKENS))
        return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    for name, (config, settings) in kinds.items():
        yield name, partial(make, name, config, settings)


FAMILIES = {
    "torchvision": survivors.torchvision_networks,
    "timm": survivors.timm_networks,
    "transformers": transformers_networks,
    "zoo": zoo_networks,
    "defined": defined_networks,
}
