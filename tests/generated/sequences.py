"""Operators on tokens (tokens, channels) and on features (channels): attention, recurrence, norms, ways out."""

from tests.generated.any_rank import linear
from tests.generated.body import Body, Row, Value, spellings

TOKENS_TO_FEATURES = (
    *("{x}.mean(1)", "{x}[:, 0]", "{x}.flatten(1)", "torch.flatten({x}, start_dim=1)", "{x}.amax(dim=1)"),
    *("{x}.select(1, -1)", "{x}.sum(1)", "torch.sum({x}, dim=1)", "{x}.mean(1, keepdim=True).squeeze(1)"),
)
TOKENS_TO_IMAGE = (
    *("{x}.transpose(1, 2).unsqueeze(-1)", "{x}.unsqueeze(1)", "{x}[:, None]", "torch.unsqueeze({x}, 3)"),
    "{x}.transpose(1, 2).reshape({x}.shape[0], {x}.shape[2], 1, -1)",
)
TRANSPOSED = ("{x}.transpose(1, 2)", "{x}.permute(0, 2, 1)", "{x}.mT", "torch.transpose({x}, -1, -2)")
SELF_ATTENTION = (
    *("F.scaled_dot_product_attention({x}, {x}, {x})", "F.softmax({x} @ {x}.transpose(-2, -1), dim=-1) @ {x}"),
    *("torch.bmm({x}.softmax(-1).transpose(1, 2), {x})", "torch.matmul({x}.transpose(1, 2), {x})"),
    *("F.scaled_dot_product_attention({x}, {x}, {x}, is_causal=True)", "{x}.bmm({x}.transpose(1, 2))"),
)
FEATURES_TO_IMAGE = (
    *("{x}[:, :, None, None]", "{x}.unsqueeze(-1).unsqueeze(-1)", "{x}.unflatten(1, ({c}, 1, 1))"),
    *("{x}.reshape({x}.size(0), {c}, 1, 1)", "{x}.reshape(-1, {c}, 1, 1)", "nn.Unflatten(1, ({c}, 1, 1))"),
)
FEATURES_TO_TOKENS = ("{x}.unsqueeze(1)", "{x}[:, None, :]", "{x}.unflatten(1, (-1, 1))")


def attention(body: Body, x: Value) -> None:
    """Apply attention with projections, perhaps around a residual."""
    channels = x.shape[1]
    made = f"Attention({channels}, {body.choose(1, *([2] if channels % 2 == 0 else []))})"
    body.call("attention", body.choose(made, f"Residual({made})"), x)


def recurrence(body: Body, x: Value) -> None:
    """Run a recurrent or attention layer of torch over the tokens and keep its sequence."""
    channels = x.shape[1]
    layer, arguments = body.choose(
        (f"nn.GRU({channels}, 3, batch_first=True)", x.name),
        (f"nn.LSTM({channels}, 2, batch_first=True)", x.name),
        (f"nn.MultiheadAttention({channels}, 1, batch_first=True)", f"{x.name}, {x.name}, {x.name}"),
    )
    body.line(f"{body.part('rnn', layer)}({arguments})[0]")


def conv1d(body: Body, x: Value) -> None:
    """Apply a layer for sequences along the last axis, the tokens being its channels."""
    channels = x.shape[0]
    made = body.choose(
        f"nn.Conv1d({channels}, 4, 1)",
        f"nn.Conv1d({channels}, {channels}, 3, padding=1, groups={channels})",
        f"nn.ConvTranspose1d({channels}, 2, 2, bias=False)",
        f"nn.BatchNorm1d({channels})",
        *("nn.MaxPool1d(1)", "nn.AvgPool1d(1)", "nn.AdaptiveAvgPool1d(2)"),
    )
    body.call("conv", made, x)


def feed_forward(body: Body, x: Value) -> None:
    """Normalize, expand, contract and add, as the second half of a transformer's layer does."""
    c = x.shape[1]
    layers = f"nn.LayerNorm({c}), nn.Linear({c}, {2 * c}), {body.choose('nn.GELU()', 'nn.ReLU()')}, nn.Linear({2 * c}, {c})"
    body.call("mlp", f"Residual(nn.Sequential({layers}))", x)


def normed_tokens(body: Body, x: Value) -> None:
    """Apply a linear layer, and a batch norm, which takes the tokens for channels."""
    tokens, channels = x.shape
    body.call("head", f"nn.Sequential(nn.Linear({channels}, {body.choose(4, tokens)}), nn.BatchNorm1d({tokens}))", x)


def classifier(body: Body, x: Value) -> None:
    """Apply a linear layer, a batch norm and an activation as one Sequential."""
    end = body.choose("", ", nn.ReLU()", ", nn.Dropout(0.5)")
    body.call("head", f"nn.Sequential(nn.Linear({x.shape[0]}, 4), nn.BatchNorm1d(4){end})", x)


SEQUENCES = (
    Row(linear, often=5),
    Row(spellings(*TOKENS_TO_FEATURES)),
    Row(attention),
    Row(feed_forward, lambda body, x: x.shape[1] > 1),
    Row(spellings(*SELF_ATTENTION)),
    Row(recurrence),
    Row(conv1d, often=3),
    Row(normed_tokens),
    Row(spellings(*TOKENS_TO_IMAGE)),
    Row(spellings(*TRANSPOSED)),
)
FEATURES = (
    Row(linear, often=5),
    Row(classifier),
    Row(spellings("nn.BatchNorm1d({c})", "nn.BatchNorm1d({c}, affine=False)", "F.normalize({x}, dim=1)")),
    Row(spellings(*FEATURES_TO_IMAGE)),
    Row(spellings(*FEATURES_TO_TOKENS)),
)
