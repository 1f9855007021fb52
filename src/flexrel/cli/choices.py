"""What can be written for an option, told and checked before torch is loaded, which takes seconds.

What is refused here is nothing that the library reads, which has the last word;
`tests/cli/test_startup.py` holds it to that.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import typer

_RULES: Final = ("gradient-input", "epsilon", "gamma", "zplus", "composite", "attnlrp")
NAMED: Final[Mapping[str, tuple[str, ...]]] = {
    "allocation": ("global", "per-layer"),
    "codec": ("pcodec-1", "zstd-1"),
    "effort": ("fast", "default", "thorough"),
    "export": ("onnx", "pt2", "graph", "observe"),
    "form": ("auto", "module", "exported"),
    "output": ("auto", "label", "predicted", "norm"),
    "outputs": ("auto", "classes", "logits", "values"),
    "rule": _RULES,
    "values": ("auto", "float32", "bfloat16", "float16", "int8", "int4"),
}
_TOLD: Final = {
    "budget": "bytes=500kB, macs=50%, parameters=120k, sparsity=80%, link=8s@1Mbit/s, memory=50%, "
    "latency=5ms@onnxruntime",
    "criterion": "auto, magnitude, relevance, obs or flexrel:DELTA, DELTA in [0, 1]",
    "granularity": "auto, element, channel, head, depth, N:M with 0 < N < M, block:ROWSxCOLUMNS",
    "recover": "none, closed-form, or finetune:EPOCHS",
    "rule": f"{', '.join(_RULES)}; by layer: features.*=gamma,head*=epsilon",
    "time_limit": '90, "90 s", "2 min" or "1 h"',
    "target": "accuracy-drop=1% or 0.01, accuracy>=90%, loss<=0.35, perplexity+5%, mAP-0.5",
}
_NUMBER: Final = r"[0-9]*\.?[0-9]+"
_PERCENT: Final = r"(100(\.0*)?|[0-9]{0,2}(\.[0-9]+)?)\s*%"
_AMOUNT: Final = rf"({_NUMBER}\s*[kMG]?|{_PERCENT})"
_COUNTED: Final = "bytes|macs|parameters|sparsity"
_RULE: Final = rf"[^=,]+=\s*({'|'.join(_RULES)})\s*"
_UNSIGNED: Final = r"([0-9]+\.?[0-9]*|\.[0-9]+)(e-?[0-9]+)?"
_REAL: Final = rf"-?{_UNSIGNED}"
_METRIC: Final = r"[A-Za-z]([^=<>,]*?[^=<>,+\-\s])?"
_TARGET: Final = (
    rf"\s*((accuracy-drop=)?(0+|0*\.[0-9]+|{_PERCENT})|accuracy\s*(>=|<=)\s*{_REAL}%"
    rf"|{_METRIC}\s*(>=|<=)\s*{_REAL}|{_METRIC}\s*[+-]\s*{_UNSIGNED}%?)\s*"
)
_PATTERNS: Final = {
    "budget": rf"({_COUNTED})={_AMOUNT}|bytes=\s*[0-9.]+\s*([kKMG]i?)?B\s*"
    rf"|(?!({_COUNTED}|flops?|params?|size)=)[a-z]+=.+",
    "criterion": rf"auto|magnitude|relevance|obs|flexrel:{_NUMBER}(:sum|:product)?",
    "granularity": "auto|element|channel|head|depth"
    "|[1-9][0-9]*:[1-9][0-9]*|block:[1-9][0-9]*x[1-9][0-9]*",
    "recover": "none|closed-form|finetune:[0-9]+",
    "rule": rf"{'|'.join(_RULES)}|{_RULE}(,{_RULE})*",
    "target": rf"{_TARGET}(,{_TARGET})*",
    "time_limit": rf"\s*{_NUMBER}\s*(us|ms|s|min|h)?\s*",
}


def told(option: str) -> str:
    """Return what can be written for an option."""
    return _TOLD[option] if option in _TOLD else ", ".join(NAMED[option])


def metric_of(target: str) -> str:
    """Return the name of the metric that the first target of a text is on."""
    first = target.partition(",")[0].strip()
    found = re.fullmatch(rf"({_METRIC})\s*(>=|<=|[+-])\s*{_REAL}%?", first)
    return found[1] if found else "accuracy"


def check(option: str) -> Callable[[Any], Any]:
    """Return what refuses other texts, of an option that takes none, one or several."""
    pattern = _PATTERNS.get(option) or "|".join(map(re.escape, NAMED[option]))

    def checked(given: Any) -> Any:  # noqa: ANN401 - a text, texts or None
        for text in [given] if isinstance(given, str) else given or ():
            if not re.fullmatch(pattern, text):
                raise typer.BadParameter(
                    f"{text!r} can't be read; write {told(option)}{_hint(text)}"
                )
        return given

    return checked


def _hint(text: str) -> str:
    name, _, amount = text.partition("=")
    meant = {"flop": "macs", "param": "parameters", "size": "bytes"}.get(name.lower().rstrip("s"))
    return f"; did you mean {meant}={amount}?" if meant else ""


def check_asked(
    target: str | None,
    budget: list[str] | None,
    granularity: str,
    evaluation: str | None,
    *,
    compare: bool,
) -> None:
    """Find out before torch is loaded that there is nothing to do, or nothing to do it with.

    Raises:
        typer.BadParameter: so it is.
    """
    if (target or compare) and not evaluation:
        asked = f"a target on {metric_of(target)}" if target else "--compare"
        raise typer.BadParameter(f"{asked} needs --evaluation DATA, with labels")
    if compare and granularity == "auto":
        raise typer.BadParameter("--compare measures granularities one at a time; name one of them")
    if not (target or budget or ":" in granularity):
        raise typer.BadParameter("nothing to prune to; give --target or --budget")
