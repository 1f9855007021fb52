"""Operations by the names that people write and know, in place of torch's inner ones."""

import re
from types import MappingProxyType

import torch
from torch import Tensor

_INNER = re.compile(r"\b(?:torch\.ops\.)?aten(?:::|\.)(\w+)(?:\.\w+)*")
_SIDE = re.compile(r"__[ri]?(add|sub|mul|truediv|matmul|pow)__")


def everyday(name: str) -> str:
    """Return an operation's everyday name: "torch.cumsum", "layer norm", "an LSTM".

    Args:
        name: of a function or method of torch, or of ATen, such as "aten.native_layer_norm"; a name
            of another library's operation is returned as it is.
    """
    plain = name.removeprefix("aten.")
    if side := _SIDE.fullmatch(plain):
        plain = side[1].replace("truediv", "div")
    word = _WORDS.get(plain) or _WORDS.get(plain.removesuffix("_"))
    if word or "." in plain or "::" in plain:
        return word or plain
    for kind in ("linalg", "special", "fft"):
        if plain.startswith(f"{kind}_"):
            return f"torch.{kind}.{plain.removeprefix(f'{kind}_')}"
    for known in (plain, plain.lstrip("_")):
        for place, text in (
            (torch, "torch"),
            (torch.nn.functional, "torch.nn.functional"),
            (Tensor, "Tensor"),
        ):
            if not known.startswith("_") and hasattr(place, known):
                return f"{text}.{known}"
    return f"the operation {plain}"


def in_everyday_words(text: str) -> str:
    """Return a message of torch with its inner names of operations replaced."""
    return _INNER.sub(lambda found: everyday(f"aten.{found[1]}"), text)


def _words() -> MappingProxyType[str, str]:
    words = {
        "layer norm": "native_layer_norm",
        "group norm": "native_group_norm",
        "batch norm": (
            "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit "
            "_native_batch_norm_legit_no_training _batch_norm_with_update _batch_norm_no_update"
        ),
        "RMS norm": "_fused_rms_norm rms_norm",
        "weight norm": "_weight_norm _weight_norm_interface",
        "an LSTM": "lstm mkldnn_rnn_layer",  # torch gives no other kind to that library
        "a GRU": "gru",
        "a recurrent layer": "rnn_tanh rnn_relu _cudnn_rnn miopen_rnn",
        "a recurrent cell": (
            "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell _thnn_fused_lstm_cell "
            "_thnn_fused_gru_cell"
        ),
        "attention": (
            "scaled_dot_product_attention _scaled_dot_product_attention_math "
            "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
            "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
            "_native_multi_head_attention _transformer_encoder_layer_fwd"
        ),
        "a linear layer": "linear mkldnn_linear",
        "a convolution": (
            "convolution _convolution mkldnn_convolution cudnn_convolution conv1d conv2d conv3d "
            "conv_transpose1d conv_transpose2d conv_transpose3d slow_conv2d_forward"
        ),
        "a matrix product": "mm addmm bmm baddbmm matmul",
        "a bag of embeddings": "_embedding_bag _embedding_bag_forward_only embedding_bag",
        "an embedding": "embedding",
        "softmax": "_softmax softmax _safe_softmax",
        "log softmax": "_log_softmax log_softmax",
        "dropout": "native_dropout dropout",
        "padding": "constant_pad_nd pad _pad_circular",
        "a slice": "slice",
        "an index": "select __getitem__",
        "an index of numbers": "index _unsafe_index",
        "an assignment to entries": "copy index_put _index_put_impl __setitem__ slice_scatter",
        "a reshape": "view _unsafe_view reshape _reshape_alias",
        "a conversion": "_to_copy",
        "a number read from a tensor": "_local_scalar_dense item",
        "interpolation": (
            "interpolate upsample_nearest1d upsample_nearest2d upsample_nearest3d "
            "upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d "
            "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d "
            "_upsample_bilinear2d_aa _upsample_bicubic2d_aa"
        ),
        "max pooling": (
            "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices "
            "adaptive_max_pool2d adaptive_max_pool3d"
        ),
        "average pooling": (
            "avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d"
        ),
        "PReLU": "_prelu_kernel prelu",
        "an FFT": "_fft_r2c _fft_c2r _fft_c2c",
        "torch.cdist": "_cdist_forward",
    }
    return MappingProxyType({name: word for word, names in words.items() for name in names.split()})


_WORDS = _words()
