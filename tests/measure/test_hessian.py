"""hessian_trace against Hessians known in closed form and against autograd's full Hessian."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.functional import hessian

from fxcompress.graph import capture
from fxcompress.measure.calibrate import calibrate
from fxcompress.measure.decisions import decisions
from fxcompress.measure.hessian import hessian_trace
from fxcompress.passes import apply
from fxcompress.policies import Prune, Quantize

WEIGHTS = {"weight": {"bits": (2, "float")}}
INPUTS = {"input": {"bits": (2, "float")}}
BOTH = WEIGHTS | INPUTS


def opened(model, rule, x=None):
    gm = capture(model.double())
    apply(Quantize(rules=(rule,)), gm)
    calibrate(gm, None if x is None else [x])
    return gm


def rises(gm, data, loss, **kwargs):
    """Return for each open tensor the rise of the option that rounds it and no other, with its standard error."""
    found = decisions(gm)
    alone = {}
    for decision, estimate in zip(found, hessian_trace(gm, found, data, loss, **kwargs), strict=True):
        for option, rise, error in zip(decision.options, estimate.rise, estimate.standard_error, strict=True):
            rounded = [name for name, label in option.picks.items() if label != "float"]
            if len(rounded) == 1:
                alone[rounded[0].removesuffix("_quantizer_choice")] = (rise, error)
            if not rounded:
                assert (rise, error) == (0, 0)
    return alone


def change(gm, name, tensor):
    """Return ||Q(x) - x||^2 of a tensor in 2 bits."""
    two_bits = next(iter(gm.get_submodule(f"{name}_quantizer_choice").options.values()))
    with torch.no_grad():
        return (two_bits(tensor) - tensor).square().sum().item()


def half_squares(output, target):
    return 0.5 * (output - target).square().sum(1).mean()


def test_a_quadratic_loss_is_exact():
    # L = 1/2 mean ||W x - t||^2 has the Hessian E[x x^T] for each row of W. Inputs along the axes make it diagonal,
    # and then every probe gives the trace: 3 rows x (4 + 9) / 2, over 6 elements
    model = nn.Sequential(nn.Linear(2, 3, bias=False))
    gm = opened(model, WEIGHTS)
    data = [(torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=torch.float64), torch.zeros(2, 3))]
    rise, error = rises(gm, data, half_squares, probes=4)["0.weight"]
    omega = 3 * (4 + 9) / 2 / 6 * change(gm, "0.weight", model[0].weight)
    assert 2 * rise == pytest.approx(omega, rel=1e-12)  # HAWQ-V2's Omega is without the 1/2 of the Taylor series
    assert error == pytest.approx(0, abs=1e-12)


def test_an_activation_of_a_quadratic_loss_is_exact():
    # L = 1/2 mean ||A x - t||^2 has the Hessian A^T A / 2 = diag(4, 9) / 2 for each of two samples, over 4 elements
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
    x = torch.tensor([[0.3, -1.0], [0.7, 2.0]], dtype=torch.float64)
    gm = opened(model, INPUTS, x)
    rise, error = rises(gm, [(x, torch.zeros(2, 2))], half_squares, probes=4)["input_1"]
    assert 2 * rise == pytest.approx(2 * (4 + 9) / 2 / 4 * change(gm, "input_1", x), rel=1e-12)
    assert error == pytest.approx(0, abs=1e-12)


class Net(nn.Module):
    """Two layers; what flows between them also goes past the second."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4, bias=False)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.b(h) + h


def labelled(batch=5, features=3, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, features, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, classes, (batch,), generator=generator)


def full_rises(gm, model, x, y):
    """Return Tr(H) / 2n ||Q(t) - t||^2 of the weights and of what enters the layers, from full Hessians."""

    def loss(weight_a, weight_b, x, added_to_b):
        h = torch.tanh(F.linear(x, weight_a, model.a.bias.detach()))
        return F.cross_entropy(F.linear(h + added_to_b, weight_b) + h, y)

    with torch.no_grad():
        h = torch.tanh(model.a(x))
    tensors = {"a.weight": model.a.weight.detach(), "b.weight": model.b.weight.detach(), "x": x, "tanh": h}
    point = (*list(tensors.values())[:3], torch.zeros_like(h))  # the rounding of h is added on one of its ways only
    blocks = hessian(loss, point)
    answer = {}
    for index, (name, tensor) in enumerate(tensors.items()):
        size = tensor.numel()
        average = blocks[index][index].reshape(size, size).trace().item() / size
        answer[name] = 0.5 * average * change(gm, name, tensor)
    return answer


@pytest.mark.parametrize("rule", [WEIGHTS, INPUTS, BOTH], ids=["weights", "inputs", "both"])
def test_against_the_full_hessian(rule):
    x, y = labelled()
    truth = full_rises(opened(Net(), BOTH, x), Net().double(), x, y)
    found = rises(opened(Net(), rule, x), [(x, y)], F.cross_entropy, probes=600)
    assert len(found) == (4 if rule is BOTH else 2)
    for name, (rise, error) in found.items():
        assert 0 < error < 0.2 * rise
        assert abs(rise - truth[name]) < 4 * error


def test_standard_errors_cover_the_truth_and_shrink():
    x, y = labelled()
    gm = opened(Net(), BOTH, x)
    truth = full_rises(gm, Net().double(), x, y)
    few = [rises(gm, [(x, y)], F.cross_entropy, probes=50, seed=seed) for seed in range(20)]
    many = rises(gm, [(x, y)], F.cross_entropy, probes=800)
    for name in truth:
        assert sum(abs(one[name][0] - truth[name]) < 2 * one[name][1] for one in few) >= 15  # 19 of 20 expected
        average = sum(one[name][1] for one in few) / len(few)
        assert average / many[name][1] == pytest.approx(math.sqrt(800 / 50), rel=0.3)


def test_batches_are_averaged():
    x, y = labelled(6)
    parts = list(zip(x.split(2), y.split(2), strict=True))
    truth = full_rises(opened(Net(), BOTH, x), Net().double(), x, y)
    for name, (rise, error) in rises(opened(Net(), WEIGHTS), parts, F.cross_entropy, probes=600).items():
        assert abs(rise - truth[name]) < 4 * error


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


@pytest.mark.parametrize("pruned", [False, True])
def test_a_tied_weight_is_one_tensor(pruned):
    model, (x, y) = Tied().double(), labelled(classes=3)
    gm = opened(model, WEIGHTS)
    weight = model.a.weight.detach()
    if pruned:
        apply(Prune(rules=({"sparsity": 0.5},)), gm)
        weight = weight * gm.get_submodule("a.weight_mask").mask

    def loss(weight):
        return F.cross_entropy(F.linear(torch.tanh(F.linear(x, weight)), weight), y)

    truth = 0.5 * hessian(loss, weight).reshape(9, 9).trace().item() / 9 * change(gm, "a.weight", weight)
    rise, error = rises(gm, [(x, y)], F.cross_entropy, probes=400)["a.weight"]
    assert abs(rise - truth) < 4 * error


def test_bits_and_sparsity_together():
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    gm = opened(model, WEIGHTS)
    apply(Prune(rules=({"sparsity": (0.0, 0.5)},)), gm)
    weight = model[0].weight.detach()
    found = decisions(gm)
    (estimate,) = hessian_trace(gm, found, [(torch.eye(4).double(), torch.zeros(4, 4))], half_squares, probes=2)
    masked = weight * gm.get_submodule("0.weight_mask_choice").options["50% sparse"].mask
    rounded = gm.get_submodule("0.weight_quantizer_choice").options["int2"]
    expected = {
        "dense, int2": rounded(weight),
        "dense, float": weight,
        "50% sparse, int2": rounded(masked),
        "50% sparse, float": masked,
    }
    for option, rise in zip(found[0].options, estimate.rise, strict=True):
        # E[x x^T] = I / 4 for each of 4 rows: a trace of 4 over 16 elements
        omega = 4 / 16 * (expected[option.label] - weight).square().sum().item()
        assert 2 * rise == pytest.approx(omega, rel=1e-12)


def test_a_trace_within_its_noise_is_taken_to_be_the_noise():
    x, y = labelled()
    gm = opened(Net(), WEIGHTS)

    def concave(output, target):
        return -F.cross_entropy(output, target)

    for rise, error in rises(gm, [(x, y)], concave, probes=20).values():
        assert rise == error > 0


def test_the_seed_decides():
    x, y = labelled()
    gm = opened(Net(), BOTH, x)
    first, again, other = (rises(gm, [(x, y)], F.cross_entropy, probes=3, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize(("batches", "probes", "forwards"), [(3, 7, 3), (20, 32, 8), (20, 2, 2)])
def test_all_tensors_share_the_probes(batches, probes, forwards):
    gm = opened(Net(), WEIGHTS)
    seen = []
    gm.get_submodule("a.weight_quantizer_choice").register_forward_hook(lambda *_: seen.append(1))
    rises(gm, [labelled(seed=seed) for seed in range(batches)], F.cross_entropy, probes=probes)
    assert len(seen) == forwards


def test_a_loss_without_curvature():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    data = [torch.ones(1, 2, dtype=torch.float64)]
    assert rises(opened(model, BOTH, data[0]), data, torch.sum) == {"0.weight": (0, 0), "input_1": (0, 0)}


def test_layers_that_the_loss_does_not_see():
    class Unused(Net):
        def forward(self, x):
            return self.a(x), self.b(x.sum() * torch.ones(1, 4, dtype=torch.float64))

    x, y = labelled()
    found = rises(opened(Unused(), WEIGHTS), [(x, y)], lambda output, y: F.cross_entropy(output[0], y))
    assert found["a.weight"][0] > 0
    assert found["b.weight"] == (0, 0)


def test_the_model_stays_as_it_was():
    gm = opened(Net().requires_grad_(False), WEIGHTS).train()
    before = {name: value.clone() for name, value in gm.state_dict().items()}
    with torch.no_grad():
        found = rises(gm, [labelled()], F.cross_entropy, probes=2)
    assert found["a.weight"][0] > 0
    assert all(torch.equal(value, before[name]) for name, value in gm.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in gm.parameters())
    assert gm.training
    assert not any(module._forward_hooks for module in gm.modules())


def test_attention_has_a_second_derivative():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(4, 12)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            return F.scaled_dot_product_attention(q, k, v).sum(1)

    torch.manual_seed(0)
    x = torch.randn(2, 1, 5, 4)
    gm = capture(Attention())
    apply(Quantize(rules=(WEIGHTS,)), gm)
    calibrate(gm, None)
    assert rises(gm, [(x, torch.zeros(2, 5, 4))], half_squares)["qkv.weight"][0] > 0
