"""Models and calls at the edge of what is captured: they work in every way, or the error says what to do instead."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, remove_weight_norm, spectral_norm, weight_norm

import fxcompress
from fxcompress.errors import CaptureError
from fxcompress.graph import capture
from fxcompress.graph.coverage import coverage
from tests.graph.same import model_of, same

WAYS = ("symbolic", "export", "islands")
EVERY_WAY = pytest.mark.parametrize("way", WAYS)
OLD_NORM = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


def scaled(self, x, *more, scale=None):
    for one in more:
        x = x + one
    x = self.fc(x)
    return x if scale is None else x * scale


def masked(self, x, *more, mask=None, **others):
    for one in (*more, *others.values()):
        x = x + one
    return self.fc(x) if mask is None else self.fc(x) * mask


PLAIN, NAMED = (torch.ones(2, 8), torch.ones(2, 8)), {"x": torch.ones(2, 8)}


@pytest.mark.parametrize(
    ("forward", "inputs"),
    [
        (scaled, PLAIN),
        (scaled, NAMED | {"scale": torch.ones(2, 8)}),
        (masked, PLAIN),
        (masked, NAMED | {"mask": torch.ones(2, 8), "another": torch.ones(2, 8)}),
    ],
)
@pytest.mark.parametrize("way", ["export", "islands"])
def test_arguments_behind_any_number_of_others(forward, inputs, way):
    model = model_of(forward, fc=nn.Linear(8, 8))
    small = fxcompress.transform(model, "w8a8", data=[(inputs, 0)], example_inputs=inputs, capture=way)
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    torch.testing.assert_close(small(*args, **kwargs), model(*args, **kwargs), rtol=0.1, atol=0.1)


def lazy_norm():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.LazyBatchNorm2d())


def lazy():
    return nn.Sequential(
        nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(affine=False), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(4)
    )


@pytest.mark.parametrize("make", [lazy_norm, lazy])
@pytest.mark.parametrize("copied", [True, False])
@EVERY_WAY
def test_lazy_modules(make, copied, way):
    model, x = make(), torch.randn(2, 3, 6, 6)
    gm = capture(model, x, way=way, copy=copied)
    assert any(isinstance(buffer, nn.UninitializedBuffer) for buffer in model.buffers()) == copied
    assert all(torch.equal(value, torch.zeros_like(value)) for name, value in gm.named_buffers() if "mean" in name)
    model.load_state_dict(gm.state_dict())
    assert torch.equal(gm.eval()(x), model.eval()(x))
    torch.testing.assert_close(gm.train()(x), model.train()(x))


@pytest.mark.parametrize("copied", [True, False])
def test_lazy_modules_without_inputs(copied):
    with pytest.raises(CaptureError, match=r"^the shapes of '1' \(LazyBatchNorm2d\).* pass example_inputs=\.\.\.$"):
        capture(lazy_norm(), copy=copied)


def test_the_first_run_of_lazy_modules_leaves_the_rest_as_it_is():
    def forward(self, x):
        self.runs.add_(1)
        self.count = self.count + 1
        return self.fc(x) * self.runs

    model = model_of(forward, fc=nn.LazyLinear(4), runs=torch.zeros(()))
    model.count = 0
    gm = capture(model, torch.ones(2, 3), way="islands")
    assert (gm.runs.item(), gm.count) == (0, 0)


@OLD_NORM
@pytest.mark.parametrize("inside", [False, True])
@EVERY_WAY
def test_the_old_weight_norm(inside, way):
    normed = weight_norm(nn.Linear(4, 4))
    part = nn.Sequential(normed, nn.ReLU()) if inside else normed
    model, x = model_of(lambda self, x: self.last(self.part(x)), part=part, last=nn.Linear(4, 4)), torch.randn(2, 4)
    if way == "islands" and not inside:
        with pytest.raises(
            CaptureError, match=r"hook .*\.weight_norm sets 'weight' of 'part'.*\.parametrizations\.we"
        ):
            capture(model, x, way=way)
        remove_weight_norm(normed)
        parametrizations.weight_norm(normed)
    gm = same(model, x, way=way)
    with torch.no_grad():
        for part in (gm, model):
            next(value for name, value in part.named_parameters() if name.endswith(("_g", "original0"))).mul_(3)
    assert torch.equal(gm(x), model(x))


@OLD_NORM
def test_the_old_weight_norm_without_a_copy():
    model = model_of(lambda self, x: self.fc(x), fc=weight_norm(nn.Linear(4, 4)))
    gm = capture(model, torch.ones(2, 4), copy=False)
    assert gm.fc.weight_g is model.fc.weight_g
    assert model.fc.weight.grad_fn is not None


@pytest.mark.filterwarnings("ignore:.* asks for its mode at .*spectral_norm:UserWarning")
def test_the_old_spectral_norm_in_islands():
    model = model_of(lambda self, x: self.fc(x), fc=spectral_norm(nn.Linear(4, 4)))
    same(model, torch.randn(2, 4), way="symbolic")
    with pytest.raises(
        CaptureError, match=r"spectral_norm sets 'weight' of 'fc'.* torch\.nn\.utils\.remove_spectral"
    ):
        capture(model, torch.ones(2, 4), way="islands")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.parametrize("way", ["auto", *WAYS])
def test_nested_tensors(layout, way):
    def inside(self, x):
        nested = torch.nested.nested_tensor(list(x.unbind()), layout=layout)
        return torch.nested.to_padded_tensor(self.fc(nested), 0.0)

    def returned(self, x):
        return torch.nested.nested_tensor(list(self.fc(x).unbind()), layout=layout)

    with pytest.raises(CaptureError, match=r"^Model makes a nested tensor and uses it at .*test_refusals.* pad the"):
        capture(model_of(inside, fc=nn.Linear(8, 8)), torch.ones(2, 3, 8), way=way)
    with pytest.raises(CaptureError, match=r"^Model returns a nested tensor, which no graph can follow; pad the"):
        capture(model_of(returned, fc=nn.Linear(8, 8)), torch.ones(2, 3, 8), way=way)


def test_a_model_with_a_nested_tensor_that_does_not_run():
    def forward(self, x):
        return self.fc(torch.nested.nested_tensor(list(x.unbind()))).nothing

    with pytest.raises(CaptureError, match=r"^Model does not run on the example inputs: "):
        capture(model_of(forward, fc=nn.Linear(8, 8)), torch.ones(2, 3, 8))


def branches(self, x):
    if x.sum() > 1e9:
        return x
    x = torch.cond(x.sum() > 0, self.held[0], self.other, (x,))
    return self.norm(self.fc(x) * self.scale) + torch.nn.functional.linear(x, self.held[1].weight)


def test_parts_of_islands_that_never_run():
    parts = {
        "held": nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)]),
        "norm": nn.LayerNorm(8),
        "fc": nn.Linear(8, 8),
    }
    unused = {"unused": nn.Linear(3, 3), "deep": nn.Sequential(nn.LayerNorm(3))}
    model = model_of(branches, **parts, **unused, other=nn.Linear(8, 8), scale=nn.Parameter(torch.ones(8)))
    gm = capture(model, torch.ones(2, 8), way="islands")
    unseen = {one.name: one for one in coverage(gm).unseen}
    for name in ("unused", "deep.0", "other"):
        assert unseen[name].reason == "nothing that the model computes reads its parameters on the example inputs"
        assert (unseen[name].place, unseen[name].macs) == ("", 0)
        assert unseen[name].advice == "nothing: it has no part in the result"
    for name in {"", "held.0", "held.1"} & unseen.keys():
        assert unseen[name].reason == "its own Python runs, between the graphs"


def test_inputs_on_which_the_model_does_not_run():
    model = model_of(lambda self, x: self.part(x), part=nn.Sequential(nn.ReLU(), nn.Linear(4, 8)))
    line = model.forward.__code__.co_firstlineno
    with pytest.raises(CaptureError) as caught:
        capture(model, torch.ones(2, 8))
    place = f"{__file__}:{line}"
    assert str(caught.value).startswith("Model does not run on the example inputs: mat1 and mat2 shapes cannot be")
    assert str(caught.value).endswith(f", in module 'part.1', at {place} ({caught.value.line})")
    assert caught.value.place == place


def test_what_only_a_run_can_follow_asks_for_inputs():
    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x

    hint = r"control flow; pass example_inputs=\.\.\. to have the other ways \(export, islands\) tried$"
    model = model_of(forward, fc=nn.Linear(8, 8))
    for refused in (capture, lambda model: fxcompress.plan(model, "w8")):
        with pytest.raises(CaptureError, match=hint):
            refused(model)
    assert coverage(capture(model, torch.ones(2, 8))).way == "islands"


@EVERY_WAY
def test_a_captured_graph_in_another_way(way):
    gm = capture(nn.Sequential(nn.Linear(8, 8)), torch.ones(2, 8), way=way)
    other = next(one for one in WAYS if one != way)
    with pytest.raises(CaptureError, match=rf" was captured by {way} .*capture the original model by {other}"):
        capture(gm, torch.ones(2, 8), way=other)
    for same_way in ("auto", way):
        assert coverage(capture(gm, torch.ones(2, 8), way=same_way)).way == way
