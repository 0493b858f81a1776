"""Source lines: where in the user's own code something happens, as `file:line` and its text."""

import linecache
import os
import traceback
from pathlib import Path
from types import FrameType

import torch
from torch import nn

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_NOT_THE_USERS = (f"{Path(__file__).parent}{os.sep}", _TORCH)


def line_of(frame: FrameType) -> tuple[str, str]:
    """Return the line of code that a frame stands at."""
    file, line = frame.f_code.co_filename, frame.f_lineno
    return f"{file}:{line}", linecache.getline(file, line).strip()


def user_line(error: BaseException) -> tuple[str, str]:
    """Return the last line of the user's own code that an error came through, or twice ''."""
    traced = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in traced if not frame.filename.startswith(_NOT_THE_USERS)]
    return (f"{frames[-1].filename}:{frames[-1].lineno}", frames[-1].line or "") if frames else ("", "")


def failing_module(error: BaseException, model: nn.Module) -> str:
    """Return the path of the innermost module of a model whose forward an error came through."""
    paths = {module: path for path, module in model.named_modules()}
    found, traced = "", error.__traceback__
    while traced is not None:
        owner = traced.tb_frame.f_locals.get("self")
        found = paths.get(owner, found) if isinstance(owner, nn.Module) else found
        traced = traced.tb_next
    return found


def outside_torch(frame: FrameType) -> FrameType:
    """Return the innermost frame of code that is not torch's."""
    while frame.f_code.co_filename.startswith(_TORCH) and frame.f_back is not None:
        frame = frame.f_back
    return frame
