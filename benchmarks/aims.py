"""What was set out to be shown, and whether it is: in a line each, from what was measured."""

import itertools
import math

import cases
import methods
import tasks

SAVED = 0.35  # of the bytes of the better single signal: channels, unlike the training data
SMALLER = 0.60  # times the best other's bytes, at its accuracy
GRANULARITIES = ("channel", "element")
REPAIRS = ("none", "closed-form")
LIKE = ("as trained", "STS-B")  # deployments like the training data
ROLES = {  # FlexRel at the accuracy of the best other method: at which one, and how
    "FlexRel at the best's accuracy": ("score", "none trained, FlexRel repaired"),
    "FlexRel, trained, at the best's trained accuracy": ("trained", "all trained alike"),
    "FlexRel, untrained, at the best's trained accuracy": (
        "trained",
        "the others trained, FlexRel repaired alone",
    ),
}


def in_short(experiments, rivals):
    """Yield a line for each aim: what was found, of how many cases, and whether it is met."""
    groups = itertools.product(GRANULARITIES, REPAIRS, (False, True))
    for granularity, repair, like in groups:
        mine = [
            block
            for block in experiments
            if (block["granularity"], block["repair"]) == (granularity, repair)
            and (block["deployment"] in LIKE) == like
        ]
        if not mine:
            continue
        each = [block["log_ratio"]["FlexRel"][-1] for block in mine]
        found, error = _mean(each)
        where = "like" if like else "unlike"
        how = "not repaired" if repair == "none" else "all repaired alike"
        planned = sum((use in LIKE) == like for _, use in tasks.PLANNED)
        forms = [form for block in mine for form in block["forms"]["FlexRel"]]
        text = (
            f"{granularity.capitalize()}s, in use on data {where} the training data, {how}: "
            f"FlexRel saves {saving(found, error)} of the bytes that the better single signal "
            f"needs (geometric mean; networks and deployments: {len(mine)} of "
            f"{planned}, from {saving(max(each)[0])} to {saving(min(each)[0])}; targets: "
            f"{len(forms)}"
        )
        if granularity == "channel":
            text += f", at {forms.count('obs')} of them by OBS, neither of the signals"
        text += ")"
        if granularity == "channel" and not like:
            met = "met" if 1 - math.exp(found) >= SAVED else "not met"
            text += f"; the aim is {SAVED:.0%}: {met}"
        yield f"- {text}."
    for role in ROLES:
        yield from _beside(role, [block for block in rivals if not missing(block)])


def _beside(role, rivals):
    """Yield the line on what FlexRel takes at the accuracy of the best other method."""
    kinds = {}
    for block in rivals:
        ratio = 1.0 if _is_lost(block, role) else at_best(block, role)
        if ratio is not None:
            kinds.setdefault(block["granularity"], []).append(ratio)
    ratios = [ratio for found in kinds.values() for ratio in found]
    if not ratios:
        return
    found, error = _mean([(math.log(ratio), 0.0) for ratio in ratios])
    error = f" ± {100 * math.exp(found) * error:.0f}" if len(ratios) > 1 else ""
    means = ", ".join(
        f"{cases.UNITS[kind]} {math.exp(_mean([(math.log(r), 0.0) for r in each])[0]):.0%}"
        for kind, each in kinds.items()
    )
    met = "met" if math.exp(found) <= SMALLER else "not met"
    yield (
        f"- At the accuracy of the best other method, {ROLES[role][1]}, FlexRel's network takes "
        f"{100 * math.exp(found):.0f}{error} % of its bytes (geometric mean, one encoder; cases: "
        f"{len(ratios)} of {len(cases.CASES)}, from {min(ratios):.0%} to {max(ratios):.0%}; {means}"
        f"{_not_counted(rivals, role)}); the aim is {SMALLER:.0%}: {met}."
    )


def missing(block):
    """Return the methods that were not run on a case."""
    names = methods.names(block["network"], block["granularity"])
    return [name for name in names if name not in block["rows"]]


def _mean(pairs):
    """Return the mean of values with errors, and its error: theirs, or what they differ by."""
    values, errors = zip(*pairs, strict=True)
    count, mean = len(values), sum(values) / len(values)
    own = math.sqrt(sum(e * e for e in errors)) / count
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(count - 1, 1) / count)
    return mean, max(own, spread)


def saving(log_ratio, error=None):
    """Return a saving in percent, from the logarithm of bytes over others' bytes and its error."""
    ratio = math.exp(log_ratio)
    about = "" if error is None else f" ± {100 * ratio * error:.0f}"
    return f"{100 * (1 - ratio):.0f}{about} %"


def _not_counted(blocks, role):
    """Return in words for which cases there is no ratio, or none that was seen, and why."""
    known = [b for b in blocks if best_other(b, ROLES[role][0])]
    low = [block for block in known if _is_low(block, role)]
    lost = [block for block in known if _is_lost(block, role)]
    rest = [b for b in known if b not in low and b not in lost and at_best(b, role) is None]
    said = {
        "counted as 100%: {} where FlexRel was not seen to reach that accuracy": len(lost),
        "not counted: {} where the best other keeps less than half of the dense accuracy": len(low),
        "not counted: {} where it was not measured": len(rest),
    }
    return "".join("; " + why.format(count) for why, count in said.items() if count)


def at_best(block, role):
    """Return FlexRel's bytes over those of the best other method, at that one's accuracy.

    None where it was not measured, or where the best other is little better than a guess.
    """
    best, found = best_other(block, ROLES[role][0]), block["rows"].get(role, {})
    if not best or "packed" not in found or found["score"] != best[1][ROLES[role][0]]:
        return None  # measured before another method became the best
    return None if _is_low(block, role) else found["packed"] / best[1]["packed"]


def _is_low(block, role):
    """Return whether the best other is little better than a guess: bytes there say nothing."""
    key = ROLES[role][0]
    return 2 * best_other(block, key)[1][key] < block["dense"]["score"]


def _is_lost(block, role):
    """Return whether FlexRel was not seen to reach the accuracy of the best other method."""
    best, found = best_other(block, ROLES[role][0]), block["rows"].get(role, {})
    return bool(best) and not _is_low(block, role) and "failure" in found


def best_other(block, key):
    """Return the name and row of the best of the others; None where none was measured."""
    rows = [(n, r) for n, r in block["rows"].items() if key in r and not n.startswith(methods.OURS)]
    return max(rows, key=lambda pair: pair[1][key], default=None)
