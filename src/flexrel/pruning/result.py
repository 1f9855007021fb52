"""What `prune` returns: the network, the plan, the evidence, and how it is written down."""

import platform
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from torch import nn

from flexrel.core.batches import Batch
from flexrel.core.budgets import Bytes
from flexrel.core.caches import cache_note
from flexrel.core.class_names import ClassNames
from flexrel.core.evaluate import standard_error
from flexrel.core.latency import Timing
from flexrel.core.measurement import Measurement, RecoveryStep
from flexrel.core.plan import Plan, changes, dump
from flexrel.core.precision import Values
from flexrel.criteria import Criterion, FlexRel
from flexrel.io import EXPORTS, check_exports, encode, export_notes, exported, graph_notes, render
from flexrel.pruning.display import Displayed
from flexrel.pruning.evidence import Evidence, Origin
from flexrel.pruning.limits import Limits
from flexrel.pruning.promise import Promise
from flexrel.pruning.request import Request
from flexrel.pruning.written import (
    finite,
    goal_json,
    measurement_json,
    metrics_json,
    recovery_json,
)
from flexrel.relevance import RelevanceStats
from flexrel_edge.files import replace_files
from flexrel_edge.format import describe


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Result(Displayed):
    """A pruned network and the evidence for it.

    Attributes:
        model: the pruned network; the one given to `prune` is not changed.
        plan: what went and what stayed, and why some layers were left alone: `plan.explain()`.
        criterion: that scored the units, delta included.
        dense: what the network as it came costs and does.
        achieved: what the pruned network costs and does.
        recovery: what repair and training did, step by step.
        warnings: what may be wrong with the request, each in a line with its numbers.
        request: what was asked.
        outputs: of the network: "classes", "logits", "values", or "distance", the caller's own.
        limits: what that came to.
        amounts: how much of each limited resource the dense network takes, and the pruned one.
        timing: how long a call takes, measured in a process of its own, if that was limited.
        samples: how many samples accuracy was measured on, if `evaluate` tells.
        deviation: of accuracy from one to another; None where each is right or wrong.
        promise: how much accuracy is lost at most, by samples that nothing was chosen on; None if
            `evaluate` does not tell samples apart.
        stats: the relevance that was measured, the first if by several attributions.
        values: precision of the packed file.
        samples_a_call: how many samples an exported program takes in one call; None: any number,
            or what the network took before.
        calibration_samples: how many there were.
        example: the first calibration batch, which exports are made with.
        packed: content of `model.flexrel`.
        evidence: layer by layer what it takes, units' scores, answers that changed.
        program: content of `model.pt2`, if the network is an exported program.
        rivals: magnitude and relevance alone, for the same request; by `flexrel.compare`.
        curves: three criteria at several sizes; by `flexrel.compare`.
        origin: the command that made it, if one did.
        class_names: what classes are called, by their number; none where nobody knows.
    """

    model: nn.Module
    plan: Plan
    criterion: Criterion
    dense: Measurement
    achieved: Measurement
    recovery: tuple[RecoveryStep, ...]
    warnings: tuple[str, ...]
    request: Request
    outputs: str
    limits: Limits
    amounts: Mapping[str, tuple[float, float]]
    samples: int | None
    deviation: float | None
    promise: Promise | None
    stats: RelevanceStats | None
    values: Values
    samples_a_call: int | None
    calibration_samples: int
    example: Batch
    packed: bytes
    evidence: Evidence
    program: bytes | None = None
    timing: Timing | None = None
    rivals: tuple[Measurement, ...] = ()
    curves: tuple[Measurement, ...] = ()
    origin: Origin | None = None
    class_names: ClassNames = ()

    @property
    def requested(self) -> Mapping[str, float | None]:
        """The limits asked for by resource, None where nothing was."""
        return self.limits.as_json()

    @property
    def options(self) -> dict[str, Any]:
        """What else was asked, and all criteria that one was chosen from."""
        request, options = self.request, self.request.options
        return {
            "scored_by": repr(self.criterion),
            "chosen_from": [criterion.name for criterion in request.criteria],
            "keep": list(request.keep),
            "multiple_of": options.multiple_of,
            "minimise": request.minimised.name if request.targets else None,
            "outputs": self.outputs,
            "rule": self.stats.rule if self.stats else None,
            "output": self.stats.output if self.stats else None,
            "allocation": options.allocation,
            "recover": request.recover,
            "regrow": options.regrow,
            "values": self.values,
            "values_asked": request.values,
            "samples_a_call": self.samples_a_call,
            "calibration_samples": self.calibration_samples,
        }

    @property
    def widths(self) -> dict[str, dict[str, int | str]]:
        """How many units each group has, and how many of them are kept."""
        found = changes(self.plan.graph, self.plan.masks)
        return {one.name: {"kept": one.kept, "of": one.units, "unit": one.unit} for one in found}

    @property
    def versions(self) -> dict[str, str]:
        """Versions of all that has a part in it."""
        packages = ("flexrel", "flexrel-edge", "torch", "numpy", "pcodec")
        return {"python": platform.python_version(), **{name: version(name) for name in packages}}

    @property
    def form(self) -> Literal["module", "exported"]:
        """Whether `model` is of the class it came in, or a self-contained exported program."""
        return "module" if self.program is None else "exported"

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """The dense network, the rivals if they were measured, and the result, in this order."""
        return (self.dense, *self.rivals, self.achieved)

    def as_json(self) -> dict[str, Any]:
        """Return the content of `result.json`."""
        dense, achieved = self.dense, self.achieved
        counted = {name: both for name, both in self.amounts.items() if name != "latency_ms"}
        return {
            "requested": {"latency_ms": None, **self.requested},
            "achieved": {
                **{name: amount for name, (_, amount) in counted.items()},
                **{f"{name}_dense": amount for name, (amount, _) in counted.items()},
                "accuracy": achieved.accuracy,
                "accuracy_dense": dense.accuracy,
                "accuracy_standard_error": self.standard_error,
                "accuracy_unrepaired": self.evidence.unrepaired,
                "accuracy_deviation": self.deviation,
                "samples": self.samples,
                "metrics": metrics_json(achieved.metrics),
                "metrics_dense": metrics_json(dense.metrics),
                "sparsity": achieved.removed,
                "weights_removed": achieved.weights_removed,
                "weights_removed_dense": dense.weights_removed,
                "parameters": achieved.parameters,
                "parameters_dense": dense.parameters,
                "macs": achieved.macs,
                "macs_dense": dense.macs,
                "bytes": achieved.bytes,
                "bytes_dense": dense.bytes,
                "divergence": finite(achieved.divergence),
                "latency_ms": self.timing and self.timing.milliseconds,  # None: not measured
                "latency_dense_ms": self.timing and self.timing.dense,
            },
            "targets": [
                goal_json(goal, dense.metrics, achieved.metrics) for goal in self.limits.goals
            ],
            "promise": self.promise and self.promise.as_json(),
            "timing": self.timing and asdict(self.timing),
            "criterion": self.criterion.name,
            "delta": self.delta,
            "granularity": self.plan.graph.granularity,
            "then": self.plan.then and self.plan.then.graph.granularity,
            "floors": [one.key for one, _ in self.limits.amounts if one.at_least],
            "widths": self.widths,
            "network": self.plan.graph.fingerprint,
            "form": self.form,
            "seed": self.request.seed,
            "options": self.options,
            "recovery": recovery_json(self.recovery),
            "warnings": list(self.warnings),
            "rivals": [measurement_json(m) for m in self.rivals],
            "curves": [measurement_json(m) for m in self.curves],
            "versions": self.versions,
            "system": f"{platform.system()} {platform.machine()}",
            "origin": self.origin and self.origin.as_json(),
            "class_names": list(self.class_names),
            **self.evidence.as_json(),
        }

    @property
    def standard_error(self) -> float | None:
        """Standard error of the accuracy achieved, where it and its samples are known."""
        if self.achieved.accuracy is None or self.samples is None:
            return None
        return standard_error(self.achieved.accuracy, self.samples, self.deviation)

    @property
    def delta(self) -> float | None:
        """Share of relevance: 0 for magnitude, 1 for relevance, None for a criterion without."""
        if isinstance(self.criterion, FlexRel):
            return self.criterion.delta
        return {"magnitude": 0.0, "relevance": 1.0}.get(self.criterion.name)

    def report(self) -> str:
        """Return the report: one HTML page that needs nothing else."""
        return render({**self.as_json(), **self._files(self.packed, ())}, self.plan.as_json())

    def _files(self, packed: bytes, export: Sequence[str]) -> dict[str, Any]:
        """Return what a record has of the files that it is saved with."""
        changed = self.evidence.changed
        pictures = {} if changed is None else changed.pictures
        return {
            "model": describe(packed).sha256,
            "exports": list(export),
            "pictures": {str(at): b64encode(png).decode() for at, png in pictures.items()},
        }

    def save(
        self,
        directory: str | Path,
        export: Sequence[str] = (),
        *,
        input_names: Sequence[str] = (),
    ) -> tuple[str, ...]:
        """Write `model.flexrel`, `plan.json`, `result.json` and `report.html`, all or none.

        Plan and result carry the checksum of the model: a process that is killed while it switches
        from old files to new ones may leave some of each; `Plan.load` and `flexrel report` tell.

        For an exported program also `model.pt2`, for `torch.export.load`.

        Args:
            directory: made if it is not there; files of these names in it are replaced.
            export: more to write: "onnx", a `model.onnx`; "pt2", a `model.pt2`; "graph", the ONNX
                graph inside of `model.flexrel`, which a byte budget does not count; "observe", one
                that can tell what layers take in, for `flexrel-edge observe`.
            input_names: in ONNX, in the order of the inputs; none: those of `forward`. Outputs are
                named by their keys, or "output", and the axis of samples "batch".

        Returns:
            What there is to know of the exports, a line each.

        Raises:
            UsageError: an unknown export, names that are not those of as many inputs, or ONNX
                without the extra "export".
            ModelError: the network can't be exported; nothing was written.
        """
        check_exports(export, input_names)
        folder = Path(directory)
        packed, notes = self.annotated(input_names)
        written = replace(self, achieved=replace(self.achieved, bytes=len(packed)))
        if {"graph", "observe"} & {*export}:
            given = self.model, self.values, self.example, describe(packed).metadata
            packed = encode(*given, input_names=input_names, observe="observe" in export)
            notes += [
                *graph_notes("model.flexrel", packed),
                *cache_note("the ONNX graph in model.flexrel", self.model),
            ]
            limit = next((at for r, at in self.limits.amounts if r is Bytes.resource), None)
            if limit is not None and len(packed) > limit:
                notes.append(
                    f"model.flexrel has {len(packed):,} bytes with its ONNX graph; the budget of "
                    f"{limit:,.0f} counts it without"
                )
        record = {**written.as_json(), **self._files(packed, export)}
        files = {
            "model.flexrel": packed,
            "plan.json": replace(self.plan, model=record["model"]).encode(),
            "result.json": dump(record),
            "report.html": render(record, self.plan.as_json()).encode(),
        }
        if self.program is not None:
            files["model.pt2"] = self.program
        for kind in EXPORTS:
            name = f"model.{kind}"
            if kind in export and name not in files:
                files[name], samples = exported(self.model, self.example, kind, input_names)
                notes += export_notes(name, samples, self.model)
        replace_files(folder, files)
        return tuple(notes)
