"""The steps of a policy but quantize: what each pass is told to do."""

from typing import Annotated, Literal

from pydantic import Field

from fxcompress.policies.rules import Rule
from fxcompress.policies.step import RuleStep, Step
from fxcompress.policies.values import KernelSize, Sparsity


class FoldBatchNorm(Step):
    """Fold each batch norm into the convolution or linear layer before it."""

    kind: Literal["fold_batch_norm"] = "fold_batch_norm"


class Equalize(Step):
    """Even out the ranges of channels between layers by scaling, which changes nothing the model computes."""

    kind: Literal["equalize"] = "equalize"
    absorb_bias: Annotated[
        bool, Field(description="Move large biases before a ReLU into the next layer, as far as batch norm allows")
    ] = True
    replace_relu6: Annotated[
        bool, Field(description="Put ReLU in the place of ReLU6 between layers, which cannot be scaled across")
    ] = True


class SplitChannelsRule(Rule):
    """Halve the outliers of a weight by computing the input channels that hold them twice."""

    ratio: Annotated[float, Field(gt=0, le=1, description="Share of input channels added, rounded up")] = 0.02


class SplitChannels(RuleStep):
    """Split the input channels that hold the largest weights in two (outlier channel splitting)."""

    weight_fields = ("ratio",)
    kind: Literal["split_channels"] = "split_channels"
    rules: Annotated[
        tuple[SplitChannelsRule, ...], Field(description="What is split and how far; the last match wins")
    ]


class PruneRule(Rule):
    """Set the weights of smallest magnitude to zero."""

    sparsity: Annotated[Sparsity, Field(description="Share of weights set to zero; a list is open")] = 0.0


class Prune(RuleStep):
    """Put masks on weights."""

    open_fields = ("sparsity",)
    weight_fields = ("sparsity",)
    kind: Literal["prune"] = "prune"
    rules: Annotated[tuple[PruneRule, ...], Field(description="What is pruned and how far; the last match wins")]


class SupernetRule(Rule):
    """Offer other kernel sizes for a convolution."""

    kernel_size: Annotated[KernelSize, Field(description="Odd kernel sizes; a list is open, one value decides")]


class Supernet(RuleStep):
    """Offer alternatives for a layer as a Choice."""

    open_fields = ("kernel_size",)
    kind: Literal["supernet"] = "supernet"
    rules: Annotated[tuple[SupernetRule, ...], Field(description="What is offered where; the last match wins")]


class Resolve(Step):
    """Replace Choices by the options taken."""

    kind: Literal["resolve"] = "resolve"
    choose: Annotated[
        dict[str, str], Field(min_length=1, description="The option to take for each Choice, by its name")
    ]
