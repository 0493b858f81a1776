"""Where a compressed model keeps the plan that made it: in a module without state, so that copies keep it too."""

from torch import fx, nn

from fxcompress.errors import CompressError
from fxcompress.policies import Plan

_NAME = "fxcompress_plan"


class PlanHolder(nn.Module):
    """Hold the plan of the model that it is part of."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan


def hold(gm: fx.GraphModule, plan: Plan) -> fx.GraphModule:
    """Let the model keep its plan; returns the model. Raises CompressError where it has a part of that name."""
    if hasattr(gm, _NAME):
        raise CompressError(f"the model has a part named {_NAME!r}, where the plan is kept; rename it")
    gm.add_module(_NAME, PlanHolder(plan))
    return gm


def plan_of(model: nn.Module) -> Plan:
    """Return the plan of a compressed model. Raises CompressError for any other module."""
    holder = getattr(getattr(model, "_orig_mod", model), _NAME, None)  # torch.compile wraps the module
    if not isinstance(holder, PlanHolder):
        raise CompressError(
            f"{type(model).__name__} carries no plan: it is not the result of fxcompress.transform or load"
        )
    return holder.plan
