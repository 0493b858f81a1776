"""Operators on images (channels, height, width): convolutions, norms, pools, shuffles, gates, and ways out."""

from typing import Any

from tests.generated.any_rank import linear
from tests.generated.body import LARGEST, Body, Row, Value, spellings

POOLS = (
    *("nn.MaxPool2d(2)", "F.max_pool2d({x}, 2)", "nn.AvgPool2d(2)", "F.avg_pool2d({x}, kernel_size=2, stride=1)"),
    *("nn.MaxPool2d(2, stride=1, ceil_mode=True)", "nn.MaxPool2d((2, 1))", "torch.max_pool2d({x}, 2, stride=1)"),
)
PADDED_POOLS = (
    *("nn.MaxPool2d(3, 2, 1)", "F.max_pool2d({x}, 3, stride=1, padding=1)", "nn.AdaptiveAvgPool2d(1)"),
    *("nn.AvgPool2d(3, 1, 1, count_include_pad=False)", "F.adaptive_avg_pool2d({x}, (1, 1))"),
    *("nn.AdaptiveMaxPool2d(1)", "nn.AdaptiveAvgPool2d((2, 1))", "{x}.mean((2, 3), keepdim=True)"),
)
NORMS = (
    *("nn.BatchNorm2d({c})", "nn.BatchNorm2d({c}, affine=False)", "nn.BatchNorm2d({c}, eps=1e-3, momentum=None)"),
    *(
        "nn.BatchNorm2d({c}, track_running_stats=False)",
        "nn.GroupNorm(1, {c})",
        "nn.GroupNorm({c}, {c}, affine=False)",
    ),
    "F.group_norm({x}, {c})",
)
INSTANCE_NORMS = ("nn.InstanceNorm2d({c})", "nn.InstanceNorm2d({c}, affine=True, track_running_stats=True)")
RESHAPED = (
    *(
        "nn.ChannelShuffle({c})",
        "{x}.permute(0, 1, 3, 2)",
        "{x}.transpose(-1, -2)",
        "torch.permute({x}, (0, 3, 1, 2))",
    ),
    *("{x}.flatten(2).unflatten(2, {x}.shape[2:])", "nn.ZeroPad2d(1)", "F.pad({x}, (1, 0, 0, 1))", "{x}.mT"),
)
FEATURES = (
    *("{x}.flatten(1)", "torch.flatten({x}, 1)", "nn.Flatten()", "{x}.mean((2, 3))", "{x}.mean(dim=[-2, -1])"),
    *("{x}.reshape({x}.size(0), -1)", "F.adaptive_avg_pool2d({x}, 1).flatten(1)", "torch.mean({x}, (-1, -2))"),
    *("{x}.contiguous().view({x}.shape[0], -1)", "{x}.sum((2, 3))", "{x}.amax((2, 3))", "{x}[:, :, 0, 0]"),
)
TOKENS = (
    *(
        "{x}.flatten(2).transpose(1, 2)",
        "{x}.flatten(2)",
        "{x}.mean(2)",
        "{x}.reshape({x}.shape[0], {x}.shape[1], -1)",
    ),
    *("torch.flatten({x}, 2).permute(0, 2, 1)", "{x}.mean(3).transpose(1, 2)", "{x}.select(2, 0)"),
)
DROPOUTS = ("nn.Dropout2d(0.5)", "F.dropout2d({x}, 0.5, training=self.training)")
UPSAMPLED = ("nn.Upsample(scale_factor=2)", "F.interpolate({x}, scale_factor=2, mode='nearest')")


def conv2d(body: Body, x: Value) -> None:
    """Convolve: any of kernel, stride, padding, dilation, groups, bias, padding mode, as a module or a function."""
    groups, out = _groups(body, x.shape[0])
    settings = _window(body, x) | ({"groups": groups} if groups > 1 else {})
    kernel, bias = settings.pop("kernel_size"), body.choose(True, False)
    way = body.choose("module", "module", "module", "mode", "normed", "F", "keywords", "torch")
    if way in ("module", "mode", "normed"):
        if way == "mode" and settings.get("padding") == 1:
            settings["padding_mode"] = body.choose("replicate", "circular")
        made = f"nn.Conv2d({x.shape[0]}, {out}, {kernel}{_keywords(settings)}{'' if bias else ', bias=False'})"
        body.call("conv", f"nn.utils.parametrizations.weight_norm({made})" if way == "normed" else made, x)
        return
    offset = body.parameter("bias", out) if bias else None
    weight = body.parameter(
        "weight", out, x.shape[0] // groups, *(kernel if isinstance(kernel, tuple) else [kernel] * 2)
    )
    if way == "keywords":
        body.own(f"F.conv2d(weight={weight}, bias={offset}, input={x.name}{_keywords(settings)})")
    else:
        body.own(f"{way}.conv2d({x.name}, {weight}, {offset}{_keywords(settings)})")


def _groups(body: Body, channels: int) -> tuple[int, int]:
    """Draw groups, and output channels that fit them."""
    groups = body.choose(1, 1, channels, *([2] if channels % 2 == 0 else []))
    most = 4 if groups < 4 else 2
    return groups, body.choose(channels, *(groups * each for each in range(1, most + 1)))


def _window(body: Body, x: Value) -> dict[str, Any]:
    """Draw kernel, stride, padding and dilation that fit the image."""
    least = min(x.shape[1:])
    kernel = body.choose(
        1, *([3] if least > 0 else []), *([2] if least > 1 else []), *([(3, 1)] if least > 2 else [])
    )
    settings: dict[str, Any] = {"kernel_size": kernel}
    if kernel == 3 and least < 3:
        return settings | {"padding": 1, "stride": body.choose(1, 2)}
    if kernel == 3 and least > 4:
        settings["dilation"] = body.choose(1, 2)
    padding = body.choose(0, 1, "valid", *(["same"] if kernel != 2 else []))  # torch warns of an even kernel
    return settings | {"padding": padding} | ({"stride": body.choose(1, 2)} if padding != "same" else {})


def _keywords(settings: dict[str, Any]) -> str:
    neutral = {"padding": 0, "stride": 1, "dilation": 1}
    return "".join(f", {name}={value!r}" for name, value in settings.items() if neutral.get(name) != value)


def transposed(body: Body, x: Value) -> None:
    """Apply a transposed convolution."""
    groups, out = _groups(body, x.shape[0])
    kernel, stride = body.choose((1, 1), (2, 2), (3, 2), (3, 1))
    settings: dict[str, Any] = {"stride": stride}
    if kernel == 3:
        settings |= {"padding": 1, "output_padding": body.choose(0, stride - 1)}
    if out * x.shape[1] * x.shape[2] * stride**2 > LARGEST:
        out = groups
    settings |= {"groups": groups, "bias": body.choose(True, False)}
    if body.choose("module", "module", "function") == "module":
        body.call("up", f"nn.ConvTranspose2d({x.shape[0]}, {out}, {kernel}{_keywords(settings)})", x)
        return
    offset = body.parameter("bias", out) if settings.pop("bias") else None
    weight = body.parameter("weight", x.shape[0], out // groups, kernel, kernel)
    body.own(f"F.conv_transpose2d({x.name}, {weight}, {offset}{_keywords(settings)})")


def borrow(body: Body, x: Value) -> None:
    """Use the weight of another convolution, the way it was used or the other way round."""
    ways = [f"F.conv2d({x.name}, {weight}, padding=1)" for weight in _kernels(body, x, 1)]
    ways += [f"F.conv_transpose2d({x.name}, {weight})" for weight in _kernels(body, x, 0)]
    body.own(body.choose(*ways))


def _kernels(body: Body, x: Value, axis: int) -> list[str]:
    return body.weights(lambda shape: len(shape) == 4 and shape[axis] == x.shape[0] and max(shape) < 9)


def block(body: Body, x: Value) -> None:
    """Apply convolution, batch norm and activation as one Sequential, perhaps around a residual."""
    channels, residual = x.shape[0], body.choose(False, True)
    out = channels if residual else body.choose(4, 2, 6)
    convolution = f"nn.Conv2d({channels}, {out}, {body.choose('1', '3, padding=1')}{body.choose('', ', bias=False')})"
    ends = (", nn.ReLU()", "", ", nn.ReLU(inplace=True)", ", nn.Dropout(0.2)")
    sequential = f"nn.Sequential({convolution}, nn.BatchNorm2d({out}){body.choose(*ends)})"
    body.call("block", f"Residual({sequential})" if residual else sequential, x)


def gate(body: Body, x: Value) -> None:
    """Apply a squeeze-and-excite gate."""
    body.call("gate", f"Gate({x.shape[0]}, {body.choose(1, 2, 3)})", x)


def shuffle(body: Body, x: Value) -> None:
    """Mix the channels of two halves, as ShuffleNet does."""
    channels, height, width = x.shape
    size = body.choose(f"{x.name}.shape[0]", f"{x.name}.size(0)", "-1")
    halves = body.line(f"{x.name}.reshape({size}, 2, {channels // 2}, {height}, {width})")
    ends = (".flatten(1, 2)", f".reshape({size}, {channels}, {height}, {width})")
    body.line(f"{halves.name}.transpose(1, 2){body.choose(*ends)}")
    body.forget(halves)


def volume(body: Body, x: Value) -> None:
    """Apply a layer for volumes to the image as a volume of depth one."""
    kind, made = body.choose(
        ("conv", f"nn.Conv3d({x.shape[0]}, 4, (1, 3, 3), padding=(0, 1, 1))"),
        ("up", f"nn.ConvTranspose3d({x.shape[0]}, 2, 1)"),
        ("pool", "nn.MaxPool3d(1)"),
        ("pool", "nn.AvgPool3d(1)"),
        ("pool", "nn.AdaptiveAvgPool3d((1, 2, 2))"),
        ("norm", f"nn.BatchNorm3d({x.shape[0]})"),
    )
    body.line(f"{body.part(kind, made)}({x.name}.unsqueeze(2)).squeeze(2)")


def batch_norm(body: Body, x: Value) -> None:
    """Normalize with statistics of the model itself, as the mode says."""
    mean = body.part("mean", f"nn.Buffer(torch.zeros({x.shape[0]}))")
    variance = body.part("variance", f"nn.Buffer(torch.ones({x.shape[0]}))")
    mode = body.choose("training=self.training", "momentum=0.2, training=self.training", "None, None, self.training")
    body.line(f"F.batch_norm({x.name}, {mean}, {variance}, {mode})")


IMAGES = (
    Row(conv2d, often=6),
    Row(block, often=2),
    Row(linear),
    Row(spellings(*NORMS), often=2),
    Row(batch_norm),
    Row(spellings(*POOLS), lambda body, x: min(x.shape[1:]) > 1),
    Row(spellings(*PADDED_POOLS)),
    Row(spellings(*FEATURES)),
    Row(spellings(*TOKENS)),
    Row(spellings(*RESHAPED), lambda body, x: x.size < LARGEST // 4),
    Row(spellings(*INSTANCE_NORMS), lambda body, x: x.shape[1] * x.shape[2] > 1),
    Row(spellings(*DROPOUTS)),
    Row(spellings("nn.PixelShuffle(2)", "F.pixel_shuffle({x}, 2)"), lambda body, x: x.shape[0] % 4 == 0),
    Row(spellings("nn.PixelUnshuffle(2)"), lambda body, x: x.shape[1] % 2 == x.shape[2] % 2 == 0),
    Row(spellings(*UPSAMPLED), lambda body, x: 4 * x.size <= LARGEST),
    Row(transposed, lambda body, x: 4 * x.size <= LARGEST, often=2),
    Row(borrow, lambda body, x: x.size < LARGEST // 4 and (_kernels(body, x, 0) or _kernels(body, x, 1))),
    Row(gate),
    Row(shuffle, lambda body, x: x.shape[0] % 2 == 0),
    Row(volume),
)
