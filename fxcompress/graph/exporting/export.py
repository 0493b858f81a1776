"""Export: the second way of capture, torch.export with its operators lifted to those that tracing gives."""

from torch import fx, nn

from fxcompress.errors import CaptureError
from fxcompress.graph.exporting.lift import Lifter
from fxcompress.graph.exporting.nesting import write_output
from fxcompress.graph.exporting.placement import followed_placements
from fxcompress.graph.exporting.program import FailedError, Program, widest_program
from fxcompress.graph.exporting.signature import Inputs, open_inputs
from fxcompress.graph.exporting.sizes import write_guard
from fxcompress.graph.inputs import Arguments
from fxcompress.graph.shell import shell
from fxcompress.graph.source import user_line
from fxcompress.graph.traced import Traced
from fxcompress.graph.tracing.train_mode import InMode, follow_train_mode

_REASONS = {
    "data-dependent expression": "it branches on the value of a tensor, or needs it as a number",
    "_nested_tensor": "it makes a nested tensor",
}


def export(model: nn.Module, arguments: Arguments) -> Traced:
    """Return the graph of `model` for calls like the one with `arguments`, by way of torch.export.

    Constants of the program become attributes of `model`, and a batch norm that computes more a plain one. Axes of
    the inputs that are batches or lengths may have any size that the model's code allows; for the rest the graph
    refuses other sizes than those of the example.
    Raises CaptureError naming the module and the source line that cannot be followed.
    """
    untouched = shell(model)
    traced, asking = _exported(model, arguments, frozenset())
    traced.asked.update({place: line for lines in asking.values() for place, line in lines.items()})

    def in_train() -> InMode:
        return InMode(untouched, _exported(untouched, arguments, frozenset(asking))[0])

    follow_train_mode(InMode(model, traced), in_train)
    return traced


def _exported(
    model: nn.Module, arguments: Arguments, in_train: frozenset[str]
) -> tuple[Traced, dict[str, dict[str, str]]]:
    """Return the graph, with branches as in train mode in some modules, and the lines of modules that branch."""
    traced = Traced(fx.Graph(), {}, {}, set(), {})
    inputs = open_inputs(traced.graph, model, arguments)
    program = _program(model, inputs, in_train)
    if in_train and program.following.is_partial:
        raise CaptureError("a function takes no mode but a bool, which is as in eval mode")
    write_guard(traced.graph, inputs, program.inputs, program.not_one)
    placed = followed_placements(program, model, inputs)
    lifter = Lifter(traced, model, program.exported, program.following, placed)
    results = lifter.lift(inputs.nodes)
    lifter.assign(program.assigned, results[len(results) - len(program.assigned) :])
    write_output(traced.graph, program.returned, results)
    called = {str(node.target) for node in traced.graph.find_nodes(op="call_module")}
    return traced, program.following.asking(without=called)


def _program(model: nn.Module, inputs: Inputs, in_train: frozenset[str]) -> Program:
    try:
        return widest_program(model, inputs, in_train)
    except CaptureError:
        raise
    except FailedError as failed:
        cause = failed.__cause__
        assert isinstance(cause, Exception)
        raise _refusal(model, cause, failed.module) from cause
    except Exception as error:
        raise _refusal(model, error, "") from error


def _refusal(model: nn.Module, error: Exception, module: str) -> CaptureError:
    place, line = user_line(error)
    inside = f" in module {module!r}" if module else ""
    where = f" at {place} ({line})" if place else ""
    message = f"{type(model).__name__} cannot be exported{inside}{where}: {_reason(error)}"
    return CaptureError(message, place=place, line=line)


def _reason(error: Exception) -> str:
    """Return what an error says in its first line, as torch.export goes on for pages."""
    said = next((line for line in str(error).splitlines() if line.strip()), "")
    known = (reason for part, reason in _REASONS.items() if part in said)
    return next(known, f"{type(error).__name__}: {' '.join(said.split())}")
