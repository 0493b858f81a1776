"""Saving and loading: bit for bit, whole or not at all, and clear about files that do not fit."""

import copy
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fxcompress
from fxcompress.errors import CompressError

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
POLICY = {
    "version": 1,
    "steps": [
        "fold_batch_norm",
        {"kind": "quantize", "rules": [{"weight": {"bits": 4}, "input": {"bits": 8}}]},
        {"kind": "prune", "rules": [{"select": {"ops": ["conv2d"]}, "sparsity": 0.5}]},
    ],
}


def net(width: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = (nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 5))
    return nn.Sequential(*layers).eval()


@pytest.fixture
def small() -> nn.Module:
    return fxcompress.transform(net(), POLICY, data=[X])


def test_load_rebuilds_bit_for_bit_on_a_fresh_instance(small, tmp_path):
    fxcompress.save(small, tmp_path / "small")
    again = fxcompress.load(tmp_path / "small", net(seed=7))
    assert sorted(os.listdir(tmp_path / "small")) == ["model.safetensors", "policy.yaml"]
    assert torch.equal(again(X), small(X))
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in small.state_dict().items())


def test_trained_state_survives(small, tmp_path):
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    small.train()
    small(X).square().mean().backward()
    optimizer.step()
    small.eval()
    fxcompress.save(small, tmp_path)
    assert torch.equal(fxcompress.load(tmp_path, net())(X), small(X))


def test_half_precision_stays_half(small, tmp_path):
    small.half()
    fxcompress.save(small, tmp_path)
    again = fxcompress.load(tmp_path, net())
    assert again.get_parameter("0.weight").dtype == torch.float16
    assert torch.equal(again.get_parameter("0.weight"), small.get_parameter("0.weight"))


def test_a_copy_can_be_saved(small, tmp_path):
    fxcompress.save(copy.deepcopy(small), tmp_path)
    assert torch.equal(fxcompress.load(tmp_path, net())(X), small(X))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


def test_a_tied_weight_is_stored_once_and_stays_tied(tmp_path):
    tokens = torch.arange(11)[None]
    small = fxcompress.transform(Tied(), "w8")
    fxcompress.save(small, tmp_path)
    again = fxcompress.load(tmp_path, Tied())
    assert again.get_parameter("head.weight") is again.get_parameter("embed.weight")
    assert torch.equal(again(tokens), small(tokens))
    assert (tmp_path / "model.safetensors").stat().st_size < 2 * 11 * 6 * 4 + 1000


def test_another_model_is_refused_with_the_difference(small, tmp_path):
    fxcompress.save(small, tmp_path)
    said = r"was saved from another model than Sequential: '0.bias' is \(4,\) in the file, \(6,\) in the model"
    with pytest.raises(CompressError, match=said):
        fxcompress.load(tmp_path, net(width=6))
    with pytest.raises(CompressError, match=r"was saved from another model than Sequential: .*matches no layer"):
        fxcompress.load(tmp_path, nn.Sequential(nn.Linear(3, 3)))


def test_an_edited_policy_is_refused(small, tmp_path):
    fxcompress.save(small, tmp_path)
    file = tmp_path / "policy.yaml"
    file.write_text(file.read_text().replace("bits: 4", "bits: 8"))
    with pytest.raises(
        CompressError, match=r"is not the plan that .*model.safetensors was saved with: it was edited"
    ):
        fxcompress.load(tmp_path, net())


def test_missing_files_are_named(small, tmp_path):
    with pytest.raises(CompressError, match=r"model.safetensors cannot be read: No such file or directory"):
        fxcompress.load(tmp_path, net())
    fxcompress.save(small, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(CompressError, match=r"model.safetensors cannot be read"):
        fxcompress.load(tmp_path, net())


def test_only_compressed_models_are_saved(tmp_path):
    with pytest.raises(CompressError, match=r"Sequential carries no plan: it is not the result of fxcompress"):
        fxcompress.save(net(), tmp_path)


def test_a_save_killed_between_its_two_files_is_complete(small, tmp_path, monkeypatch):
    fxcompress.save(small, tmp_path)
    other, renamed = fxcompress.transform(net(seed=3), "w8"), []
    replace = os.replace

    def die_at_the_second(source, target):
        renamed.append(target)
        if len(renamed) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("os.replace", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        fxcompress.save(other, tmp_path)
    monkeypatch.undo()
    assert torch.equal(fxcompress.load(tmp_path, net())(X), other(X))


def test_a_file_of_another_program_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CompressError, match=r"holds no plan; it was not written by fxcompress.save"):
        fxcompress.load(tmp_path, net())


@pytest.mark.parametrize("killed", ["save_file", "replace"])
def test_a_killed_save_leaves_the_old_files_whole(small, tmp_path, monkeypatch, killed):
    fxcompress.save(small, tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}

    def die(*args, **kwargs):
        if killed == "save_file":
            with open(args[1], "wb") as half:
                half.write(b"half a file")
        raise KeyboardInterrupt

    target = "fxcompress.checkpoint.save_file" if killed == "save_file" else "os.replace"
    monkeypatch.setattr(target, die)
    other = fxcompress.transform(net(seed=3), "w8")
    with pytest.raises(KeyboardInterrupt):
        fxcompress.save(other, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before
    monkeypatch.undo()
    assert torch.equal(fxcompress.load(tmp_path, net())(X), small(X))


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x, mask=None):
        return self.fc(x) if mask is None else self.fc(x) * mask


def test_a_path_that_optional_arguments_choose(tmp_path):
    batch = {"x": torch.randn(8, 4), "mask": torch.ones(8, 4)}
    small = fxcompress.transform(Masked(), "w8a8", data=[batch])
    fxcompress.save(small, tmp_path)
    again = fxcompress.load(tmp_path, Masked(), example_inputs=batch)
    assert torch.equal(again(**batch), small(**batch))
