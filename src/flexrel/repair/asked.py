"""What `recover=` asks for."""

from flexrel.errors import UsageError
from flexrel.repair.finetune import FineTune
from flexrel.repair.recovery import ClosedForm, Recovery


def recoveries(recover: str | Recovery, seed: int) -> tuple[Recovery | None, Recovery | None]:
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
