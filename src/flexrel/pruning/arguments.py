"""What texts, and None, stand for among the arguments of `prune`."""

import re
from collections.abc import Sequence

from flexrel.criteria import BLENDS, OBS, Blend, Criterion, FlexRel, Magnitude, Relevance
from flexrel.errors import UsageError
from flexrel.relevance import Attribution
from flexrel.repair import ClosedForm, FineTune, Recovery

_PLAIN = re.compile(r"[0-9]*\.?[0-9]+")


def criteria_of(
    given: Criterion | str | Sequence[Criterion | str] | None,
    granularity: str,
    recover: str | Recovery,
    attribution: Attribution = Attribution(),  # noqa: B008 - frozen
) -> tuple[Criterion, ...]:
    """Return the criteria that one is chosen from.

    Args:
        given: criteria, or their names as plans have them, such as "flexrel:0.5:product"; None,
            none and "auto": `candidates`.
        granularity: as in `prune`.
        recover: likewise.
        attribution: which relevance criteria need that are given by name, and OBS from which
            output.

    Raises:
        UsageError: one is no criterion, or needs relevance of two kinds.
    """
    one = isinstance(given, str | Criterion)
    several = (given,) if one else tuple(given or ())  # type: ignore[arg-type] # str is a Sequence
    if several in ((), ("auto",)):
        return candidates(granularity, recover, attribution)
    found = tuple(_criterion(each, attribution) for each in several)
    for criterion in found:
        if sum(isinstance(need, Attribution) for need in criterion.needs) > 1:
            raise UsageError(
                f"criterion {criterion.name!r} needs relevance by two attributions; one is given"
            )
    return found


def _criterion(given: object, attribution: Attribution) -> Criterion:
    if isinstance(given, Criterion):
        return given
    rule, output = attribution.rule, attribution.output
    name, _, rest = str(given).partition(":")
    plain: dict[object, Criterion] = {
        "magnitude": Magnitude(),
        "relevance": Relevance(rule=rule, output=output),
        "obs": OBS(output),
    }
    if given in plain:
        return plain[given]
    delta, _, blend = rest.partition(":")
    if isinstance(given, str) and name == "flexrel" and _PLAIN.fullmatch(delta):
        for known in BLENDS:
            if known == (blend or "sum"):
                return FlexRel(float(delta), blend=known, rule=rule, output=output)
    raise UsageError(
        f"criterion {given!r} is not known; there are: auto, magnitude, relevance, obs, "
        "flexrel:DELTA and flexrel:DELTA:product with DELTA in [0, 1], or an object that fits "
        "flexrel.Criterion"
    )


def candidates(
    granularity: str = "channel",
    recover: str | Recovery = "closed-form",
    attribution: Attribution = Attribution(),  # noqa: B008 - frozen
) -> tuple[Criterion, ...]:
    """Return the criteria that `criterion=None` chooses from; of equals, the earlier is taken.

    Where each network tried is repaired, which takes longer, they are few. For channels and heads
    `OBS`, which knows of the repair, and the signals that it does not always beat; for weights
    those that were best somewhere: magnitude first, since a budget on bytes has its network
    repaired already. Of blocks OBS knows nothing. `docs/method.md` has the measurements.

    Args:
        granularity: as in `prune`.
        recover: likewise.
        attribution: by which rule and from which output relevance is measured, and saliency.
    """
    rule, output = attribution.rule, attribution.output

    def blended(delta: float, blend: Blend = "sum") -> FlexRel:
        return FlexRel(delta, blend=blend, rule=rule, output=output)

    relevance = Relevance(rule=rule, output=output)
    repairs = recover != "none"
    if repairs and granularity in ("channel", "head", "auto"):
        return (OBS(output), blended(0.5), Magnitude(), relevance)
    if repairs and granularity != "depth":
        plain = Magnitude(), blended(1 / 3, "product"), blended(0.1)
        return plain if granularity.startswith("block") else (*plain, OBS(output))
    sums = tuple(map(blended, (0.1, 0.3, 0.5, 0.7, 0.9)))
    products = tuple(blended(delta, "product") for delta in (1 / 3, 0.5, 2 / 3))
    return (*sums, *products, Magnitude(), relevance)


def are_candidates(
    criteria: tuple[Criterion, ...], granularity: str, recover: str | Recovery
) -> bool:
    """Return whether the criteria are those that one is chosen from where none is named."""
    needs = (need for criterion in criteria for need in criterion.needs)
    measured = next((need for need in needs if isinstance(need, Attribution)), Attribution())
    return criteria == candidates(granularity, recover, measured)


def recoveries(recover: str | Recovery, seed: int) -> tuple[ClosedForm | None, Recovery | None]:
    """Return what repairs every network that is tried, and what goes on from the one chosen.

    Args:
        recover: "none", "closed-form", "finetune:E" for E epochs on the calibration data, or what
            is to follow the repair.
        seed: of random numbers.

    Raises:
        UsageError: it is none of these.
    """
    if recover == "none":
        return None, None
    if recover == "closed-form":
        return ClosedForm(seed=seed), None
    if isinstance(recover, str):
        kind, _, epochs = recover.partition(":")
        if kind != "finetune" or not epochs.isdecimal():
            raise UsageError(
                f"recover {recover!r} is not known; there are: none, closed-form, finetune:EPOCHS"
            )
        recover = FineTune(int(epochs), seed=seed)
    if not isinstance(recover, Recovery):
        raise UsageError(
            f"recover is a {type(recover).__name__}, which does not fit flexrel.Recovery; pass "
            "none, closed-form, finetune:EPOCHS or a flexrel.FineTune(...)"
        )
    return (recover, None) if isinstance(recover, ClosedForm) else (ClosedForm(seed=seed), recover)
