"""Captures of a whole model by `symbolic` and `export`: its code is gone, so hooks and calls that need it say so."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm

from fxcompress.errors import CaptureError
from fxcompress.graph import capture, text
from tests.graph.same import model_of

WHOLE = pytest.mark.parametrize("way", ["symbolic", "export"])
X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
FORWARD_HOOKS = ("register_forward_hook", "register_forward_pre_hook")
HOOKS = (
    *FORWARD_HOOKS,
    *("register_full_backward_hook", "register_full_backward_pre_hook", "register_backward_hook"),
)
ISLANDS = 'capture the model with way="islands" (in a policy: capture: islands)'
REFUSED = (
    "a hook on 'layer1' (Sequential) would never run: this graph computes what it did and does not call it; hook the "
    f"graph itself or a module that it calls, such as a batch norm, or {ISLANDS}"
)


def net():
    layer1 = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
    return model_of(lambda self, x: self.fc(self.layer1(x)), layer1=layer1, fc=nn.Linear(4, 2))


@WHOLE
@pytest.mark.parametrize("register", HOOKS)
def test_a_hook_on_a_module_that_the_graph_does_not_call_is_refused(way, register, refused):
    gm = capture(net(), X, way=way)
    for one in (gm, copy.deepcopy(gm), capture(gm), copy.deepcopy(gm).double()):
        with refused(CaptureError, REFUSED):
            getattr(one.get_submodule("layer1"), register)(lambda *args: None)


@WHOLE
def test_a_module_whose_code_is_gone_cannot_be_called(way, refused):
    message = (
        "'layer1.0' (Linear) cannot be called: this graph computes what it did and left it nothing but its state; "
        f"call the whole graph or the original model, or {ISLANDS}"
    )
    gm = capture(net(), X, way=way)
    with refused(CaptureError, message):
        gm.get_submodule("layer1.0")(X)


@WHOLE
@pytest.mark.parametrize("path", ["", "layer1.1"])
@pytest.mark.parametrize("register", HOOKS[:-1])
def test_other_hooks_run(way, path, register):
    gm, seen = capture(net(), X, way=way), []
    getattr(gm.get_submodule(path), register)(lambda *args: seen.append(len(args)))
    for count, one in enumerate((gm, copy.deepcopy(gm)), start=1):
        one(X.clone().requires_grad_()).sum().backward()
        assert len(seen) == count


def test_islands_keep_hooks():
    gm, seen = capture(net(), X, way="islands"), []
    gm.layer1.register_forward_hook(lambda *args: seen.append(1))
    gm(X)
    assert seen == [1]


@WHOLE
def test_parametrizations_of_a_captured_model(way):
    gm, model = capture(net(), X, way=way), net()
    model.load_state_dict(gm.state_dict())
    for one in (gm, model):
        parametrize.register_parametrization(one.get_submodule("layer1.0"), "weight", nn.Tanh())
    torch.testing.assert_close(gm(X), model(X), rtol=0, atol=0)
    compiled = torch.compile(copy.deepcopy(gm), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X), model(X), rtol=0, atol=0)


def rename(module, state_dict, *args):
    if "layer1.0.weight" in state_dict:
        state_dict["renamed"] = state_dict.pop("layer1.0.weight")


def look(*args):
    pass


STATE_HOOKS = {
    "_register_state_dict_hook": look,
    "register_state_dict_post_hook": rename,
    "register_state_dict_pre_hook": look,
    "register_load_state_dict_pre_hook": look,
    "register_load_state_dict_post_hook": look,
}


@WHOLE
@pytest.mark.parametrize("path", ["", "layer1"])
@pytest.mark.parametrize("register", STATE_HOOKS)
def test_hooks_on_a_state_dict_are_refused(way, path, register, refused):
    model, hook = net(), STATE_HOOKS[register]
    getattr(model.get_submodule(path), register)(hook)
    message = (
        f"{path or 'the model'} has a hook on its state dict, {hook.__name__}, which a graph cannot keep; remove it "
        f"before with the handle that registered it, or {ISLANDS}"
    )
    with refused(CaptureError, message):
        capture(model, X, way=way)


@pytest.mark.parametrize("path", ["", "layer1", "layer1.1"])
def test_islands_keep_hooks_on_a_state_dict(path):
    model = net()
    model.get_submodule(path).register_state_dict_post_hook(rename)
    assert list(capture(model, X, way="islands").state_dict()) == list(model.state_dict())


@WHOLE
def test_a_module_that_the_graph_calls_keeps_its_hooks_on_a_state_dict(way):
    model = net()
    model.layer1[1].register_state_dict_post_hook(rename)
    assert list(capture(model, X, way=way).state_dict()) == list(model.state_dict())


@WHOLE
def test_weights_under_older_names_are_loaded(way):
    def modernize(state_dict, prefix, *args):
        state_dict[f"{prefix}0.weight"] = state_dict.pop(f"{prefix}first.weight")

    model = net()
    model.layer1._register_load_state_dict_pre_hook(modernize)
    gm = capture(model, X, way=way)
    state = model.state_dict()
    older = {name.replace("layer1.0.weight", "layer1.first.weight"): value * 2 for name, value in state.items()}
    for one in (gm, copy.deepcopy(gm)):
        one.load_state_dict(older)
        assert torch.equal(one.get_parameter("layer1.0.weight"), state["layer1.0.weight"] * 2)


@WHOLE
def test_weights_of_an_older_torch_are_loaded(way):
    model = model_of(lambda self, x: self.fc(x), fc=parametrizations.weight_norm(nn.Linear(4, 2)))
    gm = capture(model, X, way=way)
    weights = model.fc.parametrizations.weight
    older = {"fc.bias": model.fc.bias, "fc.weight_g": weights.original0 * 2, "fc.weight_v": weights.original1}
    for one in (gm, copy.deepcopy(gm), model):
        one.load_state_dict(older)
    torch.testing.assert_close(gm(X), model(X), rtol=0, atol=0)


@WHOLE
def test_hooks_of_an_older_spectral_norm_are_kept(way):
    model = nn.Sequential(spectral_norm(nn.Linear(4, 4))).eval()
    with pytest.warns(UserWarning, match="asks for its mode"):
        gm = capture(model, X, way=way)
    assert gm.state_dict()._metadata["0"] == model.state_dict()._metadata["0"]


@WHOLE
def test_split_by_keyword(way):
    def forward(self, x):
        first, second = torch.split(self.fc(x), split_size_or_sections=2, dim=1)
        third, fourth = torch.split(tensor=x, split_size_or_sections=[1, 3], dim=1)
        return torch.cat((first + second, third, fourth), 1)

    found = text(capture(model_of(forward, fc=nn.Linear(4, 4)), X, way=way))
    assert "split = split(fc, 2, 1)" in found
    assert "split_1 = split(x, (1, 3), 1)" in found


def images(batch):
    return torch.randn(batch, 3, 8, 8)


def tokens(batch):
    return torch.randn(batch, 5, 4)


CONVOLUTIONS = nn.Sequential(
    *(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
)
ENCODER = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2)
RECURRENT = model_of(
    lambda self, x: self.fc(self.lstm(x)[0]), lstm=nn.LSTM(4, 3, 2, batch_first=True), fc=nn.Linear(3, 2)
)
BATCHES = {
    "convolutions": (CONVOLUTIONS, images),
    "encoder": (ENCODER, tokens),
    "lstm": (RECURRENT, tokens),
    "view": (model_of(lambda self, x: self.fc(x).view(x.size(0), -1).squeeze(), fc=nn.Linear(4, 1)), tokens),
}


@pytest.mark.parametrize("example", [1, 2, 3])
@pytest.mark.parametrize("name", BATCHES)
def test_an_exported_graph_takes_any_batch(name, example):
    model, inputs = BATCHES[name]
    gm = capture(model.eval(), inputs(example), way="export")
    for batch in (1, 2, 5):
        x = inputs(batch)
        torch.testing.assert_close(gm(x), model(x), rtol=0, atol=0)


def tells_one(self, x):
    x = self.fc(x)
    return x * 2 if x.shape[0] == 1 else x - x.mean(0)


def counts(self, x):
    x = self.fc(x)
    return x / len(x)


@pytest.mark.parametrize("forward", [tells_one, counts])
def test_a_batch_of_one_that_takes_another_path_is_refused(forward):
    model = model_of(forward, fc=nn.Linear(4, 4))
    for example, other in ((torch.randn(1, 4), X), (X, torch.randn(1, 4))):
        gm = capture(model, example, way="export")
        torch.testing.assert_close(gm(example), model(example), rtol=0, atol=0)
        with pytest.raises(
            CaptureError, match=f"^axis 0 of x has {len(other)} entries where the captured graph takes"
        ):
            gm(other)
