"""The policy: what the user wants; and the plan: the same with every decision made."""

import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, model_validator

from fxcompress.policies.amount import Amount
from fxcompress.policies.base import Location, Strict, problem_at
from fxcompress.policies.kinds import AnyStep
from fxcompress.policies.quantizing import Quantize, Target
from fxcompress.policies.reference import is_dotted
from fxcompress.policies.rules import is_open
from fxcompress.policies.search import Budget, Search
from fxcompress.policies.step import RuleStep, Step
from fxcompress.policies.synthesizing import Synthesis
from fxcompress.policies.tuning import Tuning
from fxcompress.policies.write import dump, write_text

__all__ = ["Budget", "BudgetRecord", "LayerRecord", "Plan", "Policy", "Record", "Search", "Solution", "Totals", "Way"]


Way = Literal["auto", "symbolic", "export", "islands"]

_NOT_EMPTY: dict[str, JsonValue] = {"minItems": 1}  # checked below, where a wrong item does not count as none


class Policy(Strict):
    """What is to be done to a model: steps in order, and what a search may choose."""

    version: Annotated[Literal[1], Field(description="Version of the form of policy files")]
    steps: Annotated[tuple[AnyStep, ...], Field(description="What is done, in order", json_schema_extra=_NOT_EMPTY)]
    search: Annotated[Search | None, Field(description="What the solver is asked where values are open")] = None
    tune: Annotated[tuple[Tuning, ...], Field(description="What is done with data after calibration, in order")] = ()
    data: Annotated[Synthesis | None, Field(description="Where data comes from where none is given")] = None
    target: Annotated[
        Target, Field(description="The engine that will run it: where its integer kernels need quantizers, too")
    ] = "none"
    capture: Annotated[Way, Field(description="How the model becomes a graph; a plan says how it did")] = "auto"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the policy as a YAML file, whole or not at all; `read` gives an equal policy."""
        write_text(path, dump(self))

    def with_budgets(self, budgets: Mapping[str, Any]) -> Self:
        """Return the policy with some budgets replaced or added, for example `{"size": "20%"}`.

        Raises ValueError for a policy that has no search, ValidationError for a budget that is not accepted.
        """
        if self.search is None:
            raise ValueError("the policy has no search, so it takes no budgets")
        return self.replaced(search=self.search.replaced(budgets=self.search.budgets | dict(budgets)))

    @property
    def aimed(self) -> tuple[Step, ...]:
        """The steps, each quantize step with its target."""
        return tuple(
            step.replaced(target=self.target) if isinstance(step, Quantize) and step.target is None else step
            for step in self.steps
        )

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if not self.steps:
            raise problem_at(("steps",), "write at least one step, for example '- kind: fold_batch_norm'")
        return self

    @model_validator(mode="after")
    def _smooth_first(self) -> Self:
        for index, step in enumerate(self.tune[1:], 1):
            if step.name == "smooth_quant":
                raise problem_at(
                    ("tune", index), "smooth_quant changes the float weights that the others follow; write it first"
                )
        return self

    @model_validator(mode="after")
    def _search_where_open(self) -> Self:
        searched = [place for place in self.open_fields() if place[-1] != "kernel_size"]  # a supernet may stay open
        if searched and self.search is None:
            raise problem_at(
                searched[0],
                "is open (a list), but there is no search to choose; write one value, or add for example "
                "'search: {budgets: {size: 25%}}'",
            )
        own = any(is_dotted(step.kind) for step in self.steps)
        if self.search is not None and not searched and not own:
            raise problem_at(
                ("search",),
                "has nothing to choose: no bits or sparsity is open; offer a list such as 'bits: [4, 8]'",
            )
        return self

    @property
    def tunes_on_data(self) -> bool:
        """Whether a step of `tune` reads data: all do but bias correction by what batch norms tell."""
        told = {"statistics": "batch_norm"}
        return any(step.name != "bias_correction" or step.arguments != told for step in self.tune)

    def open_fields(self) -> Iterator[Location]:
        """Yield where a list of options stands in the rules."""
        for number, step in enumerate(self.steps):
            if not isinstance(step, RuleStep):
                continue
            for index, rule in enumerate(step.rules):
                for path in step.open_fields:
                    value: Any = rule
                    for part in path.split("."):
                        value = getattr(value, part, None)
                    if is_open(value):
                        yield ("steps", number, "rules", index, *path.split("."))


class LayerRecord(Strict):
    """What the plan says of one layer: sizes in bytes, work in multiply-accumulates and bit operations."""

    name: str
    kind: str
    parameters: int
    decision: str
    sparsity: float = 0.0
    size: int
    float_size: int
    macs: int | None = None
    bops: int | None = None
    float_bops: int | None = None
    expected_loss: float | None = None
    standard_error: float | None = None
    why: str


class BudgetRecord(Strict):
    """A budget as asked and as met, in its smallest unit."""

    asked: Amount
    limit: int
    predicted: int
    original: int


class Solution(Strict):
    """The answer of the solver with its proof: the true optimum lies between `bound` and `objective`."""

    solver: str
    status: str
    objective: float
    bound: float
    gap: float


class Totals(Strict):
    """Sums over the whole model, before and after."""

    parameters: int
    sparsity: float
    size: int
    float_size: int
    bops: int | None = None
    float_bops: int | None = None


class Record(Strict):
    """Why the plan is what it is."""

    fxcompress: str
    totals: Totals
    layers: tuple[LayerRecord, ...]
    matched: dict[str, tuple[str, ...]]
    budgets: dict[str, BudgetRecord] = {}
    solution: Solution | None = None


class Plan(Policy):
    """A policy with every decision made: what `plan` returns, the lock file. It has no search left to do."""

    plan: Record

    @model_validator(mode="after")
    def _decided(self) -> Self:
        if self.search is not None:
            raise problem_at(
                ("search",), "a plan has every decision made; take out 'search', or take out 'plan' to choose again"
            )
        return self
