"""Language models of transformers by islands: groups of 4-bit weights, GPTQ, SmoothQuant, a range for each token."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

import fxcompress
import fxcompress.tune.gptq as gptq_module
from fxcompress.graph import layers
from fxcompress.measure.float_mode import float_mode

SMALL = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = ["model.layers.*"]
GPT2 = ["transformer.h.*"]


def llama(**config):
    sizes = {"hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL, **sizes, num_key_value_heads=2, **config)).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()


@pytest.fixture
def data():
    tokens = torch.randint(3, 60, (8, 12), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": ids} for ids in tokens.split(4)]


def compressed(model, data, names, weight, *, input=None, tune=(), **options):
    rule = {"select": {"ops": ["linear", "addmm"], "names": names}, "weight": weight}
    rule |= {"input": input} if input else {}
    policy = {"version": 1, "steps": [{"kind": "quantize", "rules": [rule]}], "tune": list(tune)}
    return fxcompress.transform(model, policy, example_inputs=data[0], data=data, capture="islands", **options)


def logits(model, data):
    with torch.no_grad():
        return torch.cat([model(**batch).logits for batch in data])


def generated(model, **how):
    ids = torch.randint(3, 60, (3, 5), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    return model.generate(ids, attention_mask=mask, min_new_tokens=8, max_new_tokens=8, do_sample=False, **how)


def decoder_layers(model):
    parts = model.named_modules()
    return [one for name, one in parts if isinstance(one, nn.Linear | Conv1D) and name != "lm_head"]


def nearest(rows, bits, size):
    """Round the rows of a matrix in symmetric groups; a scale is the largest magnitude over the highest code."""
    rounded, high = np.empty_like(rows), 2 ** (bits - 1) - 1
    for start in range(0, rows.shape[1], size):
        group = rows[:, start : start + size]
        scale = (np.abs(group).max(1, keepdims=True).astype(np.float64) / high).astype(np.float32)
        rounded[:, start : start + size] = np.clip(np.rint(group / scale), -high, high) * scale
    return rounded


def with_rounded_weights(model, bits, size):
    """Return a model whose own decoder weights have been rounded."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for layer in decoder_layers(model):
            rows = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
            found = torch.from_numpy(nearest(rows.numpy(), bits, size))
            layer.weight.copy_(found.T if isinstance(layer, Conv1D) else found)
    return model


@pytest.mark.parametrize(
    ("make", "names", "size"),
    [(llama, LLAMA, 20), (llama, LLAMA, 32), (gpt2, GPT2, 48)],
    ids=["llama20", "llama32", "gpt2"],
)  # of 32 and 44, or 32 and 128 columns
def test_a_group_of_input_weights_shares_a_scale(make, names, size, data, tmp_path):
    model = make()
    small = compressed(model, data, names, {"bits": 4, "per": "group", "group_size": size})
    expected = with_rounded_weights(model, 4, size)
    assert (logits(expected, data) - logits(model, data)).abs().max() > 1e-3
    assert torch.equal(logits(small, data), logits(expected, data))
    assert torch.equal(generated(small), generated(expected))
    fxcompress.save(small, tmp_path)
    loaded = fxcompress.load(tmp_path, make(), example_inputs=data[0])
    assert torch.equal(logits(loaded, data), logits(small, data))


class KilledError(Exception):
    """The process ends here."""


@pytest.mark.parametrize(("make", "names"), [(llama, LLAMA), (gpt2, GPT2)])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_of_groups_goes_on_after_a_kill(make, names, act_order, data, tmp_path, monkeypatch):
    model, weight = make(), {"bits": 3, "per": "group", "group_size": 20}
    tune = [{"gptq": {"act_order": act_order, "block_size": 16}}]
    whole = compressed(model, data, names, weight, tune=tune)
    rounding = gptq_module.round_columns

    def killed(*args, **kwargs):
        if len(list(tmp_path.rglob("*.safetensors"))) == 3:
            raise KilledError
        return rounding(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(gptq_module, "round_columns", killed)
        with pytest.raises(KilledError):
            compressed(model, data, names, weight, tune=tune, cache=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    resumed = compressed(model, data, names, weight, tune=tune, cache=tmp_path)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert 3 <= len(before) < len(after) == len(decoder_layers(model))
    assert before.items() <= after.items()
    state = whole.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in resumed.state_dict().items())
    exact, simple = logits(model, data), with_rounded_weights(model, 3, 20)
    errors = [(logits(one, data) - exact).square().mean() for one in (whole, simple)]
    assert errors[0] < errors[1]


def with_outliers(model):
    with torch.no_grad():
        for layer in model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight[3] = 40.0
            for linear in decoder_layers(layer):
                linear.weight[:, 3] /= 20
    return model


def test_smooth_quant_moves_outliers_and_keeps_what_the_float_model_gives(data, tmp_path):
    model, input = with_outliers(llama()), {"bits": 8}
    plain = compressed(model, data, LLAMA, {"bits": 8}, input=input)
    with pytest.warns(
        UserWarning,
        match="smooth_quant: 2 of 14 linear layers .* cannot be smoothed .* 'model.layers.0.self_attn.o_proj'",
    ):
        small = compressed(model, data, LLAMA, {"bits": 8}, input=input, tune=["smooth_quant"])
    expected = logits(model, data)
    with float_mode(small):
        torch.testing.assert_close(logits(small, data), expected, rtol=0, atol=1e-5)
    errors = [(logits(one, data) - expected).square().mean() for one in (small, plain)]
    assert errors[0] < errors[1] / 2
    fxcompress.save(small, tmp_path)
    loaded = fxcompress.load(tmp_path, with_outliers(llama()), example_inputs=data[0])
    assert torch.equal(logits(loaded, data), logits(small, data))
    assert torch.equal(generated(loaded), generated(small))


def per_token(x):
    """Round each vector to 8 affine bits between its ends and zero."""
    low, high = np.minimum(x.min(-1, keepdims=True), 0), np.maximum(x.max(-1, keepdims=True), 0)
    scale = (high - low) / np.float32(255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale


def test_dynamic_inputs_have_a_range_for_each_token(data, tmp_path):
    model = llama()
    small = compressed(model, data, LLAMA, {"bits": 8}, input={"bits": 8, "dynamic": True, "per": "token"})
    expected = with_rounded_weights(model, 8, 1024)
    for layer in decoder_layers(expected):
        layer.register_forward_pre_hook(lambda _, args: torch.from_numpy(per_token(args[0].numpy())))
    torch.testing.assert_close(logits(small, data), logits(expected, data), rtol=0, atol=1e-6)
    assert (logits(small, data) - logits(with_rounded_weights(model, 8, 1024), data)).abs().max() > 1e-4
    assert torch.equal(generated(small), generated(small, use_cache=False))
    fxcompress.save(small, tmp_path)
    loaded = fxcompress.load(tmp_path, llama(), example_inputs=data[0])
    assert torch.equal(logits(loaded, data), logits(small, data))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("weight", [{"per": "channel"}, {"per": "group", "group_size": 20}], ids=["channel", "group"])
def test_the_predicted_size_is_that_of_packed_codes_in_a_file(weight, tied, data, tmp_path):
    model = llama(tie_word_embeddings=tied)
    small = compressed(model, data, LLAMA, {"bits": 4} | weight)
    tensors = {}
    for name, parameter in model.named_parameters():  # a tied one comes once
        tensors[name] = parameter.detach().numpy()
    for layer in (
        layer for layer in layers(small) if layer.kind == "linear" and layer.name.startswith("model.layers")
    ):
        quantizer, name = small.get_submodule(f"{layer.name}.weight_quantizer"), f"{layer.name}.weight"
        codes = quantizer.codes(model.get_parameter(name)).flatten().numpy()
        tensors[name] = (codes[::2] & 15) << 4 | codes[1::2] & 15
        tensors[f"{layer.name}.scale"] = quantizer.scale.numpy()
    file = tmp_path / "packed.safetensors"
    save_file(tensors, file)
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    stored = sum(end - start for start, end in (one["data_offsets"] for one in header.values()))
    frequencies = sum(buffer.nbytes for buffer in model.buffers())  # of the rotary embedding, which are no parameters
    assert fxcompress.report(small).record.totals.size == stored + frequencies
