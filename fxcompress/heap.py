"""The heap: memory that was freed goes back to the system."""

import ctypes
import sys


def trim() -> None:
    """Give the system back the memory between what is still in use; does nothing where the C library is not glibc.

    What a large model computes in a forward pass is freed in pieces, among things that stay, such as the nodes of its
    graph: glibc keeps it, and new memory is taken beside it.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if malloc_trim is not None:
        malloc_trim(0)
