"""Operators on tensors of any rank: activations, arithmetic, joins, splits, layers called again, ties, state."""

from tests.generated.body import LARGEST, Body, Row, Value, spellings

ACTIVATIONS = (
    *("nn.ReLU()", "F.relu({x})", "torch.relu({x})", "{x}.relu()", "F.relu({x}, inplace=False)", "F.relu(input={x})"),
    *("nn.ReLU6()", "F.relu6({x})", "nn.Hardtanh(-2.0, 2.0)", "F.hardtanh({x})", "nn.LeakyReLU(0.1)"),
    *("F.leaky_relu({x}, 0.2)", "nn.ELU()", "F.elu({x}, alpha=0.5)", "nn.GELU()", "F.gelu({x}, approximate='tanh')"),
    *("nn.SiLU()", "F.silu({x})", "nn.Mish()", "F.mish({x})", "nn.Softplus()", "F.softplus({x}, 2.0)"),
    *("nn.Hardswish()", "F.hardswish({x})", "nn.Hardsigmoid()", "F.hardsigmoid({x})", "nn.Sigmoid()"),
    *("F.sigmoid({x})", "torch.sigmoid({x})", "{x}.sigmoid()", "nn.Tanh()", "torch.tanh({x})", "F.tanh({x})"),
    *("{x}.tanh()", "nn.PReLU()", "nn.PReLU({c})", "nn.Softmax(dim=1)", "F.softmax({x}, dim=-1)"),
    *("{x}.softmax(-1)", "torch.softmax({x}, 1)", "nn.LogSoftmax(-1)", "F.log_softmax({x}, dim=1)"),
)
ARITHMETIC = (
    *("{x} + 1.0", "1 + {x}", "{x} * 0.5", "2 * {x}", "{x} - 0.5", "1 - {x}", "{x} / 2", "-{x}", "{x}.add(1)"),
    *("torch.add({x}, 1, alpha=2)", "torch.mul({x}, 0.5)", "torch.sub({x}, 1)", "{x}.div(3)", "torch.div({x}, 2)"),
    *("{x} * {x}.shape[1] ** -0.5", "{x} / {x}.size(-1)", "{x} + 0.01 * {x}.numel()", "torch.zeros_like({x}) + {x}"),
    *("torch.ones({x}.shape) * {x}", "torch.where({x} > 0, {x}, 0.1 * {x})", "{x}.masked_fill({x} < 0, 0.5)"),
    *(
        "{x} + torch.linspace(0, 1, {x}.shape[-1])",
        "{x} - torch.tensor(0.5)",
        "{x}.type_as({x})",
        "{x}.to({x}.dtype)",
    ),
    *("{x}.abs()", "{x}.clamp(-1, 1)", "torch.clamp({x}, min=0)", "{x}.clone()", "{x}.contiguous()", "{x}.detach()"),
)
VIEWS = (
    *("{x}.unsqueeze(1).squeeze(1)", "torch.squeeze(torch.unsqueeze({x}, -1), -1)", "{x}[:, :]"),
    *("{x}.flatten(1).reshape({x}.shape)", "{x}.reshape({x}.size(0), -1).view({x}.size())", "torch.flip({x}, [1])"),
    *(
        "{x}.contiguous().view({x}.shape[0], -1).reshape_as({x})",
        "{x}.transpose(0, 1).transpose(0, 1)",
        "{x}.roll(1, 1)",
    ),
)
DROPOUTS = (
    *("nn.Dropout(0.5)", "nn.Dropout()", "F.dropout({x}, 0.5, self.training)"),
    *("F.dropout({x}, training=self.training)", "nn.AlphaDropout(0.2)"),
)
IN_PLACE = (
    *("{x}.relu_()", "nn.ReLU(inplace=True)", "nn.Hardtanh(inplace=True)", "nn.SiLU(inplace=True)"),
    *("F.relu({x}, inplace=True)", "torch.relu_({x})", "{x}.add_(1)", "{x}.mul_(2)", "{x}.clamp_(-1, 1)"),
)
OWN_PYTHON = (
    *("{x} if {x}.sum() > 0 else -{x}", "{x} * float({x}.detach().mean())", "{x} * {x}.detach().amax().item()"),
    *("sum({x}[:, i : i + 1] for i in range({x}.shape[1]))", "torch.stack(list({x}.unbind(1)), 1)", "{x} / len({x})"),
)
JOINS = (
    *(
        "{x} + {y}",
        "{y}.add({x})",
        "torch.add({x}, {y})",
        "torch.add({x}, {y}, alpha=2)",
        "{x} - {y}",
        "{x}.sub({y})",
    ),
    *("{x} * {y}", "torch.mul({x}, {y})", "{x} * torch.sigmoid({y})", "torch.tanh({x}).mul({y})"),
    *("torch.maximum({x}, {y})", "torch.sub({x}, other={y})", "{x} / (1 + {y}.abs())"),
)
STACKS = ("torch.stack([{x}, {y}], dim=1).mean(1)", "torch.stack(({x}, {y})).sum(0)")
IN_PLACE_JOINS = ("{x} += {y}", "{x} -= {y}", "{x}.add_({y})", "{x}.sub_({y})", "{x}.mul_({y})")


def in_place(body: Body, x: Value) -> None:
    """Change a value in place; its old name reads the new values from here on."""
    expression = body.choose(*IN_PLACE)
    if expression.startswith("nn."):
        expression = body.part("act", expression) + "({x})"
    write = body.choose(body.line, body.statement)
    write(expression.format(x=x.name))


def join(body: Body, x: Value) -> None:
    """Join with a value that has the same shape, or one that is spread over it; possibly with itself."""
    y = body.choose(*_partners(body, x), x)
    in_place = IN_PLACE_JOINS if x.name in body.owned and x != y else ()
    expression = body.choose(*JOINS, *(STACKS if x.shape == y.shape else ()), *in_place)
    write = body.statement if expression in ("{x} += {y}", "{x} -= {y}") else body.line
    write(expression.format(x=x.name, y=y.name))


def _partners(body: Body, x: Value) -> list[Value]:
    return body.fitting(lambda y: y != x and _spreads(y, x))


def _spreads(y: Value, x: Value) -> bool:
    same_rank = len(x.shape) == len(y.shape)
    return same_rank and all(b in (a, 1) for a, b in zip(x.shape, y.shape, strict=True))


def cat(body: Body, x: Value) -> None:
    """Concatenate with a value that differs at most along one axis; the same value twice is possible."""
    axis = body.choose(*range(len(x.shape)))
    y = body.choose(*body.fitting(lambda y: _joins(y, x, axis)))
    dim = body.choose(axis + 1, axis - len(x.shape))
    ways = ("torch.cat([{x}, {y}], {dim})", "torch.cat(({y}, {x}), dim={dim})", "torch.concat([{x}, {y}], dim={dim})")
    body.own(body.choose(*ways).format(x=x.name, y=y.name, dim=dim))


def _joins(y: Value, x: Value, axis: int) -> bool:
    others = [one.shape[:axis] + one.shape[axis + 1 :] for one in (x, y)]
    return len(x.shape) == len(y.shape) and others[0] == others[1] and x.size + y.size <= LARGEST


def split(body: Body, x: Value) -> None:
    """Split into two values along an axis."""
    axis = body.choose(*(axis for axis, length in enumerate(x.shape) if length > 1))
    dim, length = body.choose(axis + 1, axis - len(x.shape)), x.shape[axis]
    ways = ["torch.split({x}, [1, {rest}], {dim})", "{x}.split([{rest}, 1], dim={dim})"]
    if length % 2 == 0:
        ways = ["{x}.chunk(2, dim={dim})", "torch.chunk({x}, 2, {dim})", "torch.split({x}, {half}, dim={dim})", *ways]
    if length == 2 and len(x.shape) > 1:
        ways.append("{x}.unbind({dim})")
    body.lines(body.choose(*ways).format(x=x.name, dim=dim, half=length // 2, rest=length - 1), 2)


def part_of(body: Body, x: Value) -> None:
    """Read the first, the last or every second entry along the first axis behind the batch."""
    ways = ("{x}[:, :{half}]", "{x}[:, -{half}:]", "{x}[:, ::2]", "{x}.narrow(1, 0, {half})", "{x}[:, [0]]")
    body.line(body.choose(*ways).format(x=x.name, half=(x.shape[0] + 1) // 2))


def linear(body: Body, x: Value) -> None:
    """Apply a linear layer to the last axis."""
    wanted = (x.shape[-1], x.shape[0], 4, 2, 6, 8, 1)
    size = body.choose(*(size for size in wanted if x.size // x.shape[-1] * size <= LARGEST))
    bias = body.choose(True, False)
    way = body.choose("module", "module", "module", "normed", "function", "keywords", "product", "einsum", "computed")
    made = f"nn.Linear({x.shape[-1]}, {size}{'' if bias else ', bias=False'})"
    if way in ("module", "normed"):
        body.call("fc", made if way == "module" else f"nn.utils.parametrizations.weight_norm({made})", x)
        return
    weight = body.parameter("weight", size, x.shape[-1])
    offset = body.parameter("bias", size) if bias else "None"
    write = body.line if way == "einsum" else body.own  # an einsum may be a view
    write(
        {
            "function": f"F.linear({x.name}, {weight}, {offset})",
            "keywords": f"F.linear(bias={offset}, weight={weight}, input={x.name})",
            "computed": f"F.linear({x.name}, {weight} - {weight}.mean(1, keepdim=True), {offset})",
            "einsum": f"torch.einsum('...i,oi->...o', {x.name}, {weight})",
            "product": f"{x.name} @ {weight}.t()" + (f" + {offset}" if bias else ""),
        }[way]
    )


def layer_norm(body: Body, x: Value) -> None:
    """Normalize the last axis, or all axes but the batch."""
    shape = body.choose(x.shape[-1:], x.shape)
    made = f"nn.LayerNorm({shape[0] if len(shape) == 1 else shape}"
    way = body.choose("module", "without parameters", "function")
    if way == "function":
        body.line(f"F.layer_norm({x.name}, {shape})")
    else:
        body.call("ln", made + (")" if way == "module" else ", elementwise_affine=False)"), x)


def scale(body: Body, x: Value) -> None:
    """Scale or shift by a tensor of the model itself, one number for each channel."""
    shape = (x.shape[0], *(1 for _ in x.shape[1:]))
    values = f"torch.linspace(-1, 1, {x.shape[0]}).reshape({shape})"
    made = (f"nn.Parameter({values})", f"nn.Buffer({values})", f"nn.Buffer({values}, persistent=False)", values)
    gain = body.part("gain", body.choose(*made))
    ways = ("{x} * {gain}", "{gain} + {x}", "torch.mul({gain}, {x})", "{x}.sub({gain})", "{x}.add({gain}.abs())")
    body.line(body.choose(*ways).format(x=x.name, gain=gain))


def count(body: Body, x: Value) -> None:
    """Change a buffer of the model in place, and read it."""
    buffer = body.part("count", "nn.Buffer(torch.ones(()))")
    body.statement(body.choose(f"{buffer}.add_(1)", f"{buffer} += 1", f"{buffer}.mul_(0.5).add_(1)"))
    body.line(f"{x.name} / {buffer}")


def without_gradient(body: Body, x: Value) -> None:
    """Compute under no_grad something that the rest of the model reads."""
    body.lines(body.choose(f"{x.name} * 2", f"F.relu({x.name})"), 1, under="with torch.no_grad(): ")


def branch(body: Body, x: Value) -> None:
    """Call a module again or not, as the values say."""
    module, constructor, _ = body.choose(*body.called_on(x))
    if body.line(f"{module}({x.name})").shape == x.shape:
        body.line(f"{body.part('branch', f'Branch({module})')}({x.name})")


def again(body: Body, x: Value) -> None:
    """Call a module again: itself, under a second name, in a block, or another module that has its weight."""
    module, constructor, _ = body.choose(*body.called_on(x))
    way = body.choose("same", "second name", "tied", "nested")
    if way == "second name":
        module = body.part("same", module)
    elif way == "nested" and body.line(f"{module}({x.name})").shape == x.shape:
        blocks = (
            "Residual({m})",
            "nn.Sequential({m}, nn.ReLU(), {m})",
            "Stack({m}, {m})",
            "nn.Sequential(Residual({m}))",
        )
        module, constructor = body.part("block", body.choose(*blocks).format(m=module)), ""
    elif way == "tied" and constructor.startswith(("nn.Linear", "nn.Conv", "nn.BatchNorm2d(", "nn.LSTM")):
        tied = body.part("tied", constructor)
        if "affine=False" not in constructor:
            body.write_init(f"{tied}.weight = {module}.weight")
        module = tied
    body.apply(module, constructor, x)


def borrow(body: Body, x: Value) -> None:
    """Use the weight of another module in a linear layer."""
    body.own(f"F.linear({x.name}, {body.choose(*_matrices(body, x))})")


def _matrices(body: Body, x: Value) -> list[str]:
    return body.weights(lambda shape: shape[1:] == x.shape[-1:] and shape[0] * x.size <= LARGEST)


ANY_RANK = (
    Row(spellings(*ACTIVATIONS), often=2),
    Row(spellings(*ARITHMETIC)),
    Row(spellings(*VIEWS)),
    Row(spellings(*DROPOUTS)),
    Row(layer_norm, lambda body, x: x.size > 1),
    Row(scale),
    Row(in_place, lambda body, x: x.name in body.owned, often=3),
    Row(join),
    Row(join, _partners, often=3),
    Row(cat, lambda body, x: 2 * x.size <= LARGEST),
    Row(split, lambda body, x: x.size > 1),
    Row(part_of),
    Row(without_gradient),
    Row(count),
    Row(again, lambda body, x: body.called_on(x), often=3),
    Row(borrow, _matrices),
)
FOLLOWED_BY_NO_TRACE = (Row(spellings(*OWN_PYTHON), often=4), Row(branch, lambda body, x: body.called_on(x), often=4))
