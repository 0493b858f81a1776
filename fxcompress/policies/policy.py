"""The policy: what the user wants; and the plan: the same with every decision made."""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from fxcompress.policies.amount import UNITS, Amount
from fxcompress.policies.base import Strict, nearest
from fxcompress.policies.reference import Reference, is_dotted
from fxcompress.policies.rules import is_open
from fxcompress.policies.steps import AnyStep, RuleStep
from fxcompress.policies.write import dump, write_text


class HessianTrace(Strict):
    """Arguments of the Hessian trace."""

    probes: Annotated[int, Field(ge=2, description="Random probes in all, spread over the batches")] = 32
    seed: int = 0


class Exact(Strict):
    """Arguments of the exact solver."""

    time_limit: Annotated[float, Field(gt=0, description="Seconds")] = 60.0


class Sensitivity(Reference):
    """How the expected rise of the loss is estimated: `hessian_trace` or your own function."""

    @classmethod
    def known(cls) -> Mapping[str, type[Strict]]:
        return {"hessian_trace": HessianTrace}


class Solver(Reference):
    """Who chooses: `exact` or your own function."""

    @classmethod
    def known(cls) -> Mapping[str, type[Strict]]:
        return {"exact": Exact}


class Budget(Strict):
    """A limit on a cost: an amount, or `{max: amount, ...}` with the arguments of the cost model."""

    max: Amount
    args: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:  # replaces the check of Strict: other keys are arguments
        if isinstance(data, Budget):
            return data
        if not isinstance(data, dict):
            return {"max": data}
        if set(data) == {"max", "args"} and isinstance(data["args"], dict):
            return data
        if "max" not in data:
            raise PydanticCustomError("budget", "write the limit as 'max', for example 'max: 6 ms'", {})
        return {"max": data["max"], "args": {key: value for key, value in data.items() if key != "max"}}

    def plain(self) -> Any:
        return {"max": self.max.text, **self.args} if self.args else self.max.text


_ARGUMENTS: Mapping[str, frozenset[str]] = {"size": frozenset(), "bops": frozenset(), "latency": frozenset({"table"})}


class Search(Strict):
    """What the solver is asked: budgets to meet at the least expected loss."""

    sensitivity: Sensitivity = Sensitivity(name="hessian_trace")
    budgets: Annotated[
        dict[str, Budget], Field(min_length=1, description="size, bops, latency or package.module:cost")
    ]
    solver: Solver = Solver(name="exact")

    @model_validator(mode="after")
    def _known_budgets(self) -> "Search":
        for name, budget in self.budgets.items():
            if is_dotted(name):
                continue
            if name not in _ARGUMENTS:
                raise _problem(
                    f"budgets: unknown budget '{name}'{nearest(name, UNITS)}; accepted: {', '.join(UNITS)}"
                )
            if set(budget.args) != _ARGUMENTS[name]:
                form = ", ".join(
                    ["max: 6 ms" if name == "latency" else "max: 25%", *("table: FILE" for _ in _ARGUMENTS[name])]
                )
                raise _problem(f"budgets: {name} takes {{{form}}}, not {', '.join(['max', *budget.args])}")
            try:
                budget.max.limit(name, 0)
            except ValueError as error:
                raise _problem(f"budgets: {name}: {error}") from None
        return self


def _problem(text: str) -> PydanticCustomError:
    return PydanticCustomError("policy", "{text}", {"text": text})


class Policy(Strict):
    """What is to be done to a model: steps in order, and what a search may choose."""

    version: Literal[1]
    steps: Annotated[tuple[AnyStep, ...], Field(min_length=1)]
    search: Search | None = None

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

    @model_validator(mode="after")
    def _open_needs_search(self) -> "Policy":
        open_fields = [field for step in self.steps for field in _open_fields(step)]
        searchable = [field for field in open_fields if field.split(": ")[1] != "kernel_size"]
        if searchable and self.search is None:
            raise _problem(
                f"{searchable[0]} is open (a list), but there is no search to choose; "
                "write one value, or add for example 'search: {budgets: {size: 25%}}'"
            )
        if self.search is not None and not searchable and not any(_third_party(step) for step in self.steps):
            raise _problem(
                "search has nothing to choose: no bits or sparsity is open; offer a list such as 'bits: [4, 8]'"
            )
        return self


def _third_party(step: Any) -> bool:
    return is_dotted(step.kind)


def _open_fields(step: Any) -> list[str]:
    found = []
    if isinstance(step, RuleStep):
        for index, rule in enumerate(step.rules):
            for path in step.open_fields:
                value: Any = rule
                for part in path.split("."):
                    value = getattr(value, part, None)
                if is_open(value):
                    found.append(f"{rule.at or f'{step.kind} rule {index + 1}'}: {path}")
    return found


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
