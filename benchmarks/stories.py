"""stories260K: a published Llama of 260,032 parameters, as a plain module and in transformers, and its tokens."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM


class Sizes(NamedTuple):
    """The numbers that the file of weights states of the model."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    max_seq_len: int
    norm_eps: float
    rope_theta: float

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


class Attention(nn.Module):
    """Causal attention, several query heads to one of keys and values (GQA, Ainslie et al. 2023)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        queries, keys = sizes.n_heads * sizes.head_dim, sizes.n_kv_heads * sizes.head_dim
        self.wq, self.wk, self.wv = (nn.Linear(sizes.dim, rows, bias=False) for rows in (queries, keys, keys))
        self.wo = nn.Linear(queries, sizes.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (-1, self.sizes.head_dim)).transpose(1, 2) for layer in (self.wq, self.wk, self.wv)
        )
        query, key = turned(query, cos, sin), turned(key, cos, sin)
        found = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.wo(found.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x) (Shazeer 2020)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(sizes.dim, sizes.hidden_dim, bias=False) for _ in range(2))
        self.w2 = nn.Linear(sizes.hidden_dim, sizes.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    """Attention and feed-forward, each on a norm of its input and added to it."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(sizes), FeedForward(sizes)
        self.attention_norm, self.ffn_norm = (nn.RMSNorm(sizes.dim, sizes.norm_eps) for _ in range(2))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(nn.Module):
    """Predict the next token (Touvron et al. 2023): ids of shape (N, T) to logits (N, T, vocabulary).

    The output layer reads the very weight of the embedding.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(sizes.vocab_size, sizes.dim)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.n_layers))
        self.norm = nn.RMSNorm(sizes.dim, sizes.norm_eps)
        self.output = nn.Linear(sizes.dim, sizes.vocab_size, bias=False)
        self.output.weight = self.tok_embeddings.weight
        exponents = torch.arange(0, sizes.head_dim, 2) / sizes.head_dim
        angles = torch.outer(torch.arange(sizes.max_seq_len), sizes.rope_theta**-exponents)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x, count = self.tok_embeddings(ids), ids.shape[1]
        cos, sin = self.cos[:count], self.sin[:count]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.output(self.norm(x))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs of x (N, heads, T, head size) by angles (T, head size / 2) (Su et al. 2021, RoPE)."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)


def load(folder: Path) -> tuple[Sizes, dict[str, Tensor]]:
    """Return what `stories260k.safetensors` holds: its sizes and its weights by their published names."""
    with safe_open(folder / "stories260k.safetensors", "pt") as file:
        stated = json.loads(file.metadata()["config"])
    weights = load_file(folder / "stories260k.safetensors")
    return Sizes(**{name: stated[name] for name in Sizes._fields}), weights


def plain(folder: Path) -> Llama:
    """Return the published weights in the module of this file."""
    sizes, weights = load(folder)
    model = Llama(sizes)
    model.load_state_dict(weights | {"output.weight": weights["tok_embeddings.weight"]})
    return model.eval()


_NAMES = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def of_transformers(folder: Path) -> LlamaForCausalLM:
    """Return the published weights in transformers' LlamaForCausalLM."""
    sizes, weights = load(folder)
    config = LlamaConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.dim,
        intermediate_size=sizes.hidden_dim,
        num_hidden_layers=sizes.n_layers,
        num_attention_heads=sizes.n_heads,
        num_key_value_heads=sizes.n_kv_heads,
        max_position_embeddings=sizes.max_seq_len,
        rms_norm_eps=sizes.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    state = {_renamed(name): _halves(name, weight, sizes.head_dim) for name, weight in weights.items()}
    model.load_state_dict(state | {"lm_head.weight": weights["tok_embeddings.weight"]})
    return model.eval()


def _renamed(name: str) -> str:
    path = name.removesuffix(".weight")
    if path.startswith("layers."):
        _, index, part = path.split(".", 2)
        return f"model.layers.{index}.{_NAMES[part]}.weight"
    return f"{_NAMES[path]}.weight"


def _halves(name: str, weight: Tensor, head_dim: int) -> Tensor:
    """Return the rows of queries and keys in the order of transformers, which rotates x[i] with x[i + half]."""
    if name.endswith(("wq.weight", "wk.weight")):
        return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)
    return weight


def sampled(folder: Path) -> Tensor:
    """Return the 256 sequences of 257 tokens, starting with token 1, that the float model was made to say."""
    return torch.from_numpy(np.load(folder / "stories260k_tokens.npz")["sampled"].astype(np.int64))


@torch.no_grad()
def loss(model: nn.Module, tokens: Tensor, batch: int = 32) -> float:
    """Return the mean negative log-likelihood, in nats, of each token but the first."""
    total = 0.0
    for some in tokens.split(batch):
        found = model(some[:, :-1])
        logits = found if isinstance(found, Tensor) else found.logits
        total += F.cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten(), reduction="sum").item()
    return total / tokens[:, 1:].numel()
