"""bias_correction by data: on its float inputs, each layer gives on average what it gave."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import fx, nn

from fxcompress.errors import PassError
from fxcompress.graph import capture, layers, verify
from fxcompress.graph.edit import constant_value, is_constant
from fxcompress.measure.float_mode import float_mode
from fxcompress.tune.bias_correction import add_biases
from fxcompress.tune.finished import Finished
from tests.tune.correcting import batches, correct, quantized, trained


class Net(nn.Module):
    """Plain, grouped and transposed convolutions, a linear layer that is called twice, and addmm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2, bias=False)
        self.twice = nn.Linear(4, 4, bias=False)
        self.weight, self.offset = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(5))

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.relu(self.up(torch.relu(self.depthwise(x)))).mean((2, 3))
        return torch.addmm(self.offset, self.twice(torch.relu(self.twice(x))), self.weight)


class Recorder(fx.Interpreter):
    """Runs a graph and keeps what each node gives."""

    def run_node(self, n):
        self.seen = getattr(self, "seen", {})
        self.seen[n.name] = super().run_node(n)
        return self.seen[n.name]


@torch.no_grad()
def errors(gm, inputs):
    """Return for each layer the mean of what it gives on its float inputs, minus that of the float model."""
    found = {}
    for layer in layers(gm):
        operator, apart = layer.operator, []
        if operator.weight is None:
            continue
        for call in layer.calls:
            for x, exact in inputs[call.name]:
                said = [constant_value(gm, one) if is_constant(gm, one) else one for one in call.args]
                said[operator.inputs[0]] = x
                error = (operator.functions[0](*said) - exact).double().numpy()
                axis = 1 - constant_value(gm, call.args[operator.weight]).dim()
                apart.append(np.moveaxis(error, axis, 0).reshape(error.shape[axis], -1))
        if apart:
            found[layer.name] = np.concatenate(apart, 1).mean(1)
    return found


@torch.no_grad()
def float_inputs(gm):
    """Return for each layer's call what enters it and what it gives in the float model, batch by batch."""
    found = {}
    with float_mode(gm):
        for x in batches():
            recorder = Recorder(gm, garbage_collect_values=False)
            recorder.run(x)
            for layer in layers(gm):
                for call in layer.calls:
                    entering = call.args[layer.operator.inputs[0]].name
                    found.setdefault(call.name, []).append((recorder.seen[entering], recorder.seen[call.name]))
    return found


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("model", [Net(), nn.Sequential(nn.Linear(10, 6), nn.GELU(), nn.Linear(6, 4, bias=False))])
def test_each_layer_gives_on_average_what_it_gave(model, fold):
    gm = quantized(trained(model), fold=fold)
    add_biases(gm)
    inputs = float_inputs(gm)
    before, after = errors(gm, inputs), errors(correct(gm), inputs)
    for name, error in before.items():
        assert np.abs(error).max() > 1e-3
        np.testing.assert_allclose(after[name], 0, atol=5e-6)


def test_the_network_comes_nearer_to_the_float_model():
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)))
    exact, gm = capture(model), quantized(model)
    with torch.no_grad():
        before = sum((gm(x) - exact(x)).square().sum() for x in batches())
        correct(gm)
        assert sum((gm(x) - exact(x)).square().sum() for x in batches()) < 0.7 * before


@pytest.mark.parametrize("statistics", ["data", "batch_norm"])
def test_a_model_without_quantized_weights(statistics):
    with pytest.raises(PassError, match="bias_correction: there are no layers with a quantized weight"):
        correct(quantized(trained(Net()), {"input": {"bits": 8}}), statistics)


def test_finished_work_is_not_done_again(tmp_path):
    expected = correct(quantized(trained(Net())), finished=Finished(tmp_path)).state_dict()
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        *("depthwise.bias.safetensors", "norm.bias.safetensors", "offset.safetensors"),
        *("twice.bias.safetensors", "up.bias.safetensors"),
    ]
    (tmp_path / "offset.safetensors").unlink()
    again = quantized(trained(Net()))
    correct(again, finished=Finished(tmp_path))
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())


def test_what_is_kept_is_put_back(tmp_path):
    correct(quantized(trained(Net())), finished=Finished(tmp_path))
    save_file({"offset": torch.full((5,), 7.0)}, tmp_path / "offset.safetensors")
    again = correct(quantized(trained(Net())), finished=Finished(tmp_path))
    assert torch.equal(again.get_parameter("offset"), torch.full((5,), 7.0))


def test_new_biases_are_parameters_that_a_fresh_model_gets_alike():
    corrected, fresh = correct(quantized(trained(Net()))), quantized(trained(Net()))
    before = fresh(batches()[0])
    names = {"depthwise.bias", "up.bias", "twice.bias"}
    assert dict(corrected.named_parameters()).keys() - dict(fresh.named_parameters()).keys() == names
    add_biases(fresh)
    verify(fresh)
    assert torch.equal(fresh(batches()[0]), before)
    assert fresh.load_state_dict(corrected.state_dict()).missing_keys == []
    assert torch.equal(fresh(batches()[0]), corrected(batches()[0]))
    add_biases(fresh)
    assert fresh.state_dict().keys() == corrected.state_dict().keys()


class Unnamed(nn.Module):
    """A weight and a bias that do not meet in one operator."""

    def __init__(self, **taken):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 10)), nn.Parameter(torch.randn(4))
        for name, value in taken.items():
            setattr(self, name, value)

    def forward(self, x):
        return nn.functional.linear(x, self.weight) + self.bias


def test_a_name_that_is_taken():
    gm = correct(quantized(trained(Unnamed())))
    assert gm.get_parameter("weight_bias").abs().max() > 0
    assert torch.equal(gm.get_parameter("bias"), trained(Unnamed()).bias)
    message = "'linear' can have no bias to correct: the model has the name 'weight_bias' already"
    with pytest.raises(PassError, match=message):
        add_biases(quantized(Unnamed(weight_bias=nn.Parameter(torch.zeros(1)))))


def test_a_norm_without_parameters_takes_the_bias_before_it():
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)))
    gm = quantized(model)
    add_biases(gm)
    inputs = float_inputs(gm)
    np.testing.assert_allclose(errors(correct(gm), inputs)["0"], 0, atol=2e-6)
    assert gm.get_parameter("0.bias").abs().max() > 0


class Ties(nn.Module):
    """Layers with one weight and two biases, layers with two weights and one bias, and one folded in two ways."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(10, 10) for _ in range(5))
        self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.two(self.conv(self.one(self.conv(x))))
        x = torch.relu(self.b(torch.relu(self.a(x)) + 0.2))
        x = torch.relu(self.d(torch.relu(self.c(x)) - 0.2))
        return self.e(x)


def tied():
    model = trained(Ties())
    model.b.weight, model.d.bias = model.a.weight, model.c.bias
    return model


def test_what_several_calls_read_is_shifted_by_the_mean_over_all_of_them():
    gm = quantized(tied())
    add_biases(gm)
    inputs = float_inputs(gm)
    before, after = errors(gm, inputs), errors(correct(gm), inputs)
    for name in ("a", "b", "e", "conv"):
        assert np.abs(before[name]).max() > 1e-3
        np.testing.assert_allclose(after[name], 0, atol=5e-6)
    assert np.abs(before["c"] + before["d"]).max() > 1e-3
    np.testing.assert_allclose(after["c"] + after["d"], 0, atol=5e-6)


def test_a_bias_that_serves_a_layer_in_float_is_left():
    gm = quantized(tied(), {"select": {"names": ["a", "c"]}, "weight": {"bits": 3}})
    with pytest.warns(
        UserWarning, match=r"1 of 3 layers .* cannot be corrected \(the first is 'c'\): they lack a bias"
    ):
        correct(gm)
    assert torch.equal(gm.get_parameter("c.bias"), tied().c.bias)


def test_a_tied_bias_is_shifted_by_the_mean_of_what_norms_tell():
    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
            self.a, self.b = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x):
            x = torch.relu(self.norm(self.conv(x)))
            return self.a(x), self.b(x)

    shifts = []
    for tie in (False, True):
        model = trained(Told())
        if tie:
            model.b.bias = model.a.bias
        with pytest.warns(UserWarning, match="cannot be corrected"):
            gm = correct(quantized(model), "batch_norm")
        shifts.append(
            [
                (layer.bias - original.bias).detach()
                for layer, original in zip((gm.a, gm.b), (model.a, model.b), strict=True)
            ]
        )
    (first, second), (both, _) = shifts
    assert (first - second).abs().max() > 1e-3
    torch.testing.assert_close(both, (first + second) / 2)


def test_a_computed_bias_is_left():
    class Computed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(10, 4), nn.Linear(4, 4)

        def forward(self, x):
            return nn.functional.linear(self.a(x), self.b.weight, self.b.bias * 2)

    message = (
        r"1 of 2 layers with a quantized weight cannot be corrected \(the first is 'b'\): they lack a bias of "
        r"their own; give the layer one that is not computed and that nothing else reads"
    )
    with pytest.warns(UserWarning, match=message):
        correct(quantized(trained(Computed())))
