"""Writing files whole or not at all: beside their place first, and moved there when everything is written."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(folder: Path, *names: str) -> Iterator[Path]:
    """Give an empty folder to write files of these names to; they replace those in `folder` when the block ends.

    They are moved in the given order, names that were not written are passed over, and an error moves none. `folder`
    is made where it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fxcompress-", dir=folder) as directory:
        yield Path(directory)
        for name in names:
            if Path(directory, name).exists():
                os.replace(Path(directory, name), folder / name)
