"""Language models of transformers, captured by islands: their own generate() with its cache gives the same tokens."""

import copy

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import fxcompress
from fxcompress.graph import capture, layers
from fxcompress.graph.coverage import coverage

SMALL = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def llama():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**SMALL, **sizes, num_key_value_heads=2))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=4, n_positions=64))


def t5():
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(**SMALL, **sizes, decoder_start_token_id=1))


def bart():
    sizes = {f"{side}_{size}": 2 for side in ("encoder", "decoder") for size in ("layers", "attention_heads")}
    ffn = {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64}
    ids = {"decoder_start_token_id": 1, "forced_eos_token_id": None}
    return BartForConditionalGeneration(BartConfig(**SMALL, **sizes, **ffn, **ids, d_model=32))


MODELS = pytest.mark.parametrize("make", [llama, gpt2, t5, bart])


def original_and_inputs(make):
    torch.manual_seed(0)
    model = make().eval()
    ids = torch.randint(3, 60, (2, 9))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(3, 60, (2, 4))
    return model, inputs


def generated(model, **how):
    torch.manual_seed(1)
    ids = torch.randint(3, 60, (3, 5))
    return model.generate(ids, attention_mask=torch.ones_like(ids), min_new_tokens=8, max_new_tokens=8, **how)


@MODELS
def test_generate_gives_the_same_tokens(make):
    model, inputs = original_and_inputs(make)
    gm = capture(model, inputs, way="islands")
    assert isinstance(gm, type(model))
    for how in ({"do_sample": False}, {"num_beams": 2, "do_sample": False}, {"do_sample": True}):
        assert torch.equal(generated(gm, **how), generated(model, **how))
        assert torch.equal(generated(gm, use_cache=False, **how), generated(model, **how))


@MODELS
def test_a_compressed_model_generates(make, tmp_path):
    model, inputs = original_and_inputs(make)
    small = fxcompress.transform(model, "w8", example_inputs=inputs, capture="islands")
    quantized = copy.deepcopy(model)
    with torch.no_grad():
        for layer in layers(small):
            if layer.weight is not None and not layer.tied:
                quantizer = small.get_submodule(f"{layer.owner}_quantizer")
                weight = quantized.get_parameter(layer.owner)
                weight.copy_(quantizer(weight))
    assert torch.equal(generated(small, do_sample=False), generated(quantized, do_sample=False))
    fxcompress.save(small, tmp_path)
    loaded = fxcompress.load(tmp_path, model, example_inputs=inputs)
    assert torch.equal(generated(loaded, do_sample=False), generated(small, do_sample=False))


@pytest.mark.filterwarnings("ignore:.*asks for its mode")  # layers that are dropped at random in training
@MODELS
def test_as_a_whole_by_export(make):
    model, inputs = original_and_inputs(make)
    inputs["use_cache"] = False  # the cache is an object of transformers, which a graph cannot make
    gm = capture(model, inputs)
    assert (coverage(gm).way, coverage(gm).share) == ("export", 1)
    sizes = {name: (3, value.shape[1] + 2) for name, value in inputs.items() if name != "use_cache"}
    others = {name: torch.randint(3, 60, size) for name, size in sizes.items()} | {"use_cache": False}
    others["attention_mask"] = torch.ones_like(others["input_ids"])
    others["attention_mask"][0, :2] = 0
    expected, found = model(**others), gm(**others)
    assert type(found) is type(expected)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-6)
