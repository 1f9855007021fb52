"""What a block of results has before it is whole: a run that was stopped goes on from there."""

import re
import time
from dataclasses import asdict

import numpy as np

import common
import sizes


class Unfinished:
    """The networks made so far, and how long that took, in results/unfinished-NAME.json.

    What was made of another dense network or judged on other data is not used; that the code has
    changed since is not noticed: after a change, delete the file.
    """

    def __init__(self, *name):
        self.file = "unfinished-" + re.sub(r"[^\w.]+", "-", "-".join(map(str, name)))
        self._began, self._dense, self._made = time.monotonic(), None, {}

    @property
    def seconds(self):
        """Return how long all runs took together."""
        return time.monotonic() - self._began

    def made_of(self, dense):
        """Return what earlier runs made of the dense network: (form, step) -> point or None."""
        self._dense = _row(dense)
        found = common.load(self.file, {"dense": None})
        if found["dense"] == self._dense:
            self._began -= found["seconds"]
            self._made = {(form, step): _point(row) for form, step, row in found["made"]}
            print(f"  goes on from {len(self._made)} networks of {self.file}.json", flush=True)
        return dict(self._made)

    def keep(self, form, step, point):
        """Add the form's network of a step, or that there is none."""
        self._made[form, step] = point
        rows = [[*key, _row(point)] for key, point in self._made.items()]
        common.save(self.file, {"dense": self._dense, "seconds": self.seconds, "made": rows})

    def finish(self):
        """Leave no file: the block is whole, and is saved."""
        (common.RESULTS / f"{self.file}.json").unlink(missing_ok=True)


def _row(point):
    return point and asdict(point) | {"outcomes": point.outcomes.tolist()}


def _point(row):
    return row and sizes.Point(**row | {"outcomes": np.array(row["outcomes"])})
