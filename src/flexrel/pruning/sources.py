"""What is cut of a model: the module itself, or where its code holds fixed numbers, a program."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from flexrel.core.batches import Batch, RawBatch, first_samples, read_batches
from flexrel.core.graph import PruningGraph
from flexrel.core.plan import Plan
from flexrel.errors import BudgetError, ModelError, UnprunableError
from flexrel.structure import Program, analyse, apply, exported_program, untrainable, verify

Form = Literal["auto", "module", "exported"]
FORMS: tuple[Form, ...] = ("auto", "module", "exported")

_OTHER_SAMPLES = 3  # that a program is verified on too


@dataclass(frozen=True, slots=True)
class PruneTarget:
    """What is cut: the module itself, or a program exported of it."""

    network: nn.Module
    graph: PruningGraph
    examples: tuple[Batch, ...]  # the first is what the graph was read on
    program: Program | None = None

    @property
    def samples(self) -> int | None:
        """How many samples the network takes in one call; None: any number."""
        fixed = self.program is not None and not self.program.dynamic
        return self.examples[0].samples if fixed else None

    def verify(self, plan: Plan) -> None:
        """Check the plan's cut before anyone gets it; a program also on other data, and back."""
        pruned = apply(self.network, plan)
        for example in self.examples:
            verify(self.network, pruned, plan, example)
        if self.program and (reason := untrainable(pruned, self.examples[0])):
            raise ModelError(f"{reason}; nothing was returned")


@dataclass(frozen=True, slots=True)
class Sources:
    """What can be cut of one model, in the form asked for."""

    model: nn.Module
    example: Batch
    batches: Sequence[RawBatch]
    granularity: str
    keep: tuple[str, ...]
    form: Form

    @property
    def _both(self) -> bool:
        return self.form == "auto" and self.granularity in ("channel", "head")

    def first(self) -> PruneTarget:
        """Return the module if it can be cut and may be, else its program."""
        if self.form == "exported":
            return self._exported()
        try:
            graph = analyse(self.model, self.example, self.granularity, self.keep)
        except UnprunableError as error:
            if not self._both:
                raise
            try:
                return self._exported()
            except ModelError as refused:
                raise UnprunableError(f"{error}; as a program: {refused}") from error
        return PruneTarget(self.model, graph, (self.example,))

    def next(self, subject: PruneTarget, error: BudgetError) -> PruneTarget:
        """Return the program, of which more can be cut than of the module; else raise the error."""
        if not self._both or subject.program:
            raise error
        try:
            program = self._exported()
        except ModelError as refused:
            advice = f"{error.advice} An exported program is no way out: {refused}".lstrip()
            raise BudgetError(error.resource, error.limit, error.closest, advice) from refused
        if program.graph.units <= subject.graph.units:
            raise error
        return program

    def _exported(self) -> PruneTarget:
        first = next(read_batches(self.batches[:1], self.model))
        last = next(read_batches(self.batches[-1:], self.model))
        program = exported_program(self.model, self.example, first)
        graph = analyse(self.model, program.example, self.granularity, self.keep, program.graph)
        other = first_samples(last, _OTHER_SAMPLES) if program.dynamic else last
        fits = program.dynamic or other.samples == program.example.samples
        examples = (program.example, other) if fits else (program.example,)
        return PruneTarget(program.graph, graph, examples, program)
