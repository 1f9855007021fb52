"""Relevance as captum, zennit and the equations of AttnLRP have it, layer by layer."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from flexrel import calibrate
from flexrel.relevance import RULES, Epsilon, Gamma, ZPlus
from oracles import needs
from reference import attnlrp

TOLERANCE = 1e-6  # of the largest value in a vector
ROUNDED = 1e-5  # where transformers takes a softmax in float32, whatever the network's own type
LABELS = torch.tensor([2, 0, 1])


def normal(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64)


@torch.no_grad()
def filled(model, seed=0):
    """Give every parameter and running statistic numbers of a seed, in float64, none of them 0."""
    draw = torch.Generator().manual_seed(seed)
    model.double().eval()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and tensor.numel() > 1 and "inv_freq" not in name:
            numbers = torch.randn(tensor.shape, generator=draw, dtype=torch.float64)
            scale = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.3
            tensor.copy_(numbers * scale)
            if name.endswith("running_var") or "orm.weight" in name:
                tensor.copy_(1 + numbers.abs())
    return model


def vgg(*, bias=True):
    """Convolutions and pooling, then fully connected layers; every input of them is at least 0."""
    layers = [
        nn.Conv2d(3, 6, 3, padding=1, bias=bias),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, bias=bias),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, (3, 2), stride=2, padding=1, bias=bias),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 2 * 2, 10, bias=bias),
        nn.ReLU(),
        nn.Linear(10, 4, bias=bias),
    ]
    return filled(nn.Sequential(*layers))


class Residual(nn.Module):
    """Two convolutions with batch norms beside a shortcut; what `join` makes adds the two."""

    def __init__(self, channels, made, join):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, made, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(made)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(made, made, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(made)
        self.shortcut = nn.Conv2d(channels, made, 1) if made != channels else nn.Identity()
        self.relu2 = nn.ReLU()
        self.join = join()

    def forward(self, x):
        inner = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(self.join(inner, self.shortcut(x)))


def resnet(join=lambda: torch.add):
    """A small residual network with average pooling at its end."""
    stem = [nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    blocks = [Residual(4, 4, join), Residual(4, 6, join)]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)]
    return filled(nn.Sequential(*stem, *blocks, *head), seed=1)


RIVALS = (Epsilon(1e-3), Gamma(), Gamma(2.0), ZPlus())
NETWORKS = {"vgg": vgg, "resnet": resnet}


def images(*, signed=True):
    x = normal(3, 3, 8, 8, seed=2)
    return x if signed else x.abs()


def layers_of(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def by_kernel(layer, relevance):
    """Sum the relevance of a layer's input over samples, positions and all patches that read it."""
    if isinstance(layer, nn.Linear):
        return relevance.sum(0)
    settings = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    columns = functional.unfold(relevance, *settings).sum((0, 2))
    return columns.view(layer.in_channels, *layer.kernel_size)


def by_channel(relevance):
    return relevance.transpose(0, 1).flatten(1).sum(1)


def close(found, expected, tolerance=TOLERANCE):
    atol = tolerance * float(expected.abs().max())
    assert atol > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def outputs_agree(layer, relevance):
    """The relevance of a layer's output, by channel."""
    close(layer.output, by_channel(relevance.detach()))
    close(layer.output_absolute, by_channel(relevance.detach().abs()))


def inputs_agree(sums, layer, relevance):
    """The relevance of a layer's input, by channel and position in the kernel."""
    close(sums.input, by_kernel(layer, relevance.detach()))
    close(sums.input_absolute, by_kernel(layer, relevance.detach().abs()))


def calibrated(model, x, rule):
    return calibrate(model, [(x, LABELS)], rule, output="label")


# captum: gradient times input, and LRP on sequential networks


@pytest.mark.parametrize("network", NETWORKS)
def test_gradient_input_of_every_layer_is_captums(network):
    attr, model, x = needs("captum.attr"), NETWORKS[network](), images()

    found = calibrated(model, x, "gradient-input")

    assert set(found) == set(layers_of(model))
    for name, layer in layers_of(model).items():
        method = attr.LayerGradientXActivation(model, layer)
        given = method.attribute(x, target=LABELS, attribute_to_layer_input=True)
        outputs_agree(found[name], method.attribute(x, target=LABELS))
        inputs_agree(found[name], layer, given)


@pytest.mark.parametrize("network", NETWORKS)
def test_gradient_input_of_the_networks_input_is_captums(network):
    attr, model, x = needs("captum.attr"), NETWORKS[network](), images()

    found = calibrated(model, x, "gradient-input")

    relevance = attr.InputXGradient(model).attribute(x.requires_grad_(), target=LABELS)
    inputs_agree(found["0"], model[0], relevance)


def captums(rule):
    """Return how to make captum's rule with the same stabiliser."""
    rules = needs("captum.attr._utils.lrp_rules")
    if isinstance(rule, Epsilon):
        return partial(rules.EpsilonRule, rule.epsilon)
    return partial(rules.GammaRule, rule.gamma) if rule == Gamma() else rules.Alpha1_Beta0_Rule


@pytest.mark.parametrize(
    ("rule", "bias", "signed"),
    [(Epsilon(1e-3), True, True), (Gamma(), False, False), (ZPlus(), False, False)],
    ids=("epsilon", "gamma", "zplus"),
)
def test_lrp_of_every_layer_is_captums(rule, bias, signed):
    # Its γ and z⁺ are those for inputs from 0 on and outputs above 0, and leave biases as they are.
    attr, model, x = needs("captum.attr"), vgg(bias=bias), images(signed=signed)
    layers, leaf = layers_of(model), x.clone().requires_grad_()
    if not signed:
        model[-1].weight.data.abs_()

    found = calibrated(model, x, rule)

    for of_inputs in (False, True):
        for layer in model:
            if layer in layers.values():
                layer.rule = captums(rule)()
            elif not isinstance(layer, nn.ReLU):  # those have a rule of their own
                layer.rule = captums(Epsilon(1e-15))()
        method = attr.LayerLRP(model, list(layers.values()))
        relevance = method.attribute(leaf, target=LABELS, attribute_to_layer_input=of_inputs)
        for (at, layer), of_layer in zip(layers.items(), relevance, strict=True):
            if of_inputs:
                inputs_agree(found[at], layer, of_layer)
            else:
                outputs_agree(found[at], of_layer)


# zennit: sequential and residual networks, inputs of any sign, batch norms merged by its canonizer


class Stacked(nn.Module):
    """A sum in zennit's spelling, so that its rule for sums holds."""

    def __init__(self):
        super().__init__()
        self.summed = needs("zennit.layer").Sum(-1)

    def forward(self, *terms):
        return self.summed(torch.stack(terms, dim=-1))


def with_exact_merging(model):
    """Move eps into the variance: zennit merges it, and divides by its root once more."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_var.add_(norm.eps)
            norm.eps = 0.0
    return model


def zennits(rule):
    """Return zennit's rule with the same stabiliser."""
    rules = needs("zennit.rules")
    if isinstance(rule, Epsilon):
        return rules.Epsilon(epsilon=rule.epsilon)
    if isinstance(rule, Gamma):
        return rules.Gamma(gamma=rule.gamma, stabilizer=1e-15)
    return rules.ZPlus(stabilizer=rule.epsilon)


def zennits_relevance(model, x, rule):
    """Return the relevance of each layer's output, by layer, and that of the network's input."""
    types, layers = needs("zennit.types"), needs("zennit.layer")
    norm, elementwise = needs("zennit.rules").Norm, needs("zennit.rules").Pass
    composite = needs("zennit.composites").LayerMapComposite(
        [
            ((types.Convolution, types.Linear), zennits(rule)),
            ((types.Activation, types.BatchNorm), elementwise()),
            ((types.AvgPool, layers.Sum), norm(stabilizer=1e-15)),
        ],
        canonizers=[needs("zennit.canonizers").SequentialMergeBatchNorm()],
    )
    made = {}

    def keep(name):
        def hook(_, __, output):
            output.retain_grad()
            made[name] = output

        return hook

    x = x.clone().requires_grad_()
    with composite.context(model) as changed:
        handles = [m.register_forward_hook(keep(n)) for n, m in layers_of(model).items()]
        scores = changed(x)
        scores.backward(scores.detach() * functional.one_hot(LABELS, scores.shape[1]))
        for handle in handles:
            handle.remove()
    return {name: output.grad for name, output in made.items()}, x.grad


@pytest.mark.parametrize("rule", RIVALS, ids=lambda rule: rule.name)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("network", NETWORKS)
def test_lrp_of_every_layer_is_zennits(network, signed, rule):
    needs("zennit")
    x = images(signed=signed)
    model = NETWORKS[network]()
    twin = with_exact_merging(resnet(Stacked) if network == "resnet" else vgg())

    found = calibrated(model, x, rule)

    outputs, of_input = zennits_relevance(twin, x, rule)
    assert set(found) == set(outputs)
    for name, relevance in outputs.items():
        outputs_agree(found[name], relevance)
    inputs_agree(found["0"], model[0], of_input)


# AttnLRP: the equations of the paper, for networks of transformers


class Language:
    """A small transformer with random weights, an input for it, and where its relevance starts."""

    def __init__(self, name, settings, twin):
        self.name, self.settings, self.twin = name, settings, twin

    def model(self, attention="eager"):
        library = needs("transformers")
        kind = getattr(library, self.name)
        config = kind.config_class(**self.settings, attn_implementation=attention)
        return filled(kind(config))

    @property
    def batch(self):
        if "image_size" in self.settings:
            return {"pixel_values": normal(2, 3, 8, 8, seed=4)}
        ids = torch.tensor([[1, 5, 9, 3, 3, 7], [1, 8, 9, 4, 0, 0]])
        mask = (ids > 0).long() if self.name.startswith("Bert") else torch.ones_like(ids)
        return {"input_ids": ids, "attention_mask": mask}

    def reference(self, model):
        """Return the slow twin after its relevance went back, and its output."""
        batch = self.batch
        given = list(batch.values())[: 2 if self.name.startswith("Bert") else 1]
        net, output = self.twin(model, *given, 1e-6)
        scores = last_scores(output.value)
        chosen = functional.one_hot(scores.argmax(-1), scores.shape[-1])
        relevance = torch.zeros_like(output.value)
        if relevance.ndim == 3:
            relevance[:, -1] = chosen * scores
        else:
            relevance += chosen * scores
        net.propagate(output, relevance)
        return net, output.value


def last_scores(logits):
    """The scores of the classes, or of the next token."""
    return logits if logits.ndim == 2 else logits[:, -1]


def best(result, labels):
    return last_scores(result["logits"]).max(1).values


_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT = {**_SMALL, "intermediate_size": 24, "vocab_size": 11}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8, "vocab_size": 11}
_GPT2 |= {"bos_token_id": 0, "eos_token_id": 0}
_VIT = {**_SMALL, "intermediate_size": 24, "image_size": 8, "patch_size": 4}
TRANSFORMERS = {
    "bert": Language("BertForSequenceClassification", {**_TEXT, "num_labels": 3}, attnlrp.bert),
    "llama": Language("LlamaForCausalLM", {**_TEXT, "num_key_value_heads": 1}, attnlrp.llama),
    "gpt2": Language("GPT2LMHeadModel", _GPT2, attnlrp.gpt2),
    "vit": Language("ViTForImageClassification", {**_VIT, "num_labels": 3}, attnlrp.vit),
}


def by_unit(relevance):
    """Sums over samples and tokens, and sums of absolute values."""
    rows = relevance.flatten(0, -2)
    return rows.sum(0), rows.abs().sum(0)


def by_row(indices, relevance, count):
    """The same for each row of an embedding, over all lookups of it."""
    whole = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for row, of_lookup in zip(indices.flatten(), relevance.sum(-1).flatten(), strict=True):
        whole[0][row] += of_lookup
        whole[1][row] += of_lookup.abs()
    return whole


def expected_of(net, counts, tied):
    """Return for each layer what it is to have: inputs, outputs, and both of absolute values."""
    found = {}
    for name, (a, made) in net.layers.items():
        found[name] = [*by_unit(a.relevance), *by_unit(made.relevance)]
    for name, (indices, made) in net.rows.items():
        rows, features = by_row(indices, made.relevance, counts[name]), by_unit(made.relevance)
        found[name] = [*rows, *features]
    for name, other in tied.items():  # a layer with an embedding's weight reads it the other way
        inputs, inputs_absolute, outputs, outputs_absolute = found.pop(other)
        turned = (outputs, outputs_absolute, inputs, inputs_absolute)
        found[name] = [a + b for a, b in zip(found[name], turned, strict=True)]
    return found


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("network", TRANSFORMERS)
def test_attnlrp_of_every_layer_is_that_of_the_papers_equations(network, attention):
    language = TRANSFORMERS[network]
    model = language.model(attention)
    tied = {"transformer.wte": "lm_head"} if network == "gpt2" else {}
    net, scores = language.reference(model)
    tolerance = ROUNDED if (network, attention) == ("llama", "eager") else TOLERANCE
    close(model(**language.batch).logits, scores, tolerance)  # it is the same network

    found = calibrate(model, [language.batch], "attnlrp", best)

    counts = {name: len(model.get_submodule(name).weight) for name in net.rows}
    expected = expected_of(net, counts, tied)
    assert set(found) == set(expected)
    for name, (inputs, inputs_absolute, outputs, outputs_absolute) in expected.items():
        layer = found[name]
        close(layer.input.flatten(), inputs, tolerance)
        close(layer.input_absolute.flatten(), inputs_absolute, tolerance)
        close(layer.output, outputs, tolerance)
        close(layer.output_absolute, outputs_absolute, tolerance)


def weights_of(model):
    """The names of the layers that have a weight: linear, convolution, Conv1D and embedding."""
    kinds = {"Linear", "Conv1D", "Conv2d", "Embedding"}
    return {n for n, m in model.named_modules() if type(m).__name__ in kinds}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("network", TRANSFORMERS)
def test_every_layer_of_a_transformer_has_finite_relevance_by_every_rule(network, rule):
    model = TRANSFORMERS[network].model("sdpa")

    found = calibrate(model, [TRANSFORMERS[network].batch], rule, best)

    tied = {other for layer in found.values() for other in layer.tied}
    assert set(found) | tied == weights_of(model)
    for name, layer in found.items():
        weight = model.get_submodule(name).weight
        assert layer.parameter_relevance().shape == weight.shape
        assert all(bool(v.isfinite().all()) for v in (*layer.vectors("sum"),))
        assert layer.output_absolute.any()


def test_a_tied_weight_counts_once_and_a_conv1d_lies_transposed():
    model = TRANSFORMERS["gpt2"].model()

    found = calibrate(model, [TRANSFORMERS["gpt2"].batch], "gradient-input", best)

    assert "lm_head" not in found
    assert found["transformer.wte"].tied == ("lm_head",)
    assert all(layer.transposed for layer in found.values())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_products_pass_on_just_what_they_get(attention):
    # Proposition 3.3: an equal share for each factor, and no more than there is to share.
    model = TRANSFORMERS["llama"].model(attention)
    batch = TRANSFORMERS["llama"].batch

    found = calibrate(model, [batch], "attnlrp", best, check=True)

    products = [b for b in found.balances if b.operation in {"mul", "matmul"}]
    gates = [b for b in products if b.layer.endswith("mlp")]
    assert len(gates) == 2
    assert all(balance.holds for balance in products)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "gradient-input"])
def test_tokens_may_be_overwritten_in_place(rule):
    def network(*, inplace):
        return filled(nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace), nn.Linear(5, 3)))

    tokens = normal(2, 6, 4)
    expected = calibrate(network(inplace=False), [tokens], rule, output="norm")

    found = calibrate(network(inplace=True), [tokens], rule, output="norm")

    for name, layer in expected.items():
        close(found[name].output, layer.output)
        close(found[name].input, layer.input)


@pytest.mark.parametrize("rule", RULES)
def test_a_dropout_in_place_changes_nothing_in_use(rule):
    def network(*, inplace):
        dropout = nn.Dropout(0.5, inplace)
        return filled(nn.Sequential(nn.Linear(4, 5), nn.Softmax(-1), dropout, nn.Linear(5, 3)))

    found, expected = (
        calibrate(network(inplace=inplace), [normal(3, 4)], rule) for inplace in (True, False)
    )

    for name, layer in expected.items():
        close(found[name].output, layer.output)
        close(found[name].input, layer.input)
