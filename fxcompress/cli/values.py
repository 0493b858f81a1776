"""What the texts on a command line stand for: models, data, losses and policies."""

from typing import Any

from pydantic import ValidationError
from torch import nn

from fxcompress.errors import PolicyError
from fxcompress.policies import Policy, read
from fxcompress.policies.policy import Way
from fxcompress.policies.reference import is_dotted, load_attribute


def policy_of(name: str, budgets: list[str] | None) -> Policy:
    """Return a policy with some budgets replaced; raises PolicyError for a wrong `--budget`."""
    policy = read(name)
    try:
        return policy.with_budgets(dict(_assignment(text) for text in budgets)) if budgets else policy
    except ValidationError as error:
        raise PolicyError(f"--budget: {error.errors()[0]['msg']}") from error
    except ValueError as error:
        raise PolicyError(f"--budget: {error}") from error


def _assignment(text: str) -> tuple[str, str]:
    name, equals, amount = text.partition("=")
    if not equals:
        raise PolicyError(f"--budget {text!r}: write name=amount, for example size=20%")
    return name.strip(), amount.strip()


def value_of(name: str | None) -> Any:
    """Return what `package.module:name` stands for; a function is called."""
    if name is None:
        return None
    if not is_dotted(name):
        raise PolicyError(f"{name!r} is not of the form package.module:name")
    value = load_attribute(name)
    return value() if callable(value) and not isinstance(value, nn.Module) else value


def model_of(name: str) -> nn.Module:
    """Return the model that `package.module:name` stands for; raises PolicyError where it is none."""
    value = value_of(name)
    if not isinstance(value, nn.Module):
        raise PolicyError(f"{name!r} is a {type(value).__name__}, not a torch.nn.Module or a function that makes one")
    return value


def arguments_of(data: str | None, loss: str | None, inputs: str | None, capture: Way | None) -> dict[str, Any]:
    """Return the keyword arguments of `plan` and `transform`."""
    return {
        "data": value_of(data),
        "loss": None if loss is None else load_attribute(loss),
        "example_inputs": value_of(inputs),
        "capture": capture,
    }
