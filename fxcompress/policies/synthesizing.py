"""Synthesizing: where data comes from where the user gives none."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from fxcompress.policies.base import Strict
from fxcompress.policies.reference import Reference


class ZeroQ(Strict):
    """Arguments of ZeroQ."""

    batches: Annotated[int, Field(ge=1, description="Batches made")] = 8
    batch_size: Annotated[int, Field(ge=1, description="Samples in each batch")] = 32
    iterations: Annotated[int, Field(ge=1, description="Steps of Adam for each batch")] = 500
    seed: Annotated[int, Field(description="Seed of the noise that each batch starts from")] = 0


class Synthesis(Reference):
    """Where data comes from where none is given: `zeroq`, `{zeroq: {batches: 8}}` or your own function."""

    @classmethod
    def known(cls) -> Mapping[str, type[Strict]]:
        return {"zeroq": ZeroQ}
