"""AdaRound and block reconstruction from a policy: less error than rounding to nearest, on the grid, resumable."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxcompress.tune.ada_round as ada_round_module
from fxcompress import load, save, transform
from fxcompress.errors import NotReadyError, PassError
from fxcompress.tune.weights import float_weight, quantized_weights

STEPS = ["ada_round", "block_reconstruction"]
WAYS = ["symbolic", "export", "islands"]


def error(small, net, images):
    return sum((small(x) - net(x)).square().sum().item() for x in images)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", STEPS)
def test_the_output_comes_nearer_to_the_float_model(net, images, tuned, step, way):
    nearest = transform(net, tuned(), data=images, capture=way)
    small = transform(net, tuned({step: {"iterations": 150}}), data=images, capture=way)
    assert error(small, net, images) < 0.7 * error(nearest, net, images)


def test_ada_round_finds_the_best_rounding_of_a_small_layer():
    """One output with four weights: all 16 roundings are tried."""
    torch.manual_seed(5)
    mixed = torch.randn(4, 4)
    data = [torch.randn(64, 4) @ mixed for _ in range(4)]
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.31, -0.74, 1.0, 0.48]]))
    spec = {"bits": 3, "per": "tensor"}
    policy = {"version": 1, "steps": [{"kind": "quantize", "rules": [{"weight": spec}]}]}
    small = transform(model, policy | {"tune": [{"ada_round": {"iterations": 400}}]}, data=data)
    w, x = model.weight.detach().double().numpy()[0], torch.cat(data).double().numpy()
    scale = np.float64(1.0 / 3)
    choices = [np.clip(np.floor(w / scale) + up, -3, 3) * scale for up in itertools.product((0, 1), repeat=4)]
    best = min(choices, key=lambda one: np.square(x @ one - x @ w).sum())
    nearest = np.clip(np.round(w / scale), -3, 3) * scale
    assert not np.allclose(best, nearest)  # otherwise the test says nothing
    np.testing.assert_allclose(small.weight.detach().numpy()[0], best, rtol=1e-5)


@pytest.mark.parametrize("step", STEPS)
def test_what_comes_out_is_on_the_grid_and_at_most_one_code_from_the_weight(net, images, tuned, step):
    before = {
        one.layer.name: (one, float_weight(gm, one))
        for gm in [transform(net, tuned(), data=images)]
        for one in quantized_weights(gm)
    }
    small = transform(net, tuned({step: {"iterations": 60}}), data=images)
    for one in quantized_weights(small):
        now, (_, old) = float_weight(small, one), before[one.layer.name]
        scale = one.quantizer.layout.spread(one.quantizer.scale, now)
        torch.testing.assert_close(one.quantizer(now), now, rtol=1e-5, atol=1e-6)
        inside = old.abs() < scale * one.quantizer.high
        assert ((now - old).abs() < scale * 1.001)[inside].all()


def test_block_reconstruction_learns_the_scales_of_activations(net, images, tuned):
    nearest = transform(net, tuned(input=3), data=images)
    small = transform(
        net, tuned({"block_reconstruction": {"iterations": 20, "scale_learning_rate": 0.01}}, input=3), data=images
    )
    fixed = transform(
        net, tuned({"block_reconstruction": {"iterations": 20, "scale_learning_rate": 0}}, input=3), data=images
    )
    scales = [name for name in nearest.state_dict() if name.endswith("scale") and ".weight_" not in name]
    assert all(torch.equal(fixed.state_dict()[name], nearest.state_dict()[name]) for name in scales)
    assert not any(torch.equal(small.state_dict()[name], nearest.state_dict()[name]) for name in scales)


@pytest.mark.parametrize("step", STEPS)
def test_the_same_seed_gives_the_same_bits(net, images, tuned, step):
    first, second, other = (
        transform(net, tuned({step: {"iterations": 20, "seed": seed}}), data=images).state_dict()
        for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("step", STEPS)
def test_a_tuned_model_is_saved_and_loaded_bit_for_bit(net, images, tuned, step, tmp_path):
    small = transform(net, tuned({step: {"iterations": 10}}), data=images)
    save(small, tmp_path / "small")
    assert torch.equal(load(tmp_path / "small", net)(images[0]), small(images[0]))


def test_masked_weights_stay_zero(net, images, tuned):
    policy = tuned({"ada_round": {"iterations": 30}})
    policy["steps"].insert(1, {"kind": "prune", "rules": [{"sparsity": 0.5}]})
    small = transform(net, policy, data=images)
    for one in quantized_weights(small):
        zeros = (float_weight(small, one) == 0).float().mean()
        assert zeros >= 0.5


def test_the_original_and_the_gradients_are_left_alone(net, images, tuned):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    small = transform(net, tuned({"block_reconstruction": {"iterations": 5}}), data=images)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in (*small.parameters(), *net.parameters()))
    assert all(parameter.requires_grad for parameter in small.parameters())


def test_a_killed_run_goes_on_where_it_was(net, images, tuned, tmp_path, monkeypatch):
    policy = tuned({"ada_round": {"iterations": 10}})
    whole = transform(net, policy, data=images).state_dict()
    real, done = ada_round_module.reconstruct, []

    def counted(*args):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(args)
        real(*args)

    monkeypatch.setattr(ada_round_module, "reconstruct", counted)
    with pytest.raises(KeyboardInterrupt):
        transform(net, policy, data=images, cache=tmp_path)
    done.clear()
    monkeypatch.setattr(ada_round_module, "reconstruct", lambda *args: (done.append(args), real(*args)))
    resumed = transform(net, policy, data=images, cache=tmp_path).state_dict()
    assert len(done) == len(quantized_weights(transform(net, tuned(), data=images))) - 2
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    done.clear()
    transform(net, policy, data=images[:2], cache=tmp_path)  # other data: nothing of it is done yet
    assert len(done) == 4


def test_tuning_needs_data(net, images, tuned):
    plan = transform(net, tuned(), data=images).fxcompress_plan.plan
    tuned_plan = plan.replaced(tune=("ada_round",))
    with pytest.raises(NotReadyError, match="tune needs data: pass data=loader, any iterable of batches"):
        transform(net, tuned_plan)
    with pytest.raises(NotReadyError, match="tune needs data, but `data` yielded no batch"):
        transform(net, tuned_plan, data=[], example_inputs=images[0])


@pytest.mark.parametrize("step", STEPS)
def test_weights_without_even_steps_are_refused(step):
    model, data = nn.Linear(4, 2), [torch.randn(8, 4)]
    rules = [{"weight": {"bits": 4, "codebook": "kmeans"}}]
    policy = {"version": 1, "steps": [{"kind": "quantize", "rules": rules}], "tune": [step]}
    message = (
        rf"{step}: none of 1 quantized weights can be rounded \(the first is 'weight'\): it has no even steps "
        r"\(whole bits, no codebook\)"
    )
    with pytest.raises(PassError, match=message):
        transform(model, policy, data=data)


def test_scales_alone_are_learned_with_a_warning():
    model, data = nn.Linear(4, 2), [torch.randn(64, 4) for _ in range(2)]
    rules = [{"weight": {"bits": 4, "codebook": "kmeans"}, "input": {"bits": 2}}]
    policy = {"version": 1, "steps": [{"kind": "quantize", "rules": rules}]}
    step = {"block_reconstruction": {"iterations": 20, "scale_learning_rate": 1e-2}}
    before = transform(model, policy, data=data).state_dict()
    message = (
        r"block_reconstruction: none of 1 quantized weights can be rounded \(the first is 'weight'\): it has no even "
        r"steps \(whole bits, no codebook\); only the scales of activations are learned"
    )
    with pytest.warns(UserWarning, match=message):
        after = transform(model, policy | {"tune": [step]}, data=data).state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"input_1_quantizer.scale"}


def test_a_tied_weight_is_rounded_for_both_layers_of_a_block():
    """Four weights: all 16 roundings are tried."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
            self.a.weight = self.b.weight = nn.Parameter(torch.tensor([[0.52, -0.44], [-0.19, 0.47]]))

        def forward(self, x):
            return x + self.b(F.relu(self.a(x)))

    torch.manual_seed(1)
    torch.rand(2, 2)
    model, data = Tied(), [torch.randn(64, 2) @ torch.tensor([[1.0, 0.8], [0.0, 1.0]]) for _ in range(4)]
    steps = [{"kind": "quantize", "rules": [{"weight": {"bits": 3, "per": "tensor"}}]}]
    policy = {"version": 1, "steps": steps, "tune": [{"block_reconstruction": {"iterations": 400}}]}
    small = transform(model, policy, data=data)
    w, x = (one.detach().double().numpy() for one in (model.a.weight, torch.cat(data)))
    scale, exact = np.abs(w).max() / 3, np.maximum(x @ w.T, 0) @ w.T
    roundings = [np.reshape(up, (2, 2)) for up in itertools.product((0, 1), repeat=4)]
    choices = [np.clip(np.floor(w / scale) + up, -3, 3) * scale for up in roundings]
    best = min(choices, key=lambda one: np.square(np.maximum(x @ one.T, 0) @ one.T - exact).sum())
    assert not np.allclose(best, np.round(w / scale) * scale)  # otherwise the test says nothing
    np.testing.assert_allclose(small.a.weight.detach().numpy(), best, rtol=1e-5)
    assert torch.equal(small.a.weight, small.b.weight)


def test_a_batch_that_cannot_be_cut_is_taken_whole(images):
    """A model that folds its batch into another axis gives the same for whole batches only."""

    class Across(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(192, 4)

        def forward(self, x):
            x = x.flatten(1)
            return self.layer(x - x.mean(0))

    policy = {"version": 1, "steps": [{"kind": "quantize", "rules": [{"weight": {"bits": 3}}]}]}
    torch.manual_seed(0)
    model = Across()
    nearest = transform(model, policy, data=images)
    step = {"block_reconstruction": {"iterations": 150, "batch_size": 4}}
    small = transform(model, policy | {"tune": [step]}, data=images)
    assert error(small, model, images) < 0.7 * error(nearest, model, images)


@pytest.mark.parametrize("other", ["bits of an input", "an activation"])
def test_what_is_kept_is_for_this_graph_only(other, tmp_path):
    """Neither the form of a dynamic quantizer nor an activation is in any tensor."""
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), [torch.randn(32, 8)]
    changed = nn.Sequential(model[0], nn.Tanh() if other == "an activation" else nn.ReLU(), model[2])

    def policy(bits):
        rules = [{"weight": {"bits": 3}, "input": {"bits": bits, "dynamic": True}}]
        step = {"ada_round": {"iterations": 20}}
        return {"version": 1, "steps": [{"kind": "quantize", "rules": rules}], "tune": [step]}

    bits = 2 if other == "bits of an input" else 8
    transform(model, policy(8), data=data, cache=tmp_path)
    small = transform(changed, policy(bits), data=data, cache=tmp_path)
    fresh = transform(changed, policy(bits), data=data)
    assert torch.equal(small(data[0]), fresh(data[0]))


def test_scales_that_are_powers_of_two_stay(net, images, tuned):
    policy = tuned({"block_reconstruction": {"iterations": 20}})
    policy["steps"][1]["rules"][0]["input"]["power_of_two"] = True
    small, plain = (transform(net, policy | {"tune": tune}, data=images) for tune in (policy["tune"], []))
    scales = {name: scale for name, scale in plain.state_dict().items() if name.endswith("quantizer.scale")}
    assert all(torch.equal(small.state_dict()[name], scale) for name, scale in scales.items())
    assert not torch.equal(small.get_parameter("a.weight"), plain.get_parameter("a.weight"))
