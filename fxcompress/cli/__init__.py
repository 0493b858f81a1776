"""The command line: capture, check, plan, transform, lower, report, schema and demo."""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from fxcompress import checkpoint, pipeline
from fxcompress.cli.options import (
    BudgetOption,
    BuiltinOnly,
    CacheOption,
    CaptureOption,
    DataOption,
    InputsOption,
    JsonOption,
    LossOption,
    ModelOption,
    OptionalModel,
    PolicyArgument,
)
from fxcompress.cli.values import arguments_of, model_of, policy_of, value_of
from fxcompress.errors import CompressError, PolicyError
from fxcompress.graph import capture as capture_model
from fxcompress.graph.inputs import examples
from fxcompress.graph.shapes import shapes
from fxcompress.lowering.lowered import lower as lower_model
from fxcompress.policies import Plan, RuleStep, read, show
from fxcompress.policies import schema as policy_schema
from fxcompress.policies.policy import Way
from fxcompress.policies.rules import place
from fxcompress.reporting.captured import captured
from fxcompress.reporting.drawing import draw
from fxcompress.reporting.report import report as make_report

_out, _err = Console(), Console(stderr=True)


class _Group(TyperGroup):
    """Turns errors into exit codes: 2 for a wrong policy or command line, 1 where model or budget says no."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *_, **__: _say(f"warning: {message}", "yellow")
                return super().invoke(ctx)
        except CompressError as error:
            _say(f"error: {error}", "red")
            raise SystemExit(2 if isinstance(error, PolicyError) else 1) from error


def _say(text: str, style: str) -> None:
    _err.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


app = typer.Typer(cls=_Group, no_args_is_help=True, add_completion=False, rich_markup_mode="markdown")


@app.callback()
def main() -> None:
    """Make PyTorch models small and fast from a policy file.

    Exit codes: 0 fine, 1 the model or the budget says no, 2 wrong usage or a bad policy.
    """
    sys.path.insert(0, os.getcwd())  # so that package.module names of the user's own project are found


@app.command()
def capture(
    model: Annotated[str, typer.Argument(help="`package.module:name`, a module or a function that makes one.")],
    inputs: InputsOption = None,
    data: DataOption = None,
    way: Annotated[Way, typer.Option(help="How the model becomes a graph; all but symbolic need inputs.")] = "auto",
    graph: Annotated[
        Path | None, typer.Option("--graph", "-g", dir_okay=False, help="Draw the graph into this SVG file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the layers of a model with shapes, parameters and work, what is not seen, why, and what to change.

    Without inputs the model is not run: no shapes, no multiply-accumulates.

    Example: `fxcompress capture mypackage:net -i mypackage:example --graph net.svg`
    """
    original = model_of(model)
    example = examples(original, value_of(inputs), value_of(data)).inputs
    gm = capture_model(original, example, way=way)
    known = shapes(gm, example)
    found = captured(gm, known)
    if as_json:
        print(found.to_json())
    else:
        found.print(_out)
    if graph is not None:
        draw(gm, graph, known)
        _err.print(f"wrote {graph}")


@app.command()
def check(
    policy: PolicyArgument,
    model: OptionalModel = None,
    inputs: InputsOption = None,
    builtin_only: BuiltinOnly = False,
) -> None:
    """Check a policy file; with a model, show which layers each rule matches. Nothing is measured or written.

    Example: `fxcompress check mixed.yaml --model mypackage.models:resnet`
    """
    wanted = read(policy, builtin_only=builtin_only)
    _out.print(
        f"{policy}: {'a plan' if isinstance(wanted, Plan) else 'a policy'} with {len(wanted.steps)} steps, valid"
    )
    if model is not None:
        gm = capture_model(model_of(model), value_of(inputs), way=wanted.capture)
        applied = pipeline.run(wanted.aimed, gm)
        for step, done in zip(wanted.steps, applied, strict=True):
            for index, rule in enumerate(step.rules if isinstance(step, RuleStep) else ()):
                names = [m.subject.name for m in done.matched if index in m.by]
                where = place(rule, step.kind, index)
                _out.print(f"{where}: {len(names)} layers: {', '.join(names)}", highlight=False, soft_wrap=True)


@app.command()
def plan(
    policy: PolicyArgument,
    model: ModelOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the plan.")],
    data: DataOption = None,
    loss: LossOption = None,
    inputs: InputsOption = None,
    budget: BudgetOption = None,
    capture: CaptureOption = None,
) -> None:
    """Measure, solve and write the plan: the policy with every decision made, what each costs and why.

    Example: `fxcompress plan mixed.yaml -m mypackage:net -d mypackage:batches -l torch.nn.functional:cross_entropy
    -o mixed.plan.yaml`
    """
    decided = pipeline.plan(model_of(model), policy_of(policy, budget), **arguments_of(data, loss, inputs, capture))
    decided.save(output)
    make_report(decided).print(_out)
    _out.print(f"wrote {output}")


@app.command()
def transform(
    policy: PolicyArgument,
    model: ModelOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for model.safetensors and policy.yaml.")],
    data: DataOption = None,
    loss: LossOption = None,
    inputs: InputsOption = None,
    budget: BudgetOption = None,
    capture: CaptureOption = None,
    cache: CacheOption = None,
) -> None:
    """Compress a model and save it: `model.safetensors` and `policy.yaml` (the plan).

    A plan needs no data, unless it tunes.

    Example: `fxcompress transform mixed.plan.yaml -m mypackage:net -o small/`
    """
    given = arguments_of(data, loss, inputs, capture)
    small = pipeline.transform(model_of(model), policy_of(policy, budget), cache=cache, **given)
    checkpoint.save(small, output)
    make_report(small).print(_out)
    _out.print(f"wrote {output / checkpoint.MODEL} and {output / checkpoint.POLICY}")


@app.command()
def lower(
    directory: Annotated[Path, typer.Argument(help="The folder of a saved compressed model.")],
    model: ModelOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.")],
    inputs: InputsOption = None,
    data: DataOption = None,
    max_difference: Annotated[
        float | None, typer.Option(help="Fail when an output differs by more than this share of the largest output.")
    ] = None,
) -> None:
    """Export a saved compressed model to ONNX, run it in ONNX Runtime and compare it with PyTorch.

    Example: `fxcompress lower small/ -m mypackage:net -i mypackage:example -o small.onnx`
    """
    original = model_of(model)
    known = examples(original, value_of(inputs), value_of(data)).inputs
    if known is None:
        raise PolicyError(
            "lower runs the model once: pass --inputs package.module:name or --data package.module:name"
        )
    small = checkpoint.load(directory, original, example_inputs=known)
    lowered = lower_model(small, output, known, max_difference=max_difference)
    _out.print(
        f"wrote {output}: {show('size', lowered.bytes)}, of it weights {show('size', lowered.weight_bytes)}, opset "
        f"{lowered.opset}; largest difference to PyTorch {lowered.largest_difference:.3g} "
        f"({lowered.relative_difference:.2%} of the largest output, at most {lowered.max_difference:.2%} accepted)"
    )


@app.command()
def report(
    source: Annotated[Path, typer.Argument(help="A plan's file, or the folder of a saved compressed model.")],
    as_json: JsonOption = False,
) -> None:
    """Show what was done to each layer, why, and at what price.

    Example: `fxcompress report small/`
    """
    found = make_report(source)
    if as_json:
        print(found.to_json())
    else:
        found.print(_out)


@app.command()
def schema() -> None:
    """Print the JSON Schema of policy files, with which editors complete and check them.

    Example: `fxcompress schema > policy.schema.json`
    """
    print(json.dumps(policy_schema(), indent=2))


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files it writes.")] = Path(
        "demo-output"
    ),
) -> None:
    """Train a small ResNet on handwritten digits, compress it, run it in ONNX Runtime and compare (one minute)."""
    from fxcompress.demo.run import run

    run(output, _out)
