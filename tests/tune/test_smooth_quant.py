"""smooth_quant: scales move from inputs into weights, and the float model computes what it did."""

import logging

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from fxcompress.errors import PassError
from fxcompress.graph.inputs import Arguments
from fxcompress.graph.mode import eval_mode
from fxcompress.measure.calibrate import calibrate
from fxcompress.measure.float_mode import float_mode
from fxcompress.policies import Prune
from fxcompress.tune.finished import Finished
from fxcompress.tune.smooth_quant import smooth_quant
from fxcompress.tune.walk import Walk
from tests.tune.smoothing import W8A8, batches, quantized, seeded, smooth


class Attention(nn.Module):
    """Three layers that read one normalized tensor."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        x = self.norm(x)
        return torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), -1) @ self.v(x)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_scales_are_those_of_the_paper(alpha):
    model = seeded(Attention())
    gm = smooth(quantized(model), alpha=alpha)
    x = torch.cat([model.norm(x) for x in batches()]).detach().double().numpy()
    weights = [getattr(model, name).weight.detach().double().numpy() for name in "qkv"]
    scale = np.abs(x).max((0, 1)) ** alpha / np.abs(np.concatenate(weights)).max(0) ** (1 - alpha)
    for name, weight in zip("qkv", weights, strict=True):
        np.testing.assert_allclose(gm.get_parameter(f"{name}.weight").detach().numpy(), weight * scale, rtol=1e-6)
        assert torch.equal(gm.get_parameter(f"{name}.bias"), getattr(model, name).bias)
    for name in ("norm.weight", "norm.bias"):
        expected = model.get_parameter(name).detach().numpy() / scale
        np.testing.assert_allclose(gm.get_parameter(name).detach().numpy(), expected, rtol=1e-6)


def test_inputs_are_those_of_the_float_model():
    model = seeded(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)))
    with pytest.warns(UserWarning, match="1 of 2 linear layers on quantized inputs cannot be smoothed"):
        gm = smooth(quantized(model, rule={"weight": {"bits": 2}, "input": {"bits": 2}}))
    x = np.stack([torch.relu(model[0](x)).detach().double().numpy() for x in batches()])
    weight = model[2].weight.detach().double().numpy()
    scale = np.sqrt(x.max((0, 1, 2)) / np.abs(weight).max(0))
    np.testing.assert_allclose(gm.get_parameter("2.weight").detach().numpy(), weight * scale, rtol=1e-5)


def test_the_error_falls():
    model = seeded(Attention())
    nn.init.constant_(model.norm.weight, 0.1)
    nn.init.constant_(model.norm.weight[2], 20)
    gm, x = quantized(model), batches()[0]
    before = (gm(x) - model(x)).square().mean()
    smooth(gm)
    assert (gm(x) - model(x)).square().mean() < before / 4


def test_only_quantized_inputs_count():
    weights = {"select": {"ops": ["linear"]}, "weight": {"bits": 4}}
    with pytest.raises(PassError, match="smooth_quant: there are no linear layers on quantized inputs"):
        smooth(quantized(seeded(Attention()), rule=weights))


def test_some_layers_are_left():
    layers = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    message = (
        r"smooth_quant: 1 of 3 linear layers on quantized inputs cannot be smoothed \(the first is '0'\): the input"
    )
    with pytest.warns(UserWarning, match=message):
        smooth(quantized(seeded(layers)))


def test_channels_without_values_or_weights_stay():
    model = seeded(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4)))
    with torch.no_grad():
        model[0].weight[1] = model[0].bias[1] = 0
        model[1].weight[:, 4] = 0
    gm = smooth(quantized(model))
    for name, axis in (("0.weight", 0), ("1.weight", 1)):
        value, before = gm.get_parameter(name), model.get_parameter(name)
        assert torch.equal(value.select(axis, 1), before.select(axis, 1))
        assert torch.equal(value.select(axis, 4), before.select(axis, 4))
        assert not torch.equal(value.select(axis, 2), before.select(axis, 2))
    assert gm(batches()[0]).isfinite().all()


def test_pruned_weights_do_not_count():
    model = seeded(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4)))
    gm = smooth(quantized(model, steps=[Prune(rules=({"sparsity": 0.5},))]), alpha=0.0)
    mask = gm.get_submodule("1.weight_mask").mask
    peaks = (gm.get_parameter("1.weight").detach() * mask).abs().amax(0)
    torch.testing.assert_close(peaks, torch.ones(6))


def test_finished_work_is_put_back(tmp_path):
    expected = smooth(quantized(seeded(Attention())), finished=Finished(tmp_path)).state_dict()
    gm = quantized(seeded(Attention()))
    with eval_mode(gm):  # only one batch is read, to see what flows where
        smooth_quant(gm, Walk(gm, lambda: iter([Arguments((batches()[0] * 0,))])), Finished(tmp_path), alpha=0.5)
    calibrate(gm, batches())
    assert all(torch.equal(value, expected[name]) for name, value in gm.state_dict().items())


SMALL = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def llama():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**SMALL, **sizes, num_key_value_heads=2))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(**SMALL, n_embd=32, n_layer=1, n_head=4, n_positions=64))


def opt():
    sizes = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    return OPTForCausalLM(OPTConfig(**SMALL, **sizes, max_position_embeddings=64, word_embed_proj_dim=32))


@pytest.mark.parametrize(
    ("make", "way", "left"),
    [
        (llama, "export", "1 of 7"),
        (llama, "islands", "1 of 7"),
        (gpt2, "islands", "2 of 4"),
        (opt, "islands", "2 of 6"),
    ],
)
def test_decoders_with_outlier_channels(make, way, left):
    torch.manual_seed(0)
    logging.disable(logging.WARNING)
    model = make().eval()
    logging.disable(logging.NOTSET)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "weight" in name:
                parameter[::11] *= 60
    ids = torch.randint(3, 60, (2, 9))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if way == "export":
        inputs["use_cache"] = False
    rule = W8A8 | {"select": {"names": ["*.h.*" if make is gpt2 else "*.layers.*"], "ops": ["linear", "addmm"]}}
    gm = quantized(model, [inputs], way, rule=rule)
    exact = model(**inputs).logits.detach()
    before = (gm(**inputs).logits - exact).square().mean()
    with pytest.warns(
        UserWarning, match=f"smooth_quant: {left} linear layers on quantized inputs cannot be smoothed"
    ):
        smooth(gm, [inputs])
    with float_mode(gm):
        torch.testing.assert_close(gm(**inputs).logits, exact, rtol=0, atol=1e-5 * exact.abs().max().item())
    assert (gm(**inputs).logits - exact).square().mean() < before / 2
