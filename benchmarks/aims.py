"""What was set out to be shown, and whether it is: in a line each, from what was measured."""

import itertools
import math
from statistics import fmean, median, variance

import cases
import common
import methods
import tasks

SAVED = 0.35  # of the bytes of the better single signal: channels, unlike the training data
SMALLER = 0.60  # times the best other's bytes, at its accuracy
GRANULARITIES = ("channel", "element")
REPAIRS = ("none", "closed-form")
LIKE = ("as trained", "STS-B")  # deployments like the training data
FOUND, BLEND, LABELS = "FlexRel", "FlexRel without OBS", "FlexRel by labels"  # ways to choose
ROLES = {  # FlexRel at the accuracy of the best other method: at which one, and how
    "FlexRel at the best's accuracy": ("score", "none trained, FlexRel repaired"),
    "FlexRel, trained, at the best's trained accuracy": ("trained", "all trained alike"),
    "FlexRel, untrained, at the best's trained accuracy": (
        "trained",
        "the others trained, FlexRel repaired alone",
    ),
}


def in_short(experiments, rivals):
    """Yield a table for each aim, what it shows, and whether the aim is met."""
    yield from _beside_signals(experiments)
    yield from _beside_others([block for block in rivals if not missing(block)])


def _beside_signals(experiments):
    """Yield what FlexRel saves over the better of magnitude and relevance."""
    rows = []
    for granularity, repair, like in itertools.product(GRANULARITIES, REPAIRS, (False, True)):
        mine = [
            block
            for block in experiments
            if (block["granularity"], block["repair"]) == (granularity, repair)
            and (block["deployment"] in LIKE) == like
        ]
        if not mine:
            continue
        each = _over_draws(mine, FOUND)
        found, error = _mean(each)
        least, most = (100 * (1 - math.exp(ratio)) for ratio, _ in (max(each), min(each)))
        planned = sum((use in LIKE) == like for _, use in tasks.PLANNED)
        forms = [form for block in mine for form in block["forms"][FOUND]]
        asked = ""
        if granularity == "channel" and not like:
            met = "met" if 1 - math.exp(found) >= SAVED else "not met"
            asked = f"≥ {100 * SAVED:.0f} %: {met}"
        rows.append(
            [
                f"{cases.UNITS[granularity]}, {'like' if like else 'unlike'} the training data",
                "no" if repair == "none" else "yes",
                saving(found, error),
                asked,
                _without_obs(mine) if granularity == "channel" else "",
                f"{100 * (1 - math.exp(median(ratio for ratio, _ in each))):.0f} %",
                f"{least:.0f} to {most:.0f} %",
                f"{len(each)} of {planned}",
                f"{forms.count('obs')} of {len(forms)}",
            ]
        )
    if not rows:
        return
    yield (
        "Bytes that FlexRel saves over the better of the two single signals, magnitude and "
        "relevance, at the same accuracy: geometric mean over networks, uses and targets; median "
        "and range over networks and uses; draws of calibration data count as one use. "
        "*Repaired*: all alike, in closed form. *By OBS*: targets at which FlexRel's form is "
        "neither of the signals nor a blend of them; *without OBS*: what is saved where it may "
        "not be, and of how many networks and uses that is known if not of all."
    )
    header = ["cut, in use on data", "repaired", "saved", "asked", "without OBS", "median", "range"]
    yield common.table([*header, "networks and uses", "by OBS"], rows)


def _without_obs(blocks):
    """Return what blends of the signals alone save, and over how many uses if not over all."""
    each, known = (_over_draws(blocks, name) for name in (BLEND, FOUND))
    if not each:
        return ""
    return saving(*_mean(each)) + ("" if len(each) == len(known) else f" ({len(each)})")


def _over_draws(blocks, name):
    """Return the mean logarithm of each network and use, and its error: of images and of draws."""
    uses = {}
    for block in blocks:
        if name in block["log_ratio"]:
            pair = block["log_ratio"][name][-1]
            uses.setdefault((block["network"], block["deployment"]), []).append(pair)
    found = []
    for pairs in uses.values():
        values, errors = zip(*pairs, strict=True)
        of_draws = variance(values) / len(values) if len(values) > 1 else 0.0
        # the same images report for all draws: their error does not shrink
        found.append((fmean(values), math.hypot(fmean(errors), math.sqrt(of_draws))))
    return found


def _beside_others(rivals):
    """Yield what FlexRel takes at the accuracy of the best other method."""
    rows, notes = [], []
    for role, (_, how) in ROLES.items():
        kinds = {kind: [] for kind in GRANULARITIES}
        for block in rivals:
            ratio = 1.0 if _is_lost(block, role) else at_best(block, role)
            if ratio is not None:
                kinds[block["granularity"]].append(ratio)
        ratios = [ratio for found in kinds.values() for ratio in found]
        if not ratios:
            continue
        found = math.exp(_mean([(math.log(ratio), 0.0) for ratio in ratios])[0])
        rows.append(
            [
                how,
                _share(ratios),
                f"≤ {100 * SMALLER:.0f} %: {'met' if found <= SMALLER else 'not met'}",
                *(_share(each) for each in kinds.values()),
                f"{percent(median(ratios))} %",
                f"{percent(min(ratios))} to {percent(max(ratios))} %",
                f"{len(ratios)} of {len(cases.CASES)}",
            ]
        )
        if why := _not_counted(rivals, role):
            notes.append(f"- {how[0].upper()}{how[1:]}: {'; '.join(why)}.")
    if not rows:
        return
    yield (
        "Bytes that FlexRel takes at the accuracy of the best other method of each case, as a "
        "share of that one's, through one encoder: geometric mean, median and range over cases."
    )
    kinds = (f"{cases.UNITS[kind]} alone" for kind in GRANULARITIES)
    yield common.table(["", "of its bytes", "asked", *kinds, "median", "range", "cases"], rows)
    if notes:
        yield "\n".join(notes)


def percent(ratio):
    """Return a ratio in percent, to a tenth below ten."""
    return f"{100 * ratio:.{1 if ratio < 0.095 else 0}f}"


def _share(ratios):
    """Return the geometric mean in percent, with the error of one of several."""
    if not ratios:
        return ""
    found, error = _mean([(math.log(ratio), 0.0) for ratio in ratios])
    about = f" ± {100 * math.exp(found) * error:.0f}" if len(ratios) > 1 else ""
    return f"{percent(math.exp(found))}{about} %"


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


def saving(log_ratio, error):
    """Return a saving in percent with its error, from a logarithm of bytes over others' bytes."""
    ratio = math.exp(log_ratio)
    return f"{100 * (1 - ratio):.0f} ± {100 * ratio * error:.0f} %"


def _not_counted(blocks, role):
    """Return in words for which cases there is no ratio, or none that was seen, and why."""
    known = [b for b in blocks if best_other(b, ROLES[role][0])]
    low = [block for block in known if _is_low(block, role)]
    lost = [block for block in known if _is_lost(block, role)]
    rest = [b for b in known if b not in low and b not in lost and at_best(b, role) is None]
    said = {
        "counted as 100 %: {} where FlexRel was not seen to reach that accuracy": lost,
        "not counted: {} where the best other is closer to one answer for all than to dense": low,
        "not counted: {} where it was not measured": rest,
    }
    return [why.format(len(found)) for why, found in said.items() if found]


def at_best(block, role):
    """Return FlexRel's bytes over those of the best other method, at that one's accuracy.

    None where it was not measured, or where the best other is little better than a guess.
    """
    best, found = best_other(block, ROLES[role][0]), block["rows"].get(role, {})
    if not best or "packed" not in found or found["score"] != best[1][ROLES[role][0]]:
        return None  # measured before another method became the best
    return None if _is_low(block, role) else found["packed"] / best[1]["packed"]


def _is_low(block, role):
    """Return whether the best other is little better than one answer to all: bytes say nothing."""
    key, dense = ROLES[role][0], block["dense"]
    score = best_other(block, key)[1][key]
    return 2 * (score - dense["constant"]) < dense["score"] - dense["constant"]


def _is_lost(block, role):
    """Return whether FlexRel was not seen to reach the accuracy of the best other method."""
    best, found = best_other(block, ROLES[role][0]), block["rows"].get(role, {})
    return bool(best) and not _is_low(block, role) and "failure" in found


def best_other(block, key):
    """Return the name and row of the best of the others; None where none was measured."""
    rows = [(n, r) for n, r in block["rows"].items() if key in r and not n.startswith(methods.OURS)]
    return max(rows, key=lambda pair: pair[1][key], default=None)
