"""Which networks calibration takes as they are: torchvision's, timm's families, transformers'.

    python benchmarks/survivors.py          measure, then write the tables into README.md

Needs the extra "oracles". Every network has random weights; none of its scales and biases is
constant, so that no branch of it is dead. Results are saved after each network.
"""

import argparse
import gc
import importlib
import importlib.util
import re
import statistics
import time
import warnings
from functools import partial

import torch
from torch import nn

import common
from flexrel import calibrate

RULES = ("gradient-input", "epsilon", "gamma", "zplus", "attnlrp")
SAMPLES, TOKENS = 2, 12

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
    "torchvision": ("alexnet", "resnet18", "mobilenet_v3_small", "squeezenet1_1"),
    "timm": ("vit_tiny_patch16_224", "convnext_atto", "regnety_002"),
    "transformers": ("BertForSequenceClassification", "LlamaForCausalLM"),
}


def image(side):
    return torch.randn(SAMPLES, 3, side, side)


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


def transformers_kinds(text, distil, gpt, grouped, t5, vision, swin):
    """Return each network's name, with its configuration's and the settings of its family."""
    return {
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


def transformers_networks():
    library = importlib.import_module("transformers")
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**small, "intermediate_size": 128, "vocab_size": 97}
    vision = {**small, "intermediate_size": 128, "image_size": 32, "patch_size": 8}
    gpt = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 97, "pad_token_id": 0}
    distil = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 97}
    t5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    t5 |= {"vocab_size": 97}
    grouped = {**text, "num_key_value_heads": 2, "pad_token_id": 0}
    swin = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2]}
    swin |= {"num_heads": [2, 4], "window_size": 4}
    kinds = transformers_kinds(text, distil, gpt, grouped, t5, vision, swin)

    def make(name, config, settings, attention):
        configured = getattr(library, config)(**settings)
        configured.use_cache = False
        configured._attn_implementation = attention  # noqa: SLF001 - as from_pretrained sets it
        model = getattr(library, name)(configured)
        if "image_size" in settings:
            return model, {"pixel_values": image(settings["image_size"])}
        ids = torch.randint(3, 97, (SAMPLES, TOKENS))
        mask = torch.ones_like(ids)
        mask[1, -3:] = 0
        return model, {"input_ids": ids, "attention_mask": mask}

    for name, (config, settings) in kinds.items():
        yield name, partial(make, name, config, settings, "sdpa")
        yield f"{name}, eager", partial(make, name, config, settings, "eager")


FAMILIES = {
    "torchvision": torchvision_networks,
    "timm": timm_networks,
    "transformers": transformers_networks,
}


NORMS = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 - all kinds of it


@torch.no_grad()
def enliven(model, batch):
    """Replace what is constant at the start, scales and biases, by random numbers.

    A scale or shift that is 0 makes a branch dead, one that is 1 or 0 makes a mistake in it unseen.
    Batch norms take their statistics from the batch: else activations fade from layer to layer.
    """
    for name, tensor in model.named_parameters():
        if tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
            if tensor.flatten()[0] == 0 and "norm" not in name and "bn" not in name:
                tensor.normal_(0, 0.05)
            else:
                tensor.uniform_(0.5, 1.5)
    norms = [m for m in model.modules() if isinstance(m, NORMS) and m.running_var is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    output_of(model, batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
        norm.running_var.clamp_(min=0.1 * float(norm.running_var.mean()))  # two samples may agree


@torch.no_grad()
def without_biases(model):
    """Set every bias to 0, so that no layer has a place for relevance to stay in."""
    for name, tensor in model.named_parameters():
        if re.search(r"bias$|\bbeta$|_bias\b", name):
            tensor.zero_()
    for module in model.modules():
        if isinstance(module, NORMS) and module.running_mean is not None:
            module.running_mean.zero_()


def tensor_of(result):
    """Return what relevance starts from."""
    if isinstance(result, torch.Tensor):
        return result
    if "logits" in result:
        return result["logits"]
    return result[0]


def of_output(result, _labels):
    values = tensor_of(result)
    if values.ndim == 2:
        return values.max(dim=1).values
    return values.flatten(1).square().sum(1) / 2


def output_of(model, batch):
    return model(**batch) if isinstance(batch, dict) else model(batch)


def plain(model, batch):
    """Forward and backward, with gradients of the weights, as in training."""
    of_output(output_of(model, batch), None).sum().backward()
    model.zero_grad()


def fresh(model):
    """Let the model drop what it keeps from pass to pass in evaluation mode, graph and all."""
    model.train()
    model.eval()


def reason(error):
    text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]


def one_rule(model, batch, rule):
    """Return what came of one rule, and its time over that of the plain pass beside it."""
    fresh(model)
    began = time.process_time()  # other work shares the machine
    plain(model, batch)
    base = time.process_time() - began
    fresh(model)
    began = time.process_time()
    try:
        found = calibrate(model, [batch], rule, of_output)
    except Exception as error:  # noqa: BLE001 - a network that fails is a result
        return {"ok": False, "error": reason(error)}, base, None
    ratio = (time.process_time() - began) / base
    return {"ok": True, "groups": len(found), "ratio": ratio}, base, found


def parameters_of(names, known):
    """Return the names of the parameters that groups are the weights of."""
    bare = {re.sub(r"\[\d+:\d+\]$", "", name) for name in names}
    return {
        name for group in bare for name in (f"{group}.weight", group, group or "weight")
    } & known


def unread(model, found):
    """Return names of parameters of two axes or more without statistics."""
    known = {n for n, p in model.named_parameters(remove_duplicate=False) if p.ndim >= 2}
    names = [name for group, kept in found.items() for name in (group, *kept.tied)]
    return len(known), sorted(known - parameters_of(names, known))


def kinds_of(names):
    """Return names with the numbers in them left out, each once, with how many there are."""
    kinds = {}
    for name in names:
        kind = re.sub(r"\d+", "N", name)
        kinds[kind] = kinds.get(kind, 0) + 1
    return kinds


def conservation(model, batch):
    """Return how many balances there are, how many hold, and which operations' don't."""
    fresh(model)
    try:
        found = calibrate(model, [batch], "attnlrp", of_output, check=True)
    except Exception as error:  # noqa: BLE001
        return {"error": reason(error)}
    lost, worst = {}, {}
    for balance in found.balances:
        if not balance.holds:
            key = f"{balance.operation} ({balance.rule})"
            lost[key] = lost.get(key, 0) + 1
            worst[key] = max(worst.get(key, 0.0), abs(balance.lost) / balance.handled)
    hold = sum(balance.holds for balance in found.balances)
    return {"total": len(found.balances), "hold": hold, "lost": lost, "worst": worst}


def measure(family, name, make):
    torch.manual_seed(0)
    row = {"family": family, "network": name}
    try:
        model, batch = make()
        fresh(model)
        enliven(model, batch)
        plain(model, batch)
    except Exception as error:  # noqa: BLE001
        return row | {"skipped": f"does not run by itself: {reason(error)}"}
    shape = next(iter(batch.values())).shape if isinstance(batch, dict) else batch.shape
    row |= {"input": list(shape), "parameters": sum(p.numel() for p in model.parameters())}
    row["rules"], bases = {}, []
    for rule in RULES:
        row["rules"][rule], base, found = one_rule(model, batch, rule)
        bases.append(base)
        if found is not None:
            row["weights"], without = unread(model, found)
            row["without"] = kinds_of(without)
    row["plain_s"] = statistics.median(bases)
    row["check"] = conservation(model, batch)
    without_biases(model)
    row["check_without_biases"] = conservation(model, batch)
    return row


def missing(families):
    return [name for name in families if importlib.util.find_spec(name) is None]


def run(families, only, *, quick):
    """Measure network after network; keep those of an earlier run that are not measured now."""
    absent = missing(families)
    if absent:
        print(f"not installed: {', '.join(absent)}; skipped. pip install 'flexrel[oracles]'")
    known = common.load("survivors", {"rows": []})["rows"]
    rows = {(row["family"], row["network"]): row for row in known}
    content = {"torch": torch.__version__, "absent": absent}
    common.save("survivors", content | {"rows": list(rows.values())})
    for family in families:
        if family in absent:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs, on loading and on untrained networks
            for name, make in FAMILIES[family]():
                if (quick and name not in QUICK[family]) or (only and not re.search(only, name)):
                    continue
                row = rows[family, name] = measure(family, name, make)
                gc.collect()
                failed = [rule for rule, got in row.get("rules", {}).items() if not got["ok"]]
                print(f"{family} {name}: {row.get('skipped') or failed or 'ok'}", flush=True)
                common.save("survivors", content | {"rows": list(rows.values())})


def held(check):
    if "error" in check:
        return "fails"
    return f"{100 * check['hold'] / check['total']:.0f} %" if check["total"] else ""


def cells(row):
    if "skipped" in row:
        return [row["network"], *[""] * (5 + len(RULES))]
    rules = [f"{r['ratio']:.2f}" if r["ok"] else "fails" for r in row["rules"].values()]
    groups = max((r["groups"] for r in row["rules"].values() if r["ok"]), default="")
    read = f"{row['weights'] - sum(row['without'].values())} of {row['weights']}" if groups else ""
    side = "x".join(map(str, row["input"][1:]))
    name = row["network"]
    checks = (held(row["check"]), held(row["check_without_biases"]))
    return [name, f"{row['parameters'] / 1e6:.1f}", side, groups, read, *rules, *checks]


def summary(family, rows):
    run = [row for row in rows if "skipped" not in row]
    good = [row for row in run if all(r["ok"] for r in row["rules"].values())]
    ratios = [
        f"{statistics.median(r['rules'][rule]['ratio'] for r in good):.2f}" if good else ""
        for rule in RULES
    ]
    return [family, len(run), len(good), *ratios]


def bullets(rows):
    """Return each network that was refused or skipped, with the reason, alike ones together."""
    reasons = {}
    for row in rows:
        if "skipped" in row:
            reasons.setdefault(f"skipped: {row['skipped']}", []).append(row["network"])
        for rule, got in row.get("rules", {}).items():
            if not got["ok"]:
                reasons.setdefault(f"{rule}: `{got['error']}`", []).append(row["network"])
    return [f"- {', '.join(dict.fromkeys(names))}: {why}" for why, names in reasons.items()]


def show():
    content = common.load("survivors")
    rows = {family: [] for family in FAMILIES}
    for row in content["rows"]:
        rows[row["family"]].append(row)
    header = ["family", "networks", "all rules run", *RULES]
    text = [common.table(header, [summary(f, found) for f, found in rows.items() if found])]
    lines = [f"- {family}: not installed, so skipped" for family in content["absent"]]
    lines += bullets(content["rows"])
    lines += [f"- timm's {name}: skipped: {why}" for name, why in TIMM_SKIPPED.items()]
    text.append("\n".join(lines))
    header = ["network", "parameters, M", "input", "groups", "weights read", *RULES]
    header += ["balances that hold", "without biases"]
    for family, found in rows.items():
        if found:
            lines = common.table(header, [cells(row) for row in found])
            text.append(f"<details><summary>{family}</summary>\n\n{lines}\n\n</details>")
    common.replace_section("survivors", "\n\n".join(text))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=tuple(FAMILIES), default=tuple(FAMILIES))
    parser.add_argument("--only", help="networks whose name matches this pattern")
    parser.add_argument("--quick", action="store_true", help="a few networks of each family")
    parser.add_argument("--show", action="store_true", help="the tables, from the JSON")
    args = parser.parse_args()
    if not args.show:
        common.declare_operators()
        run(args.families, args.only, quick=args.quick)
    show()


if __name__ == "__main__":
    main()
