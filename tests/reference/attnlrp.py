"""AttnLRP (Achtibat et al. 2024) by the paper's equations: operations send relevance on themselves.

Plain tensors in float64, no autograd and no modified gradients: an operation keeps its inputs and
its result, and its `send` turns the relevance of the result into one relevance an input.
"""

import math

import torch
from torch.nn import functional


class Node:
    """An activation: its value, and the relevance that all its readers sent back to it."""

    def __init__(self, value, inputs=(), send=None):
        self.value, self.inputs, self.send = value, inputs, send
        self.relevance = torch.zeros_like(value)


class Network:
    """Runs operations, keeps them in order, and goes back through them.

    `layers` has for each name the nodes that its layer read and made; `rows` for each embedding
    the indices that were looked up.
    """

    def __init__(self, epsilon):
        self.epsilon = epsilon
        self.nodes, self.layers, self.rows = [], {}, {}

    def node(self, value, inputs=(), send=None):
        self.nodes.append(Node(value, inputs, send))
        return self.nodes[-1]

    def propagate(self, output, relevance):
        """Start with the relevance of the output, and send it back to all inputs."""
        output.relevance = relevance
        for node in reversed(self.nodes):
            if node.send is not None:
                for given, part in zip(node.inputs, node.send(node.relevance), strict=True):
                    given.relevance = given.relevance + part

    def linear(self, name, a, weight, bias=None):
        """Equation 8, the ε-rule: `R_i = Σ_j W_ji a_i R_j / (z_j + ε sign z_j)`."""
        z = a.value @ weight.T + (0 if bias is None else bias)

        def send(relevance):
            return (a.value * (ratio(relevance, z + self.epsilon * z.sign()) @ weight),)

        made = self.node(z, (a,), send)
        self.layers[name] = (a, made)
        return made

    def patches(self, name, image, weight, bias):
        """A convolution whose stride is its kernel: the ε-rule on each patch; made: [n, t, c]."""
        side = weight.shape[-1]
        columns = functional.unfold(image, side, stride=side).transpose(1, 2)
        return self.linear(name, self.node(columns), weight.flatten(1), bias)

    def embedding(self, name, table, indices):
        made = self.node(table[indices])
        self.rows[name] = (indices, made)
        return made

    def add(self, *terms):
        """The ε-rule of a sum: each term in proportion to its value; constants take theirs too."""
        nodes = [term for term in terms if isinstance(term, Node)]
        total = sum(term.value if isinstance(term, Node) else term for term in terms)

        def send(relevance):
            return tuple(node.value * ratio(relevance, total) for node in nodes)

        return self.node(total, tuple(nodes), send)

    def function(self, function, x):
        """Equation 9, the identity rule of elementwise functions: `R_i = R_i`."""
        return self.node(function(x.value), (x,), lambda relevance: (relevance,))

    def times(self, x, constant):
        """A scaling by constants: the identity rule."""
        return self.function(lambda value: value * constant, x)

    def softmax(self, x):
        """Proposition 3.1, equation 13: `R_i = x_i (R_i - s_i Σ_j R_j)`; 0 where masked."""
        s = x.value.softmax(-1)

        def send(relevance):
            found = x.value * (relevance - s * relevance.sum(-1, keepdim=True))
            return (torch.where(s > 0, found, 0),)

        return self.node(s, (x,), send)

    def product(self, a, b):
        """Proposition 3.2 for two factors, elementwise: each gets half."""
        return self.node(a.value * b.value, (a, b), lambda relevance: (relevance / 2,) * 2)

    def matmul(self, a, v):
        """Proposition 3.3, equation 15: `R(A_ji) = Σ_p A_ji V_ip R_jp / (2 O_jp)`, `V` likewise."""
        o = a.value @ v.value

        def send(relevance):
            half = ratio(relevance, 2 * o)
            to_a = a.value * (half @ v.value.transpose(-1, -2))
            return to_a, v.value * (a.value.transpose(-1, -2) @ half)

        return self.node(o, (a, v), send)

    def layer_norm(self, x, weight, bias, eps):
        """Proposition 3.4: identity through the division; centring and scaling are linear."""
        size = x.value.shape[-1]
        centred = x.value - x.value.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        scaled = centred / deviation * weight
        made = scaled + bias
        centring = torch.eye(size, dtype=torch.float64) - 1 / size  # c = centring @ x

        def send(relevance):
            of_scaled = scaled * ratio(relevance, made)  # the bias keeps its share
            return (x.value * (ratio(of_scaled, centred) @ centring),)

        return self.node(made, (x,), send)

    def rms_norm(self, x, weight, eps):
        """Proposition 3.4: `R_i = R_i`. The value is rounded to float32, as transformers' is."""

        def normed(value):
            value = value.float()
            return (value * (value.square().mean(-1, keepdim=True) + eps).rsqrt()).double() * weight

        return self.function(normed, x)

    def rotated(self, x, cosine, sine):
        """Rotary positions, linear in x: `y = x cos + half(x) sin`, both terms by their value."""
        size = x.value.shape[-1] // 2

        def half(values, sign):
            return torch.cat((-sign * values[..., size:], sign * values[..., :size]), -1)

        made = x.value * cosine + half(x.value, 1) * sine

        def send(relevance):
            share = ratio(relevance, made)
            return (x.value * (share * cosine + half(share * sine, -1)),)

        return self.node(made, (x,), send)

    def moved(self, x, there, back):
        """A reshape, a selection: `there` moves values, `back` moves relevance."""
        return self.node(there(x.value), (x,), lambda relevance: (back(relevance),))

    def part(self, x, index):
        def back(relevance):
            whole = torch.zeros_like(x.value)
            whole[index] = relevance
            return whole

        return self.moved(x, lambda value: value[index], back)

    def spread(self, x, samples):
        """From `[1, t, d]`, looked up once for all samples, to `[n, t, d]`."""
        return self.moved(
            x,
            lambda value: value.expand(samples, -1, -1),
            lambda relevance: relevance.sum(0, keepdim=True),
        )

    def heads(self, x, count, repeats=1):
        """From `[n, t, heads * d]` to `[n, heads, t, d]`, each head as often as it is read."""

        def there(value):
            return value.unflatten(-1, (count, -1)).transpose(1, 2).repeat_interleave(repeats, 1)

        def back(relevance):
            summed = relevance.unflatten(1, (count, repeats)).sum(2)
            return summed.transpose(1, 2).flatten(2)

        return self.moved(x, there, back)

    def attention(self, q, k, v, allowed=None):
        """From `[n, heads, t, d]` to `[n, t, heads * d]`; `allowed`: which keys a query reads."""
        count, size = q.value.shape[1], q.value.shape[-1]
        turned = self.moved(k, lambda a: a.transpose(2, 3), lambda a: a.transpose(2, 3))
        scores = self.times(self.matmul(q, turned), 1 / math.sqrt(size))
        if allowed is not None:
            low = torch.finfo(torch.float64).min
            scores = self.function(lambda value: torch.where(allowed, value, low), scores)
        read = self.matmul(self.softmax(scores), v)
        return self.moved(
            read,
            lambda a: a.transpose(1, 2).flatten(2),
            lambda a: a.unflatten(-1, (count, -1)).transpose(1, 2),
        )


def ratio(above, below):
    """Return the quotient; 0 where nothing is to be divided by."""
    return torch.where(below == 0, 0, above / torch.where(below == 0, 1, below))


class Weights:
    """Parameters of a network by name: `w("layer")` is its weight and its bias or None."""

    def __init__(self, model):
        self.tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}

    def __getitem__(self, name):
        return self.tensors[name]

    def __call__(self, name):
        return self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")


def bert(model, ids, mask, epsilon):
    """BertForSequenceClassification: the network after running, and its output's node."""
    w, net, config = Weights(model), Network(epsilon), model.config
    eps, heads = config.layer_norm_eps, config.num_attention_heads

    def linear(name, x):
        return net.linear(name, x, *w(name))

    def norm(name, x):
        return net.layer_norm(x, *w(name), eps)

    def looked_up(kind, indices):
        name = f"bert.embeddings.{kind}_embeddings"
        return net.embedding(name, w(name)[0], indices)

    words, kinds = looked_up("word", ids), looked_up("token_type", torch.zeros_like(ids))
    positions = looked_up("position", torch.arange(ids.shape[1])[None])
    x = net.add(words, kinds, net.spread(positions, len(ids)))
    x = norm("bert.embeddings.LayerNorm", x)
    allowed = mask[:, None, None, :].bool()
    for layer in range(config.num_hidden_layers):
        at = f"bert.encoder.layer.{layer}"
        q, k, v = (
            net.heads(linear(f"{at}.attention.self.{name}", x), heads)
            for name in ("query", "key", "value")
        )
        read = linear(f"{at}.attention.output.dense", net.attention(q, k, v, allowed))
        x = norm(f"{at}.attention.output.LayerNorm", net.add(read, x))
        inner = net.function(functional.gelu, linear(f"{at}.intermediate.dense", x))
        x = norm(f"{at}.output.LayerNorm", net.add(linear(f"{at}.output.dense", inner), x))
    pooled = net.function(torch.tanh, linear("bert.pooler.dense", net.part(x, (slice(None), 0))))
    return net, linear("classifier", pooled)


def llama(model, ids, epsilon):
    """LlamaForCausalLM without padding: the network after running, and the logits' node."""
    w, net, config = Weights(model), Network(epsilon), model.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    length, size = ids.shape[1], config.hidden_size // heads
    causal = torch.ones(length, length).tril().bool()
    frequencies = 1 / config.rope_parameters["rope_theta"] ** (torch.arange(0, size, 2) / size)
    angles = (torch.arange(length)[:, None] * frequencies).repeat(1, 2)
    cosine, sine = angles.cos().double(), angles.sin().double()  # of float32 angles

    def linear(name, x):
        return net.linear(name, x, *w(name))

    def norm(name, x):
        return net.rms_norm(x, w(name)[0], config.rms_norm_eps)

    x = net.embedding("model.embed_tokens", w("model.embed_tokens")[0], ids)
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}"
        given = norm(f"{at}.input_layernorm", x)
        q = net.heads(linear(f"{at}.self_attn.q_proj", given), heads)
        k = net.heads(linear(f"{at}.self_attn.k_proj", given), groups, heads // groups)
        v = net.heads(linear(f"{at}.self_attn.v_proj", given), groups, heads // groups)
        q, k = (net.rotated(a, cosine, sine) for a in (q, k))
        x = net.add(x, linear(f"{at}.self_attn.o_proj", net.attention(q, k, v, causal)))
        given = norm(f"{at}.post_attention_layernorm", x)
        gate = net.function(functional.silu, linear(f"{at}.mlp.gate_proj", given))
        inner = net.product(gate, linear(f"{at}.mlp.up_proj", given))
        x = net.add(x, linear(f"{at}.mlp.down_proj", inner))
    return net, linear("lm_head", norm("model.norm", x))


def gpt2(model, ids, epsilon):
    """GPT2LMHeadModel: the network after running, and the logits' node."""
    w, net, config = Weights(model), Network(epsilon), model.config
    eps, heads, width = config.layer_norm_epsilon, config.n_head, config.n_embd
    causal = torch.ones(ids.shape[1], ids.shape[1]).tril().bool()

    def linear(name, x):
        weight, bias = w(name)
        return net.linear(name, x, weight.T, bias)  # its Conv1D holds [in, out]

    def norm(name, x):
        return net.layer_norm(x, *w(name), eps)

    def gelu(value):
        return functional.gelu(value, approximate="tanh")

    words = net.embedding("transformer.wte", w("transformer.wte")[0], ids)
    places = torch.arange(ids.shape[1])[None]
    positions = net.embedding("transformer.wpe", w("transformer.wpe")[0], places)
    x = net.add(words, net.spread(positions, len(ids)))
    for layer in range(config.n_layer):
        at = f"transformer.h.{layer}"
        joint = linear(f"{at}.attn.c_attn", norm(f"{at}.ln_1", x))
        q, k, v = (
            net.heads(net.part(joint, (..., slice(n * width, (n + 1) * width))), heads)
            for n in range(3)
        )
        x = net.add(linear(f"{at}.attn.c_proj", net.attention(q, k, v, causal)), x)
        inner = net.function(gelu, linear(f"{at}.mlp.c_fc", norm(f"{at}.ln_2", x)))
        x = net.add(x, linear(f"{at}.mlp.c_proj", inner))
    return net, net.linear("lm_head", norm("transformer.ln_f", x), w("lm_head")[0])


def vit(model, pixels, epsilon):
    """ViTForImageClassification: the network after running, and its output's node."""
    w, net, config = Weights(model), Network(epsilon), model.config
    eps, heads = config.layer_norm_eps, config.num_attention_heads

    def linear(name, x):
        return net.linear(name, x, *w(name))

    def norm(name, x):
        return net.layer_norm(x, *w(name), eps)

    name = "vit.embeddings.patch_embeddings.projection"
    made = net.patches(name, pixels, *w(name))
    first = w["vit.embeddings.cls_token"].expand(len(pixels), 1, -1)
    x = net.moved(made, lambda value: torch.cat((first, value), 1), lambda found: found[:, 1:])
    x = net.add(x, w["vit.embeddings.position_embeddings"])
    for layer in range(config.num_hidden_layers):
        at = f"vit.layers.{layer}"
        given = norm(f"{at}.layernorm_before", x)
        q, k, v = (net.heads(linear(f"{at}.attention.{n}_proj", given), heads) for n in "qkv")
        x = net.add(linear(f"{at}.attention.o_proj", net.attention(q, k, v)), x)
        given = norm(f"{at}.layernorm_after", x)
        inner = net.function(functional.gelu, linear(f"{at}.mlp.fc1", given))
        x = net.add(linear(f"{at}.mlp.fc2", inner), x)
    first = net.part(norm("vit.layernorm", x), (slice(None), 0))
    return net, linear("classifier", first)
