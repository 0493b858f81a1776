"""The Choice: alternatives on one edge of the graph, of which a solver or the user picks one."""

from collections.abc import Mapping
from typing import Any

from torch import nn

Settings = Mapping[str, Any]  # what an option means in the policy's words, for example {"weight.bits": 4}


class Choice(nn.Module):
    """Offer several modules for one edge and run one of them.

    Every option takes the same inputs. `active` names the option that runs; None leaves the edge as it was (the first
    input passes unchanged). It is a run-time switch like `training`: the decision itself is made by the `resolve`
    pass, which replaces the Choice by the option taken. A Choice in a graph is an open decision.

    `settings` says for each option what it means in the policy's words.
    """

    def __init__(
        self, options: Mapping[str, nn.Module], settings: Mapping[str, Settings], active: str | None = None
    ) -> None:
        super().__init__()
        if len(options) < 2:
            raise ValueError(f"a Choice needs at least two options, not {len(options)}")
        if set(options) != set(settings):
            raise ValueError("a Choice needs settings for each of its options")
        self.labels = tuple(options)
        self.branches = nn.ModuleList(options.values())
        self.settings = {label: dict(settings[label]) for label in options}
        self.active = active

    @property
    def options(self) -> dict[str, nn.Module]:
        """The alternatives by label."""
        return dict(zip(self.labels, self.branches, strict=True))

    def forward(self, *inputs: Any) -> Any:
        if self.active is None:
            return inputs[0]
        return self.branches[self.labels.index(self.active)](*inputs)

    def __repr__(self) -> str:
        return f"Choice({' | '.join(self.labels)})"
