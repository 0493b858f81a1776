"""Shells and private copies: which of a model's parts are shared with it, and which are its own."""

import copy

import pytest
import torch
from torch import nn

from fxcompress.errors import CaptureError
from fxcompress.graph import capture
from fxcompress.graph.shell import private_copy, shell, shell_around


class Net(nn.Module):
    """Tensors of every kind, a module under two names, a tied weight, plain attributes and a hook."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2)
        self.b.weight = self.a.weight
        self.again, self.nothing = self.a, None
        self.constant, self.sizes, self.options = torch.ones(2), [1, 2], {"deep": {"scale": 2.0}}
        self.register_buffer("shift", torch.ones(2), persistent=False)
        self.norm.register_forward_hook(lambda module, args, result: result)

    def forward(self, x):
        return self.again(self.norm(self.b(self.a(x)))) * self.constant + self.shift


def tensors(model):
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


COPIES = pytest.mark.parametrize("copied", [shell, private_copy])


def test_a_shell_has_the_tensors_of_the_model():
    model = Net()
    found = tensors(shell(model))
    assert [name for name, _ in found] == [name for name, _ in tensors(model)]
    assert all(one is other for (_, one), (_, other) in zip(found, tensors(model), strict=True))


def test_a_private_copy_has_tensors_of_its_own():
    model = Net()
    for (name, own), (other_name, other) in zip(tensors(private_copy(model)), tensors(model), strict=True):
        assert name == other_name
        assert torch.equal(own, other)
        assert type(own) is type(other)
        assert own.requires_grad == other.requires_grad
        assert own.untyped_storage()._cdata != other.untyped_storage()._cdata


@COPIES
def test_modules_and_attributes_are_not_shared(copied):
    model = Net().eval()
    new = copied(model)
    assert type(new) is Net
    originals = dict(model.named_modules(remove_duplicate=False))
    assert list(dict(new.named_modules(remove_duplicate=False))) == list(originals)
    assert not set(new.modules()) & set(model.modules())
    new.train()
    new.extra = new.a.extra = 3
    new.sizes.append(3)
    new.options["deep"]["scale"] = 5.0
    new.norm._forward_hooks.clear()
    new.norm._parameters["weight"] = None
    new.a.register_forward_hook(lambda module, args, result: result * 2)
    new._modules["b"] = nn.Identity()
    assert not any(module.training for module in model.modules())
    assert not hasattr(model, "extra")
    assert not hasattr(model.a, "extra")
    assert (model.sizes, model.options) == ([1, 2], {"deep": {"scale": 2.0}})
    assert len(model.norm._forward_hooks) == 1
    assert model.norm.weight is not None
    assert not model.a._forward_hooks
    assert type(model.b) is nn.Linear


@COPIES
def test_a_copy_lives_like_the_model(copied):
    model = Net().eval()
    new, x = copied(model), torch.randn(3, 2)
    assert torch.equal(new(x), model(x))
    assert list(new.state_dict()) == list(model.state_dict())
    assert new.nothing is None
    assert not new.training


@COPIES
def test_what_is_one_stays_one(copied):
    new = copied(Net())
    assert new.again is new.a
    assert new.b.weight is new.a.weight


@COPIES
@pytest.mark.parametrize("cut", [lambda tensor: tensor, lambda tensor: tensor[:2]], ids=["whole", "part"])
def test_parameters_on_one_memory(copied, cut):
    model = nn.ModuleList([nn.Linear(2, 3), nn.Linear(2, 3)])
    model[1].weight = nn.Parameter(cut(model[0].weight.detach()), requires_grad=False)
    new = copied(model)
    assert new[1].weight is not new[0].weight
    assert [one.weight.requires_grad for one in new] == [True, False]
    assert torch.equal(new[1].weight, cut(new[0].weight))
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        new[0].weight.fill_(7)
    assert bool(new[1].weight.eq(7).all()) == (copied is shell or len(new[1].weight) == 3)
    assert torch.equal(model[0].weight, before) == (copied is private_copy)


class Names(list):
    """A list of a class of its own."""


@COPIES
@pytest.mark.parametrize("store", [list, dict, set, Names])
def test_a_store_that_two_modules_share(copied, store):
    model = nn.Sequential(nn.Identity(), nn.Identity())
    model[0].store = model[1].store = store()
    new = copied(model)
    assert new[0].store is new[1].store
    assert type(new[0].store) is store
    assert new[0].store is not model[0].store


@COPIES
def test_a_module_with_a_copy_of_its_own(copied):
    class Own(nn.Linear):
        def __deepcopy__(self, memo):
            new = Own(2, 2)
            new.load_state_dict(self.state_dict())
            new.copies = getattr(self, "copies", 0) + 1
            return new

    model = nn.Sequential(Own(2, 2))
    assert copied(model)[0].copies == copy.deepcopy(model)[0].copies == 1


@COPIES
def test_what_cannot_be_copied(copied):
    model = Net()
    model.a.lock = (value for value in ())
    with pytest.raises(CaptureError, match=r"^Net cannot be copied: cannot pickle 'generator' object$"):
        copied(model)


@COPIES
def test_tensors_that_were_computed_from_parameters(copied):
    model = Net()
    model.last, model.kept = model.a.weight * 2, [model.a.weight * 3]
    model.same = model.last
    new = copied(model)
    assert torch.equal(new.last, model.last)
    assert torch.equal(new.kept[0], model.kept[0])
    assert new.same is new.last
    assert new.last is not model.last
    assert not new.last.requires_grad


@COPIES
def test_buffers_without_a_shape(copied):
    model = nn.Sequential(nn.LazyBatchNorm1d())
    new = copied(model)
    assert (new[0].running_mean is model[0].running_mean) == (copied is shell)
    new.eval()(torch.ones(2, 3))
    assert isinstance(model[0].running_mean, nn.UninitializedBuffer) == (copied is private_copy)


def test_a_shell_around_parts():
    model = Net()
    new = shell_around(model, [model.norm])
    assert new.norm is model.norm
    assert new.a is not model.a
    assert new.a.weight is model.a.weight
    assert new.shift is not model.shift


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_gradients_are_not_lost(register):
    model = nn.Sequential(nn.Linear(2, 2))
    called = []
    getattr(model[0].weight, register)(lambda *_: called.append(1))
    with pytest.raises(CaptureError, match=r"^0\.weight has a hook on its gradient, .* capture with copy=False"):
        capture(model)
    capture(model, copy=False)(torch.ones(1, 2)).sum().backward()
    assert called == [1]
