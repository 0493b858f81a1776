"""Brevitas as a peer: the same network, the same bits and the same calibration images, in its own way."""

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.data import DataLoader

from fxcompress.demo.resnet import Block, ResNet

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import brevitas.nn as qnn
    from brevitas.core.scaling.standalone import ParameterFromStatsFromParameterScaling
    from brevitas.export.inference import quant_inference_mode
    from brevitas.graph.calibrate import bias_correction_mode, calibration_mode
    from brevitas.graph.quantize import layerwise_quantize, preprocess_for_quantize
    from brevitas.quant.scaled_int import Int8WeightPerChannelFloatMSE
    from brevitas.quant.shifted_scaled_int import ShiftedUint8ActPerTensorFloat
    from brevitas_examples.common.learned_round import learned_round_args as learned
    from brevitas_examples.common.learned_round.learned_round_method import LearnedRoundArgs
    from brevitas_examples.common.learned_round.learned_round_trainer import LearnedRoundTrainer, get_blocks
    from brevitas_examples.imagenet_classification.ptq.learned_round_utils import (
        CacheVision,
        is_layer,
        vision_block_forward,
        vision_forward,
    )


PERCENTILES = {8: 99.999, 4: 99.9}  # of activations: at 8 bits the default, at 4 the best of several, mse among them
LEARNING_RATES = {"ada_round": 1e-2, "block_reconstruction": 1e-3}
ITERATIONS, BATCH_SIZE = 1000, 32


class _Block(nn.Module):
    """A block with its batch norms folded and a module wherever something can be quantized."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.conv1 = fuse_conv_bn_eval(block.conv1, block.bn1)
        self.conv2 = fuse_conv_bn_eval(block.conv2, block.bn2)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.branch, self.shortcut = nn.Identity(), nn.Identity()
        self.stride, self.padding = block.stride, block.padding

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.relu1(self.conv1(x)))
        if self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return self.relu2(self.branch(y) + self.shortcut(x))


class _Network(nn.Module):
    """The residual network made of such blocks."""

    def __init__(self, model: ResNet) -> None:
        super().__init__()
        self.conv1, self.relu = fuse_conv_bn_eval(model.conv1, model.bn1), nn.ReLU()
        groups = (model.layer1, model.layer2, model.layer3)
        self.layers = nn.Sequential(*(_Block(block) for group in groups for block in group))
        self.pool, self.flatten, self.linear = nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.flatten(self.pool(self.layers(self.relu(self.conv1(x))))))


def brevitas(model: ResNet, data: DataLoader, bits: tuple[int, int], method: str, seed: int) -> nn.Module:
    """Return `model` with weights and inputs of these bits, 8 for those of the first and last layer.

    `method` is one of those of the benchmark: equalization goes before quantization, the others follow calibration.
    """
    torch.manual_seed(seed)
    batches = [images for images, _ in data]
    network = plain(model)
    with _quiet():
        if method == "equalization":
            network = preprocess_for_quantize(network, equalize_iters=20)
        network = quantized(network, batches[0], bits)
        calibrate(network, batches)
        if method == "bias_correction":
            with bias_correction_mode(network):
                forward(network, batches)
        if method in ("ada_round", "block_reconstruction"):
            _learn_roundings(network, data, method)
    return network.eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out progress bars, and the warning that accumulators have no zero point: nothing here asks for it."""
    words = io.StringIO()
    with contextlib.redirect_stderr(words), contextlib.redirect_stdout(words), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def plain(model: ResNet) -> nn.Module:
    """Return the float network with its batch norms folded, written so that Brevitas can quantize it."""
    return _Network(copy.deepcopy(model)).eval()  # Brevitas writes into parameters


def quantized(network: nn.Module, images: Tensor, bits: tuple[int, int]) -> nn.Module:
    """Return such a network with quantizers, those of weights set and those of activations not."""
    added = {"act_quant": _entering(bits[1]), "return_quant_tensor": False}
    inner = _layers(*bits) | {nn.Identity: (qnn.QuantIdentity, added)}
    network = layerwise_quantize(network, inner, name_blacklist=["conv1", "linear"])
    network = layerwise_quantize(network, _layers(8, 8))  # those that are left
    forward(network, [images])
    return network


def calibrate(network: nn.Module, batches: Sequence[Tensor]) -> None:
    """Set the ranges of activations."""
    with calibration_mode(network):
        forward(network, batches)


@torch.no_grad()
def forward(network: nn.Module, batches: Sequence[Tensor]) -> None:
    """Run all batches through a network."""
    for images in batches:
        network(images)


@contextlib.contextmanager
def inference(network: nn.Module) -> Iterator[None]:
    """Let Brevitas keep its quantized weights while a network is measured."""
    with torch.no_grad(), quant_inference_mode(network):
        yield


def _layers(weight_bits: int, input_bits: int) -> dict[type[nn.Module], Any]:
    """Return what takes the place of each kind of layer."""
    weight = Int8WeightPerChannelFloatMSE.let(
        bit_width=weight_bits, scaling_impl=ParameterFromStatsFromParameterScaling
    )
    layer = {
        "weight_quant": weight,
        "input_quant": _entering(input_bits),
        "bias_quant": None,
        "return_quant_tensor": False,
    }
    return {nn.Conv2d: (qnn.QuantConv2d, layer), nn.Linear: (qnn.QuantLinear, layer)}


def _entering(bits: int) -> Any:
    """Return the quantizer of an activation, with a zero point."""
    ends = {"high_percentile_q": PERCENTILES[bits], "low_percentile_q": 100 - PERCENTILES[bits]}
    return ShiftedUint8ActPerTensorFloat.let(bit_width=bits, **ends)


def _learn_roundings(network: nn.Module, data: DataLoader, method: str) -> None:
    """Learn roundings as its image classification example does: regularized by layer, straight-through by block."""
    by_layer = method == "ada_round"
    squares = learned.LossArgs(cls="mse", kwargs={"reduction": "none", "dim": 1} if by_layer else {})
    training = learned.TrainingArgs(
        optimizers_args=[learned.OptimizerArgs("learned_round", "Adam", LEARNING_RATES[method], optimizer_kwargs={})],
        batch_size=BATCH_SIZE,
        iters=ITERATIONS,
        losses_args=[learned.LossArgs(cls="round_reg", kwargs={"max_count": ITERATIONS}), squares]
        if by_layer
        else [squares],
        use_best_model=False,
        use_amp=False,
    )
    rounding = LearnedRoundArgs("hard_sigmoid" if by_layer else "identity", learned_round_kwargs={})
    handler = learned.HandlerSpec[LearnedRoundArgs](name="learned_round", config=rounding)
    config = learned.TrainerConfig(training_args=training, training_handlers=[handler])
    LearnedRoundTrainer(config=config).train(
        model=network,
        model_forward=vision_forward,
        block_forward=vision_block_forward,
        data_loader=data,
        cache=CacheVision(),
        get_blocks_fn=lambda found: get_blocks(found, is_layer if by_layer else _is_block),
    )


def _is_block(module: nn.Module, name: str) -> bool:
    return isinstance(module, _Block)
