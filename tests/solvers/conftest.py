"""Small problems at random, and every choice of their options to compare with."""

import math
import random
from collections.abc import Callable, Iterator
from itertools import product

import pytest

from fxcompress.solvers import Decision, Interaction, Problem


@pytest.fixture
def all_choices() -> Callable[[Problem], Iterator[dict[str, int]]]:
    """Every choice of one option for each decision, within the budgets or not."""

    def choices(problem: Problem) -> Iterator[dict[str, int]]:
        for options in product(*(range(len(decision.options)) for decision in problem.decisions)):
            yield {decision.name: option for decision, option in zip(problem.decisions, options, strict=True)}

    return choices


@pytest.fixture
def least_loss(all_choices) -> Callable[[Problem], float | None]:
    """The least loss within the budgets, summed over all choices by hand; None where no choice meets them."""

    def loss_of(problem: Problem, chosen: dict[str, int]) -> float:
        terms = [decision.loss[chosen[decision.name]] for decision in problem.decisions]
        for pair in problem.interactions:
            terms.append(pair.loss[chosen[pair.first]][chosen[pair.second]])
        return math.fsum(terms)

    def fits(problem: Problem, chosen: dict[str, int]) -> bool:
        return all(
            sum(decision.costs[budget][chosen[decision.name]] for decision in problem.decisions) <= limit
            for budget, limit in problem.budgets.items()
        )

    def least(problem: Problem) -> float | None:
        return min(
            (loss_of(problem, chosen) for chosen in all_choices(problem) if fits(problem, chosen)), default=None
        )

    return least


LOSSES: dict[str, Callable[[random.Random], float]] = {
    "positive": lambda rng: rng.expovariate(1.0),
    "negative": lambda rng: rng.uniform(-1.0, 0.2),
    "tied": lambda rng: rng.choice([0.0, 0.5, 1.0]),
    "zero": lambda rng: 0.0,
    "tiny": lambda rng: rng.uniform(0.0, 1e-12),
    "huge": lambda rng: rng.uniform(-1e30, 1e30),
    "of every size": lambda rng: rng.choice([-1, 1]) * 10.0 ** rng.uniform(-12, 30),
}


@pytest.fixture
def random_problem() -> Callable[..., Problem]:
    """A problem of 1 to 7 decisions, 1 to 4 options and 0 to 3 budgets: loose, exactly tight or too small."""

    def build(seed: int, losses: str = "positive", decisions: int = 7, pairs: bool = False) -> Problem:
        rng = random.Random(f"{losses} {seed}")
        draw = LOSSES[losses]
        budgets = ["size", "bops", "latency"][: rng.randrange(4)]
        unit = rng.choice([1, 1, 6, 1000])
        made = []
        for index in range(rng.randint(1, decisions)):
            count = rng.randint(1, 4)
            made.append(
                Decision(
                    name=f"layer{index}",
                    options=tuple(f"int{bits}" for bits in range(2, 2 + count)),
                    loss=tuple(draw(rng) for _ in range(count)),
                    costs={budget: tuple(unit * rng.randrange(12) for _ in range(count)) for budget in budgets},
                )
            )
        some = {decision.name: rng.randrange(len(decision.options)) for decision in made}
        limits = {}
        for budget in budgets:
            tight = sum(decision.costs[budget][some[decision.name]] for decision in made)
            limits[budget] = tight + rng.choice([0, 0, 0, rng.randint(-10, 20), -rng.randint(0, 20) * unit])
        interactions = []
        if pairs and len(made) > 1:
            for _ in range(rng.randint(1, 4)):
                first, second = rng.sample(made, 2)
                table = tuple(tuple(draw(rng) for _ in second.options) for _ in first.options)
                interactions.append(Interaction(first.name, second.name, table))
        return Problem(tuple(made), limits, tuple(interactions))

    return build
