"""Make PyTorch models small and fast from a policy file: `transform(model, policy)`."""

from fxcompress.graph import capture
from fxcompress.pipeline import plan, transform
from fxcompress.version import VERSION as __version__

__all__ = ["__version__", "capture", "plan", "transform"]
