"""Sizes: what an exported program found that must hold of the sizes of its inputs, and the check of it in a graph."""

import sys
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from string import ascii_lowercase

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import uninteresting_files
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

from fxcompress.errors import CaptureError
from fxcompress.graph.exporting.signature import Inputs

_TORCH = f"{Path(torch.__file__).parent}/"


@fx.has_side_effect
def expect_sizes(
    tensors: Sequence[Tensor],
    names: Sequence[str],
    sizes: Sequence[Sequence[int | str | None]],
    limits: Sequence[tuple[str, int, int | None]],
) -> None:
    """Refuse tensors whose sizes are not the captured ones.

    `sizes` holds for each axis its size, None where any is right, or a letter: axes with one letter have one size.
    `limits` holds letters with their least and greatest size.
    """
    found: dict[str, tuple[int, str]] = {}
    for tensor, name, pattern in zip(tensors, names, sizes, strict=True):
        if not isinstance(tensor, Tensor) or tensor.dim() != len(pattern):
            shape = list(tensor.shape) if isinstance(tensor, Tensor) else tensor
            raise CaptureError(f"{name} is {shape}; the model was captured with a tensor of {len(pattern)} axes")
        for axis, (size, wanted) in enumerate(zip(tensor.shape, pattern, strict=True)):
            if isinstance(wanted, str):
                wanted, _ = found.setdefault(wanted, (size, f"axis {axis} of {name}"))
            if wanted is not None and size != wanted:
                raise _other_size(f"axis {axis} of {name}", size, str(wanted))
    for letter, least, most in limits:
        size, where = found[letter]
        if size < least or (most is not None and size > most):
            taken = f"{least} or more" if most is None else f"{least} to {most}" if least else f"at most {most}"
            raise _other_size(where, size, taken)


def _other_size(where: str, size: int, taken: str) -> CaptureError:
    return CaptureError(
        f"{where} has {size} entries where the captured graph takes {taken}; "
        'capture the model with example_inputs of that size, or with capture="islands" if that was by export'
    )


@contextmanager
def told_from_one() -> Iterator[set[sympy.Symbol]]:
    """Yield the sizes for which code outside of torch takes another path where they are one.

    A size that is open is at least two to torch.export, which so decides without a guard. What torch itself does
    differently for one gives the same.
    """
    found: set[sympy.Symbol] = set()
    decide = torch.SymBool.__bool__

    def noted(condition: torch.SymBool) -> bool:
        expression, value = condition.node.expr, decide(condition)
        if not sys._getframe(1).f_code.co_filename.startswith(_TORCH):
            truth = sympy.true if value else sympy.false
            found.update(size for size in expression.free_symbols if expression.subs(size, 1) != truth)
        return value

    torch.SymBool.__bool__ = noted  # type: ignore[method-assign]
    uninteresting_files().add(__file__)  # torch looks at the line that asks: an assert need not be decided
    try:
        yield found
    finally:
        uninteresting_files().discard(__file__)
        torch.SymBool.__bool__ = decide  # type: ignore[method-assign]


def write_guard(
    graph: fx.Graph, inputs: Inputs, placeholders: Sequence[fx.Node], not_one: Set[sympy.Symbol] = frozenset()
) -> None:
    """Write the check of the sizes that an exported program takes for its `placeholders`; some are `not_one`."""
    shapes = [[size_of(size) for size in node.meta["val"].shape] for node in placeholders]
    limits = _limits(placeholders)
    for size in not_one:
        least, most = limits.get(size, (0, None))
        limits[size] = (max(least, 2), most)
    symbols = [size for shape in shapes for size in shape if not isinstance(size, int)]
    letters: dict[sympy.Expr, str] = {}
    for symbol in symbols:
        if symbols.count(symbol) > 1 or symbol in limits:
            letters.setdefault(symbol, ascii_lowercase[len(letters)])
    sizes = tuple(tuple(size if isinstance(size, int) else letters.get(size) for size in shape) for shape in shapes)
    bounds = tuple((letter, *limits[symbol]) for symbol, letter in letters.items() if symbol in limits)
    graph.call_function(expect_sizes, (tuple(inputs.nodes), tuple(inputs.names), sizes, bounds))


def dependent_axes(placeholders: Sequence[fx.Node]) -> list[set[int]]:
    """Return for each tensor the axes whose sizes depend on others in a way that `expect_sizes` cannot check."""
    together = {symbol for guard in _guards(placeholders) if not _is_limit(guard) for symbol in guard.free_symbols}
    shapes = [[size_of(size) for size in node.meta["val"].shape] for node in placeholders]
    return [{axis for axis, size in enumerate(shape) if _depends(size, together)} for shape in shapes]


def _depends(size: int | sympy.Expr, together: set[sympy.Basic]) -> bool:
    return not isinstance(size, int) and (not size.is_Symbol or size in together)


def _guards(placeholders: Sequence[fx.Node]) -> list[sympy.Basic]:
    """Return what torch.export found that must hold of the sizes, apart from what tells them from zero and one.

    A size that is open is at least two to torch.export; the operators do the same for one, the model's code may not.
    """
    if not placeholders:
        return []
    env = placeholders[0].meta["val"].fake_mode.shape_env
    guards = [env.simplify(guard.expr) for guard in env.guards]
    return [guard for guard in guards if not _holds_from_two_on(guard) and not _tells_from_one(guard)]


def _holds_from_two_on(guard: sympy.Basic) -> bool:
    sizes = {symbol: ValueRanges(2, int_oo) for symbol in guard.free_symbols}
    return bound_sympy(guard, sizes).lower == sympy.true


def _tells_from_one(guard: sympy.Basic) -> bool:
    if isinstance(guard, sympy.Ne):
        return not (guard.lhs.is_Symbol and guard.rhs.is_Integer and guard.rhs > 1)
    rising = guard.reversed if isinstance(guard, sympy.Le | sympy.Lt) else guard
    if not isinstance(rising, sympy.Ge | sympy.Gt) or not rising.rhs.is_Integer:
        return False
    return rising.rhs <= (2 if isinstance(rising, sympy.Ge) else 1)


def _is_limit(guard: sympy.Basic) -> bool:
    """Return whether a guard holds one size against a number."""
    if not isinstance(guard, sympy.Rel):
        return False
    pairs = ((guard.lhs, guard.rhs), (guard.rhs, guard.lhs))
    return not isinstance(guard, sympy.Eq | sympy.Ne) and any(a.is_Symbol and b.is_Integer for a, b in pairs)


def _limits(placeholders: Sequence[fx.Node]) -> dict[sympy.Basic, tuple[int, int | None]]:
    """Return the least and the greatest size of those that have one."""
    found: dict[sympy.Basic, tuple[int, int | None]] = {}
    for guard in filter(_is_limit, _guards(placeholders)):
        rising = guard if guard.lhs.is_Symbol else guard.reversed
        least, most = found.get(rising.lhs, (0, None))
        strict = isinstance(rising, sympy.Gt | sympy.Lt)
        number = int(rising.rhs)
        if isinstance(rising, sympy.Ge | sympy.Gt):
            least = max(least, number + strict)
        else:
            most = min(number - strict, most if most is not None else number)
        found[rising.lhs] = (least, most)
    return found


def size_of(size: int | torch.SymInt) -> int | sympy.Expr:
    """Return a size in a program as a number where it has one alone, else as an expression of open sizes."""
    expression = sympy.Integer(size) if isinstance(size, int) else size.node.expr
    return int(expression) if expression.is_Integer else expression
