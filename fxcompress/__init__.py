"""Make PyTorch models small and fast from a policy file: `transform(model, policy)`."""

from fxcompress.checkpoint import load, save
from fxcompress.graph import capture
from fxcompress.lowering.lowered import Lowered, lower
from fxcompress.pipeline import plan, transform
from fxcompress.policies import Plan, Policy
from fxcompress.reporting.report import Report, report
from fxcompress.version import VERSION

__version__ = VERSION
__all__ = [
    "Lowered",
    "Plan",
    "Policy",
    "Report",
    "__version__",
    "capture",
    "load",
    "lower",
    "plan",
    "report",
    "save",
    "transform",
]
