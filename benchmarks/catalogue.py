"""Networks that are taken as they are: of libraries, trained ones, and some defined here."""

import importlib
from functools import partial

import torch
from torch import nn
from torch.nn import functional

import common

SAMPLES, TOKENS, VOCABULARY = 2, 32, 1000

# Sides of the image where 64 pixels don't do, or other arguments do better.
TORCHVISION = {
    "googlenet": {"aux_logits": False},
    "inception_v3": {"side": 96, "aux_logits": False},
    "maxvit_t": {"side": 224},
    "swin_b": {"side": 224},  # smaller images are padded to whole windows
    "swin_s": {"side": 224},
    "swin_t": {"side": 224},
    "swin_v2_b": {"side": 256},
    "swin_v2_s": {"side": 256},
    "swin_v2_t": {"side": 256},
    "vit_b_16": {"image_size": 64},
    "vit_b_32": {"side": 96, "image_size": 96},
    "vit_h_14": {"side": 56, "image_size": 56},
    "vit_l_16": {"image_size": 64},
    "vit_l_32": {"side": 96, "image_size": 96},
}

TIMM = """
    bat_resnext26ts beit_base_patch16_224 botnet26t_256 caformer_s18 cait_xxs24_224 coat_lite_tiny
    coat_tiny coatnet_pico_rw_224 convformer_s18 convit_tiny convmixer_768_32 convnext_atto
    convnextv2_atto cpubone_b0_bfrobust crossvit_tiny_240 csatv2 cspdarknet53 cspnext_tiny
    cspresnet50 darknet17 davit_tiny deit3_small_patch16_224 deit_tiny_distilled_patch16_224
    deit_tiny_patch16_224 densenet121 dla34 dm_nfnet_f0 dpn48b eca_nfnet_l0 eca_resnet33ts
    edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_lite0
    efficientnetv2_rw_t efficientvim_m1 efficientvit_b0 efficientvit_m0 ese_vovnet19b_dw
    ese_vovnet19b_slim_dw eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 focalnet_tiny_srf
    gcresnet33ts gcvit_xxtiny gernet_s ghostnet_050 ghostnetv2_100 gmlp_ti16_224 halonet26t
    hardcorenas_a hgnetv2_b0 hiera_tiny_224 hrnet_w18_small iformer_t inception_next_atto
    inception_resnet_v2 inception_v3 inception_v4 lambda_resnet26t lcnet_035 lcnetv2_base
    legacy_seresnet18 legacy_xception levit_128s levit_conv_128s lowformer_b0 mambaout_femto
    maxvit_rmlp_pico_rw_256 mixer_s32_224 mixnet_s mnasnet_small mobilenetv2_050
    mobilenetv3_small_050 mobilenetv4_conv_small mobileone_s0 mobilevit_xxs mobilevitv2_050
    mvitv2_tiny naflexvit_base_patch16_gap nasnetalarge nest_tiny nextvit_small nf_regnet_b0
    nf_resnet26 pit_ti_224 pnasnet5large poolformer_s12 pvt_v2_b0 qwen3_vit_88m rdnet_tiny
    regnetx_002 regnety_002 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_26w_4s
    res2next50 resmlp_12_224 resnest14d resnet10t resnet18 resnet26d resnet50_clip resnetaa34d
    resnetv2_18 resnetv2_50 rexnet_100 sam2_hiera_tiny samvit_base_patch16_224 sehalonet33ts
    selecsls42 seresnet18 seresnext26t_32x4d sequencer2d_s shvit_s1 skresnet18 starnet_s050
    swiftformer_xs swin_s3_tiny_224 swin_tiny_patch4_window7_224 swinv2_cr_tiny_ns_224
    swinv2_tiny_window8_256 tiny_vit_5m_224 tinynet_e tnt_s_legacy_patch16_224 tnt_s_patch16_224
    tresnet_m twins_pcpvt_small twins_svt_small vgg11_bn visformer_tiny
    vit_little_patch16_reg4_gap_256 vit_relpos_small_patch16_224 vit_small_patch14_dinov2
    vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224 xception41 xception41p
    xcit_nano_12_p16_224
""".split()  # noqa: SIM905 - as readable as it gets
TIMM_SKIPPED = {
    "deepseek_vit": "its smallest network has 412 M parameters",
    "gemma4_vit": "an encoder without a head, of 167 M parameters or more",
    "mobilenetv5": "an encoder of 300 M parameters or more",
}
QUICK = {
    "torchvision": ("squeezenet1_1",),
    "timm": ("convnext_atto",),
    "transformers": ("BertForSequenceClassification",),
    "defined": ("u-net",),
}


def image(side):
    return torch.randn(SAMPLES, 3, side, side)


# --- networks of libraries ------------------------------------------------------------------


def torchvision_networks():
    """Yield each classification network's name, and how to make it and its batch."""
    models = importlib.import_module("torchvision.models")

    def make(name, *, side=64, **settings):
        return models.get_model(name, weights=None, **settings), image(side)

    for name in models.list_models(module=models):
        yield name, partial(make, name, **TORCHVISION.get(name, {}))


def timm_networks():
    timm = importlib.import_module("timm")

    def make(name):
        model = timm.create_model(name, pretrained=False).eval()
        side = model.pretrained_cfg["input_size"][-1]
        try:
            with torch.no_grad():
                model(image(96))
        except Exception:  # noqa: BLE001 - it takes its own size only
            return model, image(side)
        return model, image(96)

    for name in TIMM:
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
    kinds = {
        "BertModel": ("BertConfig", text),
        "BertForSequenceClassification": ("BertConfig", text),
        "DistilBertForSequenceClassification": ("DistilBertConfig", distil),
        "RobertaForSequenceClassification": ("RobertaConfig", text),
        "GPT2LMHeadModel": ("GPT2Config", gpt),
        "GPT2ForSequenceClassification": ("GPT2Config", gpt),
        "LlamaForCausalLM": ("LlamaConfig", grouped),
        "LlamaForSequenceClassification": ("LlamaConfig", grouped),
        "Qwen2ForCausalLM": ("Qwen2Config", grouped),
        "T5EncoderModel": ("T5Config", t5),
        "ViTForImageClassification": ("ViTConfig", vision),
        "DeiTForImageClassification": ("DeiTConfig", vision),
        "SwinForImageClassification": ("SwinConfig", swin),
    }

    def make(name, config, settings, attention):
        configured = getattr(library, config)(**settings)
        configured.use_cache = False
        configured._attn_implementation = attention  # noqa: SLF001 - as from_pretrained sets it
        model = getattr(library, name)(configured)
        if "image_size" in settings:
            return model, {"pixel_values": image(settings["image_size"])}
        ids = torch.randint(3, VOCABULARY, (SAMPLES, TOKENS))
        return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    for name, (config, settings) in kinds.items():
        yield name, partial(make, name, config, settings, "sdpa")
        yield f"{name}, eager", partial(make, name, config, settings, "eager")


def zoo_networks():
    """Yield the networks of the data packs, with the weights they were trained to."""
    packs = common.data_packs()
    sides = {"lenet": (1, 28), "efficientnet_lite0": (3, 96), "mobilenetv2": (3, 96)}
    sides |= {"squeezenet11": (3, 96)}

    def make(name):
        if name == "minilm":
            return packs.minilm(), common.sentences(packs)[:SAMPLES]
        channels, side = sides.get(name, (3, 32))
        return packs.network(name), torch.randn(SAMPLES, channels, side, side)

    for name in (*packs.NETWORKS, "minilm"):
        yield name, partial(make, name)


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
    picture = partial(image, 64)
    ids = partial(torch.randint, VOCABULARY, (SAMPLES, TOKENS))
    sound = partial(torch.randn, SAMPLES, 1, 8000)
    kinds = {
        "u-net": (UNet, picture),
        "super-resolution": (SuperResolution, picture),
        "audio": (Audio, sound),
        "lstm": (Recurrent, ids),
    }

    def make(network, batch):
        return network(), batch()

    for name, (network, batch) in kinds.items():
        yield name, partial(make, network, batch)


FAMILIES = {  # name -> yields each network's name, and what makes it and its batch
    "torchvision": torchvision_networks,
    "timm": timm_networks,
    "transformers": transformers_networks,
    "zoo": zoo_networks,
    "defined": defined_networks,
}
