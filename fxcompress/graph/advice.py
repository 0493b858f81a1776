"""Advice: what to change in a model's code so that more of it can become a graph."""

import re

from fxcompress.errors import CaptureError

# What an error says, and what helps; the first that fits.
_ADVICE = (
    (
        r"control flow|branches on the value|data-dependent|Could not guard|bool\(\)|is_nonzero",
        "choose with torch.where instead of `if` on a tensor's value, or move this code out of the module's forward",
    ),
    (
        r"cannot be iterated",
        "loop over a number that the module knows, such as range(len(self.layers)), not over a tensor or its shape",
    ),
    (r"\blen\b", "use x.shape[0] instead of len(x)"),
    (
        r"an integer|__index__|range\(|int\(\)|ones\(\)|zeros\(\)",
        "take sizes from the module's own attributes instead of from the input's shape",
    ),
    (r"hook", "remove the hook before capturing: handle.remove()"),
    (r"assigns a new value to its buffer", "change the buffer in place: self.buffer.copy_(value)"),
    (r"in place", "compute it out of place: x = x + y instead of x += y"),
    (
        r"numpy|item\(\)|tolist|float\(\)|needs the value of a tensor",
        "stay in torch: what leaves it for Python or numpy cannot be followed",
    ),
    (r"nothing that the model computes", "nothing: it has no part in the result"),
    (
        r"between the graphs",
        "move this code into a module of its own, or capture by export to see the whole model in one graph",
    ),
    (
        r"does not look into",
        "capture by export, which looks into it: capture(model, example_inputs, way='export')",
    ),
)


def advice(error: CaptureError) -> str:
    """Return what a person can change where a module could not be followed."""
    said = str(error).replace(error.place, "").replace(error.line, "")  # a path or a name says nothing of the reason
    return next(
        (text for pattern, text in _ADVICE if re.search(pattern, said)),
        "move the code that cannot be followed into a small module of its own; the modules around it can be captured",
    )
