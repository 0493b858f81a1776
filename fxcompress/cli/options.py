"""What the commands have in common: their options."""

from pathlib import Path
from typing import Annotated

import typer

from fxcompress.policies.policy import Way

PolicyArgument = Annotated[
    str, typer.Argument(help="A policy or plan (.yaml, .json), or a preset's name such as w8a8.")
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="The float model: `package.module:name`, a module or a function that makes one."
    ),
]
OptionalModel = Annotated[str | None, typer.Option("--model", "-m", help="A float model to check the rules against.")]
DataOption = Annotated[
    str | None, typer.Option("--data", "-d", help="Batches for calibration and sensitivity: `package.module:name`.")
]
LossOption = Annotated[
    str | None, typer.Option("--loss", "-l", help="The loss, e.g. `torch.nn.functional:cross_entropy`.")
]
InputsOption = Annotated[str | None, typer.Option("--inputs", "-i", help="Example inputs: `package.module:name`.")]
BudgetOption = Annotated[
    list[str] | None,
    typer.Option("--budget", "-b", help="Replace a budget of the policy, e.g. `size=20%`. Repeatable."),
]
CaptureOption = Annotated[
    Way | None, typer.Option("--capture", help="How the model becomes a graph, in the place of the policy's word.")
]
BuiltinOnly = Annotated[
    bool, typer.Option("--builtin-only", help="Refuse names of the form package.module:attribute, which run code.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="Folder in which tuning keeps what is done, to go on after a kill.")
]
