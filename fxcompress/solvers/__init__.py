"""CHOOSE: numbers in, choices out, with a proven bound; never imports torch."""

from fxcompress.solvers.exact import exact
from fxcompress.solvers.explain import least_feasible, why
from fxcompress.solvers.problem import Allocation, Decision, Interaction, Problem

__all__ = ["Allocation", "Decision", "Interaction", "Problem", "exact", "least_feasible", "why"]
