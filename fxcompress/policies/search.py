"""The search: what the solver is asked, within which budgets, by which sensitivity."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, WithJsonSchema, field_validator, model_validator

from fxcompress.policies.amount import UNITS, Amount, amount_schema
from fxcompress.policies.base import Strict, nearest, problem, problem_at
from fxcompress.policies.reference import DOTTED_PATTERN, Reference, check_allowed, is_dotted


class HessianTrace(Strict):
    """Arguments of the Hessian trace."""

    probes: Annotated[int, Field(ge=2, description="Random probes in all, spread over the batches")] = 32
    seed: Annotated[int, Field(description="Seed of the random probes")] = 0


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
            raise problem("write the limit as 'max', for example 'max: 6 ms'")
        return {"max": data["max"], "args": {key: value for key, value in data.items() if key != "max"}}

    def plain(self) -> Any:
        return {"max": self.max.plain(), **self.args} if self.args else self.max.plain()


_ARGUMENTS: Mapping[str, Mapping[str, str]] = {"size": {}, "bops": {}, "latency": {"table": "FILE"}}
_EXAMPLES: Mapping[str, str] = {"size": "25%", "bops": "40 MBOPs", "latency": "6 ms"}


def _budget_schema(name: str) -> dict[str, Any]:
    amount = amount_schema(list(UNITS[name]))
    if not _ARGUMENTS[name]:
        return amount
    strings = {
        argument: {"type": "string", "description": f"A {value.lower()}, as seen from the policy's folder"}
        for argument, value in _ARGUMENTS[name].items()
    }
    return {
        "type": "object",
        "description": f"The limit, and {', '.join(strings)}",
        "properties": {"max": amount, **strings},
        "required": ["max", *strings],
        "additionalProperties": False,
    }


_OWN_BUDGET = {
    "anyOf": [amount_schema([]), {"type": "object", "properties": {"max": amount_schema([])}, "required": ["max"]}],
    "description": "A cost model of your own: the limit, or max and the arguments of the cost model",
}
_BUDGETS_SCHEMA = {
    "type": "object",
    "properties": {name: _budget_schema(name) for name in _ARGUMENTS},
    "patternProperties": {DOTTED_PATTERN: _OWN_BUDGET},
    "additionalProperties": False,
    "minProperties": 1,
}


class Search(Strict):
    """What the solver is asked: budgets to meet at the least expected loss."""

    sensitivity: Sensitivity = Sensitivity(name="hessian_trace")
    budgets: Annotated[
        dict[str, Budget],
        Field(description="Limits on size, bops, latency or on package.module:cost, all to be met"),
        WithJsonSchema(_BUDGETS_SCHEMA),
    ]
    solver: Solver = Solver(name="exact")

    @field_validator("budgets")
    @classmethod
    def _known_budgets(cls, budgets: dict[str, Budget], info: ValidationInfo) -> dict[str, Budget]:
        if not budgets:
            raise problem("write at least one budget, for example 'size: 25%'")
        for name, budget in budgets.items():
            if is_dotted(name):
                check_allowed(name, info)
            else:
                _check_arguments(name, budget)
            _check_unit(name, budget)
        return budgets


def _check_arguments(name: str, budget: Budget) -> None:
    if name not in _ARGUMENTS:
        hint, accepted = nearest(name, _ARGUMENTS), ", ".join(_ARGUMENTS)
        raise problem_at(
            (name,), f"unknown budget {name!r}{hint}; accepted: {accepted}, or your own as package.module:cost"
        )
    wanted = _ARGUMENTS[name]
    if set(budget.args) != set(wanted):
        form = ", ".join(f"{key}: {value}" for key, value in {"max": _EXAMPLES[name], **wanted}.items())
        raise problem_at((name,), f"{name} takes {{{form}}}, not {', '.join(['max', *budget.args])}")


def _check_unit(name: str, budget: Budget) -> None:
    try:
        budget.max.limit(name, 0)
    except ValueError as error:
        raise problem_at((name,), str(error)) from None
