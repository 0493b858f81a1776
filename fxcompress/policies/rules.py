"""Rules: which layers a line of the policy speaks of, and how several lines add up (the last match wins)."""

import fnmatch
import glob
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Generic, NamedTuple, Self, TypeVar

from pydantic import Field, model_validator

from fxcompress.errors import PolicyError
from fxcompress.policies.base import Strict, nearest, problem


class Subject(NamedTuple):
    """What a rule can select: an operator's qualified name, its kind, and whether it has a weight.

    `computed` tells that the weight is no parameter, so that nothing can be done to it.
    """

    name: str
    kind: str
    weighted: bool
    computed: bool = False


class Select(Strict):
    """Which layers: globs on qualified names, and on operator kinds; both must hold. All with a weight by default."""

    names: Annotated[
        tuple[str, ...], Field(min_length=1, description="Globs on qualified names such as layer1.*")
    ] = ("*",)
    ops: Annotated[tuple[str, ...], Field(description="Globs on operator kinds such as conv2d, linear, conv*")] = ()

    def matches(self, subject: Subject) -> bool:
        """Return whether the operator is meant; without `ops`, operators without a weight are not."""
        wanted = any(fnmatch.fnmatchcase(subject.kind, op) for op in self.ops) if self.ops else subject.weighted
        return wanted and any(fnmatch.fnmatchcase(subject.name, name) for name in self.names)


class Rule(Strict):
    """One line of a step: a selection and what it states."""

    select: Annotated[Select, Field(description="Which layers; all with a weight when it is left out")] = Select()

    @model_validator(mode="after")
    def _states_something(self) -> Self:
        if not self.model_fields_set - {"select"}:
            fields = ", ".join(name for name in type(self).model_fields if name != "select")
            raise problem(f"the rule states nothing; write what is to be done: {fields}")
        return self

    def merged(self, later: Self) -> Self:
        """Return what this rule and a later one say together; what the later does not state stays."""
        return type(self).model_validate(_merge(self.stated(), later.stated()))


def _merge(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(earlier)
    for field, value in later.items():
        before = earlier.get(field)
        if field != "select" and isinstance(value, Strict) and isinstance(before, type(value)):
            value = type(value).model_validate(_merge(before.stated(), value.stated()))
        result[field] = value
    return result


def place(rule: Rule, step: str, index: int) -> str:
    """Say where a rule of a step stands: file and line, or its number where it was not read from a file."""
    return rule.at or f"{step} rule {index + 1}"


R = TypeVar("R", bound=Rule)


class Matched(NamedTuple, Generic[R]):
    """What the rules of a step say about one operator, and the positions of the rules that spoke."""

    subject: Subject
    rule: R
    by: tuple[int, ...]


def match(rules: Sequence[R], subjects: Sequence[Subject], kinds: Collection[str], step: str) -> list[Matched[R]]:
    """Return for each operator that some rule selects what the rules say together, in graph order.

    `kinds` are the operator kinds that exist at all. Raises PolicyError for a rule, or a name in it, that selects
    nothing, with the nearest names.
    """
    for index, rule in enumerate(rules):
        _refuse_unmatched(rule, place(rule, step, index), subjects, kinds)
    found: list[Matched[R]] = []
    for subject in subjects:
        by = tuple(index for index, rule in enumerate(rules) if rule.select.matches(subject))
        if by:
            said = rules[by[0]]
            for index in by[1:]:
                said = said.merged(rules[index])
            found.append(Matched(subject, said, by))
    return found


def _refuse_unmatched(rule: Rule, where: str, subjects: Sequence[Subject], kinds: Collection[str]) -> None:
    select = rule.select
    for op in select.ops:
        if not fnmatch.filter(kinds, op):
            raise PolicyError(
                f"{where}: ops: no operator kind is {op!r}{nearest(op, kinds)}; accepted: {', '.join(sorted(kinds))}"
            )
    eligible = [s.name for s in subjects if Select(ops=select.ops).matches(s)]
    for pattern in select.names:
        if not fnmatch.filter(eligible, pattern):
            of = f" of kind {' or '.join(select.ops)}" if select.ops else ""
            raise PolicyError(f"{where}: names: {pattern!r} matches no layer{of}{_nearby(pattern, eligible)}")


def _nearby(pattern: str, names: Sequence[str]) -> str:
    if not names:
        return "; the model has none"
    listed = ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
    return f"{nearest(pattern, names)}; the model has: {listed}"


def exactly(name: str) -> str:
    """Return the glob that matches this name and no other."""
    return glob.escape(name)


def is_open(value: Any) -> bool:
    """Return whether a field holds a list of options for the solver, not one value."""
    return isinstance(value, tuple)
