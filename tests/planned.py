"""Random plans of the families of networks."""

from functools import cache

from families import FAMILIES, family
from flexrel import Plan
from flexrel.structure import analyse
from networks import (
    batch,
    images,
    random_plan,
)

INPUTS = images(4).float()


def plan_for(model, seed=1, granularity="channel", inputs=INPUTS, keep=()):
    plan = random_plan(analyse(model, batch(inputs), granularity, keep), seed)
    return Plan(plan.graph, plan.masks)


@cache
def all_plans():
    """A plan of each family, and one of single weights."""
    made = {name: plan_for(family(name)) for name in FAMILIES}
    return made | {"weights": plan_for(family("grouped"), granularity="element")}
