"""What is cut of a model: the module itself, or where its code holds fixed numbers, a program."""

from dataclasses import dataclass

from torch import nn

from flexrel.core.batches import Batch, first_samples, read_batches
from flexrel.core.evaluate import LabelledData
from flexrel.core.graph import PruningGraph
from flexrel.core.plan import Plan
from flexrel.errors import BudgetError, ModelError, UnprunableError, UsageError
from flexrel.pruning.data import CalibrationData, data_alike
from flexrel.pruning.request import Request
from flexrel.structure import Program, analyse, apply, exported_program, untrainable, verify

_OTHER_SAMPLES = 3  # that a program is verified on too
_ZEROS = "; granularity 'element' sets weights to zero instead"


@dataclass(frozen=True, slots=True)
class PruneTarget:
    """What is cut: the module itself, or a program exported of it."""

    network: nn.Module
    graph: PruningGraph
    examples: tuple[Batch, ...]  # the first is what the graph was read on
    data: CalibrationData  # that it runs on
    program: Program | None = None

    @property
    def samples(self) -> int | None:
        """How many samples the network takes in one call; None: any number."""
        fixed = self.program is not None and not self.program.dynamic
        return self.examples[0].samples if fixed else None

    def verify(self, plan: Plan) -> None:
        """Check the plan's cut before anyone gets it; a program also on other data, and back.

        Zeros change no shape: of them there is nothing to compare.

        Raises:
            ModelError: the cut network computes something else, or can't be trained.
        """
        if plan.graph.pattern.zeros:
            return
        pruned = apply(self.network, plan)
        for example in self.examples:
            verify(self.network, pruned, plan, example)
        if self.program and (reason := untrainable(pruned, self.examples[0])):
            raise ModelError(f"{reason}; nothing was returned")


@dataclass(frozen=True, slots=True)
class Sources:
    """What can be cut of one model, in the form asked for."""

    model: nn.Module
    data: CalibrationData
    request: Request

    @property
    def _both(self) -> bool:
        return self.request.options.form == "auto" and self.request.granularity in (
            "channel",
            "head",
        )

    def first(self) -> PruneTarget:
        """Return the module if it can be cut and may be, else its program."""
        if self.request.options.form == "exported":
            return self.exported()
        example, request = self.data.example, self.request
        try:
            graph = analyse(self.model, example, request.granularity, request.keep)
        except UnprunableError as error:
            if not self._both:
                raise
            try:
                return self.exported()
            except UnprunableError as refused:
                raise UnprunableError(f"{error}; nor as an exported program{_ZEROS}") from refused
            except ModelError as refused:
                raise UnprunableError(f"{error}; as a program: {refused}{_ZEROS}") from error
        return PruneTarget(self.model, graph, (example,), self.data)

    def instead(self, target: PruneTarget, error: BudgetError) -> PruneTarget:
        """Return the program, of which more can be cut than of the module; else raise the error."""
        if not self._both or target.program:
            raise error
        try:
            program = self.exported()
        except ModelError as refused:
            advice = f"{error.advice} An exported program is no way out: {refused}".lstrip()
            one = error
            raise BudgetError(
                one.resource, one.limit, one.closest, advice, one.at_least, one.unit
            ) from refused
        if program.graph.units <= target.graph.units:
            raise error
        return program

    def exported(self) -> PruneTarget:
        """Return the model's program.

        Raises:
            UsageError: evaluation batches are not of the one size that it takes.
        """
        data, request = self.data, self.request
        program = exported_program(self.model, data.example, data.first)
        graph = analyse(
            self.model, program.example, request.granularity, request.keep, program.graph
        )
        if not program.dynamic:
            self._check_evaluation(program)
            data = data_alike(self.model, data, program.example, fits=request.fits)
        last = next(read_batches(data.batches[-1:], self.model))
        examples = (program.example, first_samples(last, _OTHER_SAMPLES))
        return PruneTarget(program.graph, graph, examples, data, program)

    def _check_evaluation(self, program: Program) -> None:
        """Raise a UsageError if evaluation batches are not of the one size that a program takes."""
        evaluate, example = self.request.evaluate, program.example
        for batch in read_batches(
            evaluate.batches if isinstance(evaluate, LabelledData) else (), self.model
        ):
            if batch.shapes != example.shapes:
                raise UsageError(
                    f"the network's program takes inputs {example.shapes} alone, as the first "
                    f"calibration batch has, but evaluation batch {batch.index} has "
                    f"{batch.shapes}; pass evaluation batches of that size, without a shorter last "
                    "one, or form='module'"
                )
