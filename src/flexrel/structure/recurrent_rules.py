"""What operations that take all steps of a recurrent layer say of axes."""

from math import prod

from flexrel.structure.dependencies import DependencyBuilder
from flexrel.structure.move_rules import give_up
from flexrel.structure.trace import Operation

_LSTM, _GATES = 2, 4  # the number of its mode, and of rows that each unit has


def whole(d: DependencyBuilder, op: Operation) -> None:
    """Count what a recurrent layer does at each step, and leave it alone."""
    _count_steps(d, op)
    give_up(d, op)


def _count_steps(d: DependencyBuilder, op: Operation) -> None:
    steps = prod(op.inputs[0].shape[:-1])
    for ref in op.inputs[1:]:
        if d.is_weight(ref) and len(ref.shape) > 1:
            d.count(ref, steps * prod(ref.shape))


def lstm(d: DependencyBuilder, op: Operation) -> None:
    """Take all steps of a layer in one direction: a unit has a row of each gate, and a state."""
    x, weights = op.args["input"], [op.args[f"weight{at}"] for at in range(4)]
    if op.args["mode"] != _LSTM:
        whole(d, op)
        return
    _count_steps(d, op)
    output, *states = op.outputs[:3]
    *around, inputs = d.axes(x)
    units = d.axes(op.args["hx_"])[-1]
    for axis in (d.axes(weights[1])[1], d.axes(op.args["cx_"])[-1]):
        units = d.join(units, axis)
    for ref in weights if op.args["has_biases"] else weights[:2]:
        for gate in d.flat(d.axes(ref)[0]).reshape(_GATES, -1):
            d.join((gate,), units)
    d.join(inputs, d.axes(weights[0])[1])
    for ref in weights[:2]:
        makes, takes = d.axes(ref)
        d.role(makes, "producer")
        d.role(takes, "consumer")
    d.set(output, [*around, units])
    for state, given in zip(states, (op.args["hx_"], op.args["cx_"]), strict=True):
        d.set(state, [*d.axes(given)[:-1], units])
