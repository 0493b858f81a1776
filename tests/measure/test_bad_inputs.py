"""Degenerate weights and data through `transform`, for each observer, form and tuning step: defined, or refused."""

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.errors import NotReadyError

OBSERVERS = ["minmax", {"moving_average": {"momentum": 0.9}}, "percentile", "entropy", "mse", "aciq",
             {"aciq": {"prior": "gauss"}}]  # fmt: skip
FORMS = [
    {"bits": 8},
    {"bits": 4, "symmetric": False},
    {"bits": 16, "per": "tensor"},
    {"bits": 4, "power_of_two": True},
    {"bits": 4, "per": "group", "group_size": 5},
    {"bits": "binary"},
    {"bits": "ternary"},
    {"bits": 4, "codebook": "apot"},
    {"bits": 4, "codebook": "kmeans"},
    {"bits": "e4m3"},
    {"bits": "e5m2"},
    {"bits": 4, "allocate": True},
]
TUNING = [
    "bias_correction",
    {"bias_correction": {"statistics": "batch_norm"}},
    {"ada_round": {"iterations": 5}},
    {"block_reconstruction": {"iterations": 5}},
    "gptq",
    "smooth_quant",
]
SPLIT = {"kind": "split_channels", "rules": [{"ratio": 0.5}]}
WEIGHTS = {
    "constant": lambda w: torch.full_like(w, 0.5),
    "zero": torch.zeros_like,
    "a channel of zeros": lambda w: w * torch.tensor([0.0, 1, 1, 1]).view(-1, 1, 1, 1),
    "denormal": lambda w: w * 1e-42,
    "outlier": lambda w: w.index_put((torch.tensor(0),) * 4, torch.tensor(1e30)),
}


def images(value=None):
    """Return a batch, the first number of it replaced."""
    x = torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    if value is not None:
        x[0, 0, 0, 0] = value
    return x


DATA = {
    "constant": torch.full((8, 2, 5, 5), 0.7),
    "zero": torch.zeros(8, 2, 5, 5),
    "denormal": images() * 1e-42,
    "outlier": images(1e30),
    "one sample": images()[:1],
}


class Branches(nn.Module):
    """Layers beside one another, each with an input of its own to be quantized."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return torch.stack([layer(x.clone()) for layer in self.layers])


def branches(count, weight=lambda w: w):
    """Return convolutions that differ in nothing but the random part of the weight that `weight` changes."""
    torch.manual_seed(0)
    model = Branches(nn.Conv2d(2, 4, 3) for _ in range(count))
    with torch.no_grad():
        for layer in model.layers:
            layer.weight.copy_(weight(layer.weight))
    return model


def each(model, x, specs):
    """Compress with one specification of weight and input for each layer; assert that all branches are finite."""
    rules = [{"select": {"names": [f"layers.{index}"]}, **spec} for index, spec in enumerate(specs)]
    small = fxcompress.transform(model, quantizing(*rules), data=[x])
    normal = torch.randn_like(x)
    for branch, spec in zip(small(normal), specs, strict=True):
        assert branch.isfinite().all(), spec
    return small


def quantizing(*rules, tune=(), steps=()):
    return {"version": 1, "steps": [*steps, {"kind": "quantize", "rules": list(rules)}], "tune": list(tune)}


def observed(observer):
    """Return the words for a weight and an input that this observer serves; a weight has no moving average."""
    own = {} if "moving_average" in observer else {"observer": observer}
    return {"weight": {"bits": 4, **own}, "input": {"bits": 8, "observer": observer}}


EACH_OBSERVER = [observed(observer) for observer in OBSERVERS]
EACH_FORM = [{"weight": form, "input": {"bits": 8}} for form in FORMS]


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("specs", [EACH_OBSERVER, EACH_FORM], ids=["observers", "forms"])
def test_weights(kind, specs):
    each(branches(len(specs), WEIGHTS[kind]), images(), specs)


@pytest.mark.parametrize("kind", DATA)
def test_data(kind):
    each(branches(len(OBSERVERS)), DATA[kind], EACH_OBSERVER)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("specs", [EACH_OBSERVER, EACH_FORM], ids=["observers", "forms"])
def test_half_precision(dtype, specs):
    small = each(branches(len(specs)).to(dtype), images().to(dtype), specs)
    assert small(images().to(dtype)).dtype is dtype


def test_a_constant_weight_stays_what_it_is():
    model = branches(len(FORMS), WEIGHTS["constant"])
    small = each(model, images(), EACH_FORM)
    for index, form in enumerate(FORMS):
        weight = model.layers[index].weight
        largest = 7 / 8 if "power_of_two" in form else 1  # 4 bits end before a scale that is a power of two
        rounded = small.get_submodule(f"layers.{index}.weight_quantizer")(weight)
        torch.testing.assert_close(rounded, weight * largest, rtol=1e-6, atol=0, msg=str(form))


def test_a_channel_of_zeros_stays_zero():
    model = branches(len(FORMS), WEIGHTS["a channel of zeros"])
    small = each(model, images(), EACH_FORM)
    for index, form in enumerate(FORMS):
        rounded = small.get_submodule(f"layers.{index}.weight_quantizer")(model.layers[index].weight)
        assert rounded[0].eq(0).all(), form
        assert rounded[1].ne(0).any(), form


@pytest.mark.parametrize("observer", OBSERVERS, ids=str)
def test_a_single_value(observer):
    model = Branches(nn.Linear(1, 1, bias=False) for _ in FORMS)
    for layer in model.layers:
        nn.init.constant_(layer.weight, 2.0)
    x = torch.tensor([[0.3]])
    small = each(model, x, [{"weight": form, "input": {"bits": 8, "observer": observer}} for form in FORMS])
    for found, form in zip(small(x).flatten().tolist(), FORMS, strict=True):
        assert found == pytest.approx(0.6 * (7 / 8 if "power_of_two" in form else 1), rel=1e-5), form


def net(weight=lambda w: w):
    """Return a convolution, a batch norm and linear layers behind a layer norm; `weight` changes the first weight."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()),
        *(nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 4)),
    )
    with torch.no_grad():
        model[0].weight.copy_(weight(model[0].weight))
    return model.eval()


def compressed(model, x, rule=None, tune=(), steps=(), **given):
    rule = rule or {"weight": {"bits": 4}, "input": {"bits": 8}}
    policy = quantizing(rule, tune=tune, steps=["fold_batch_norm", *steps])
    return fxcompress.transform(model, policy, data=[x], **given)


@pytest.mark.parametrize("tune", TUNING, ids=str)
@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.filterwarnings("ignore:bias_correction", "ignore:smooth_quant")  # they tell of layers that are left
def test_degenerate_channels_for_each_tuning_step(dead, tune):
    """A channel is zero, one is denormal, one gets below the ReLU for all images, or no channel gets above it."""
    model = net(lambda w: w * torch.tensor([0.0, 1e-42, 1, 1]).view(-1, 1, 1, 1))
    with torch.no_grad():
        model[1].bias[slice(None) if dead else slice(2, 3)] = -100
        assert model[:3](images()).ne(0).any() != dead
    small = compressed(model, images(), tune=[tune])
    assert all(tensor.isfinite().all() for tensor in small.state_dict().values())
    assert small(images()).isfinite().all()


@pytest.mark.parametrize("kind", WEIGHTS.keys() - {"outlier"})
@pytest.mark.parametrize("step", ["equalize", SPLIT], ids=str)
def test_weights_for_steps_that_rewrite_them(kind, step):
    small = compressed(net(WEIGHTS[kind]), images(), steps=[step])
    assert small(images()).isfinite().all()


@pytest.mark.parametrize("step", ["equalize", SPLIT], ids=str)
def test_an_outlier_for_steps_that_rewrite_weights(step):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = 1e30
    assert compressed(model, images(), {"weight": {"bits": 4}}, steps=[step])(images()).isfinite().all()


def test_equalizing_what_holds_nothing():
    """A pair without a channel that both use is left as it is."""
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 3))
    nn.init.zeros_(model[0].weight)
    small = compressed(model, torch.randn(4, 3), {"weight": {"bits": 8}}, steps=["equalize"])
    assert torch.equal(small.get_parameter("2.weight"), model[2].weight)


@pytest.mark.parametrize(
    ("observer", "value"),
    [*((one, torch.nan) for one in OBSERVERS), ("minmax", torch.inf), ("minmax", -torch.inf)],
    ids=str,
)
def test_nan_and_infinity_in_data(observer, value):
    model = nn.Conv2d(2, 1, 1)
    with pytest.raises(NotReadyError, match=r"^calibration batch 1: the input of 'weight' holds NaN or infinity$"):
        fxcompress.transform(model, quantizing(observed(observer)), data=[images(), images(value)])


@pytest.mark.parametrize(("form", "value"), [*((one, torch.nan) for one in FORMS), ({"bits": 8}, torch.inf)], ids=str)
def test_nan_and_infinity_in_weights(form, value):
    model = Branches([nn.Linear(3, 2)])
    with torch.no_grad():
        model.layers[0].weight[1, 1] = value
    with pytest.raises(NotReadyError, match=r"^the weight of 'layers\.0' holds NaN or infinity$"):
        fxcompress.transform(model, quantizing({"weight": form}))


@pytest.mark.parametrize("step", ["equalize", SPLIT], ids=str)
def test_nan_in_weights_that_a_step_rewrites(step):
    model = net(lambda w: w * torch.tensor([torch.nan, 1, 1, 1]).view(-1, 1, 1, 1))
    with pytest.raises(NotReadyError, match=r"^the weight of '[03]' holds NaN or infinity$"):
        compressed(model, images(), steps=[step])


def test_what_overflows_inside_the_model_is_named():
    with pytest.raises(NotReadyError, match=r"^calibration batch 0: the input of '7' holds NaN or infinity$"):
        compressed(net(), images(1e30))  # a layer norm squares it
    with pytest.raises(NotReadyError, match=r"^calibration batch 0: the input of '3' holds NaN or infinity$"):
        compressed(net(lambda w: w * 3e4).half(), images().half() * 10)


@pytest.mark.parametrize("tune", TUNING, ids=str)
def test_nothing_to_calibrate_on(tune):
    wanted, given = quantizing({"input": {"bits": 8}}, tune=[tune]), {"example_inputs": images()}
    with pytest.raises(NotReadyError, match=r"^calibration needs data, but `data` yielded no batch$"):
        fxcompress.transform(net(), wanted, data=[], **given)
    with pytest.raises(NotReadyError, match=r"^calibration batch 0: the input of '0' holds no values$"):
        fxcompress.transform(net(), wanted, data=[images()[:0]], **given)


@pytest.mark.parametrize("tune", [one for one in TUNING if "bias_correction" not in one and one != "smooth_quant"])
def test_nothing_to_tune_on(tune):
    wanted = quantizing({"weight": {"bits": 4}}, tune=[tune])
    with pytest.raises(NotReadyError, match=r"^tune needs data, but `data` yielded no batch$"):
        fxcompress.transform(net(), wanted, data=[], example_inputs=images())


@pytest.mark.parametrize("form", [None, *FORMS], ids=str)
def test_what_is_too_large_for_float32(form):
    """Scales are float32; a float64 model may hold more."""
    model, x = nn.Linear(3, 2).double(), torch.ones(2, 3, dtype=torch.float64)
    if form is None:
        message, rule = "calibration batch 0: the input of 'weight' holds", {"input": {"bits": 8}}
        x[0, 0] = 1e300
    else:
        message, rule = "the weight of 'weight' holds", {"weight": form}
        model.weight.data[0, 0] = 1e300
    with pytest.raises(NotReadyError, match=f"^{message} numbers too large for float32, as scales are$"):
        fxcompress.transform(model, quantizing(rule), data=[x])
