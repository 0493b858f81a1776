"""What holds of every form of Quantizer: state, copies, dtypes, compilation, NaN, and what it says."""

import copy

import pytest
import torch

from fxcompress.errors import NotReadyError
from fxcompress.nn import CodebookQuantizer, DynamicQuantizer, Float8Quantizer, Layout, Quantizer, UniformQuantizer

SHAPE = (6, 10)
LAYOUTS = {"tensor": Layout(), "channel": Layout.channel(0, 6), "group": Layout.group(0, SHAPE, 4)}
STATIC = {
    **{f"int4 {name}": lambda at=at: UniformQuantizer(4, symmetric=True, layout=at) for name, at in LAYOUTS.items()},
    "uint8": lambda: UniformQuantizer(8, symmetric=False),
    "int16": lambda: UniformQuantizer(16, symmetric=True, axis=1, channels=10),
    "power of two": lambda: UniformQuantizer(6, symmetric=False, power_of_two=True),
    **{f"e4m3 {name}": lambda at=at: Float8Quantizer("e4m3", layout=at) for name, at in LAYOUTS.items()},
    "e5m2": lambda: Float8Quantizer("e5m2"),
    **{f"{form} {name}": lambda form=form, at=at: CodebookQuantizer(form, layout=at)
       for form in ("binary", "ternary") for name, at in LAYOUTS.items()},
    **{f"apot {name}": lambda at=at: CodebookQuantizer("apot", 4, layout=at) for name, at in LAYOUTS.items()},
    "kmeans": lambda: CodebookQuantizer("kmeans", 3),
}  # fmt: skip
DYNAMIC = {
    "dynamic": lambda: DynamicQuantizer(8),
    "dynamic token": lambda: DynamicQuantizer(4, symmetric=True, token=True),
}
ALL = STATIC | DYNAMIC
RANGED = [name for name, make in STATIC.items() if make().needs_range]
SCALARS = [name for name, make in ALL.items() if make().layout.per in ("tensor", "token")]
static = pytest.mark.parametrize("form", STATIC)
every = pytest.mark.parametrize("form", ALL)


def numbers(seed=0, dtype=torch.float32):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def fitted(form, x=None):
    """Return a quantizer that is ready for `x`."""
    quantizer, x = ALL[form](), numbers() if x is None else x
    if isinstance(quantizer, CodebookQuantizer) and not quantizer.needs_range:
        quantizer.fit(x)
    elif quantizer.needs_range:
        rows = quantizer.layout.rows(x)
        quantizer.set_range(rows.amin(1), rows.amax(1))
    return quantizer


def test_the_base_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Quantizer(4, Layout())


@every
def test_values_come_near(form):
    x = numbers()
    found = fitted(form)(x)
    assert found.shape == x.shape
    assert not found.requires_grad
    assert (found - x).square().mean() < x.square().mean()
    if form != "int16":
        assert found.unique().numel() < x.unique().numel()


@static
def test_rounding_twice_changes_nothing(form):
    quantizer = fitted(form)
    once = quantizer(numbers())
    assert torch.equal(quantizer(once), once)


@static
def test_codes_are_of_the_shape(form):
    quantizer, x = fitted(form), numbers(1)
    assert quantizer.codes(x).shape == x.shape
    assert quantizer.codes(x).element_size() * 8 >= quantizer.bits


@static
def test_it_is_ready_when_its_state_is(form):
    quantizer, fresh = fitted(form), ALL[form]()
    assert not fresh.ready
    fresh.load_state_dict(quantizer.state_dict())
    assert fresh.ready
    assert torch.equal(fresh(numbers(1)), quantizer(numbers(1)))
    fresh.load_state_dict(ALL[form]().state_dict())
    assert not fresh.ready


@static
def test_a_range_can_be_forgotten(form):
    quantizer, before = fitted(form), fitted(form)
    quantizer.observer = "kept"
    quantizer.forget_range()
    assert not quantizer.ready
    assert quantizer.observer == "kept"
    with pytest.raises(NotReadyError):
        quantizer(numbers())
    if quantizer.needs_range:
        rows = quantizer.layout.rows(numbers())
        quantizer.set_range(rows.amin(1), rows.amax(1))
    else:
        quantizer.fit(numbers())
    assert torch.equal(quantizer(numbers()), before(numbers()))


@static
def test_without_a_range_it_says_what_to_do(form):
    quantizer = ALL[form]()
    message = f"{quantizer} was called before it got a range: calibrate it, set_range it or load its state"
    for call in (quantizer, quantizer.codes):
        with pytest.raises(NotReadyError) as caught:
            call(numbers())
        assert str(caught.value) == message


@every
def test_copies_and_disabled_ones(form):
    quantizer = fitted(form)
    assert torch.equal(copy.deepcopy(quantizer)(numbers(1)), quantizer(numbers(1)))
    quantizer.enabled = False
    x = numbers()
    assert quantizer(x) is x


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(form, dtype):
    quantizer, x = fitted(form), numbers(1, dtype)
    found = quantizer(x)
    assert found.dtype is dtype
    if dtype is not torch.float64:  # rounded in single precision
        assert torch.equal(found, quantizer(x.float()).to(dtype))
    else:
        assert (found - quantizer(x.float()).double()).abs().max() < 1e-5
        assert (copy.deepcopy(quantizer).double()(x) - found).abs().max() < 1e-5


@every
def test_under_autocast(form):
    quantizer, x = fitted(form), numbers(1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(x), quantizer(x))
        assert quantizer(x.bfloat16()).dtype is torch.bfloat16
        x.requires_grad_()
        quantizer(x).sum().backward()
    assert x.grad.isfinite().all()


@every
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # what torch does in compile
def test_compiled_whole(form):
    torch.compiler.reset()
    quantizer = fitted(form)
    compiled = torch.compile(quantizer, fullgraph=True, backend="eager")
    ways = [numbers(1).requires_grad_() for _ in range(2)]
    values = [one(x) for one, x in zip((quantizer, compiled), ways, strict=True)]
    for value in values:
        value.square().sum().backward()
    assert torch.equal(*values)
    assert torch.equal(*(x.grad for x in ways))


@every
def test_nan_stays_nan(form):
    x = numbers(1)
    x[2, 3] = torch.nan
    found = fitted(form)(x)
    assert found[2, 3].isnan()
    if form in STATIC:
        assert found.isnan().sum() == 1


@static
def test_huge_and_infinite_values_end_at_a_level(form):
    huge = torch.where(numbers() > 0, 1e30, -1e30)
    found = fitted(form)(huge)
    assert found.isfinite().all()
    assert torch.equal(found.sign(), huge.sign())
    assert torch.equal(found, fitted(form)(huge * 1e30))


@every
def test_ranges_of_huge_values(form):
    x = 2.0**100 * numbers()
    found = fitted(form, x)(x)
    assert torch.equal(found / 2.0**100, fitted(form)(numbers()))


@every
def test_zeros_stay_zero(form):
    zeros = torch.zeros(SHAPE)
    assert torch.equal(fitted(form, zeros)(zeros), zeros)
    x = numbers()
    x[2] = 0
    if form != "binary tensor":  # which has no level for zero
        found = fitted(form, x)(x)
        assert found.isfinite().all()
        assert found[2].abs().max() == 0


@every
def test_tensors_without_values(form):
    quantizer = ALL[form]()
    if quantizer.layout.per == "tensor":
        assert fitted(form)(torch.zeros(0)).shape == (0,)
        assert fitted(form)(torch.zeros(3, 0)).shape == (3, 0)
    if quantizer.layout.per == "token":
        assert quantizer(torch.zeros(0, 4)).shape == (0, 4)
        assert quantizer(torch.zeros(4, 0)).shape == (4, 0)


@pytest.mark.parametrize("form", SCALARS)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_single_value(form, shape):
    x = torch.full(shape, -0.75)
    found = fitted(form, x)(x)
    assert found.shape == shape
    assert found.item() == pytest.approx(-0.75, rel=0.35)


@pytest.mark.parametrize("form", RANGED)
def test_a_range_has_finite_ends(form):
    quantizer = STATIC[form]()
    ends = torch.zeros(quantizer.layout.shape), torch.full(quantizer.layout.shape, torch.inf)
    with pytest.raises(ValueError, match=r"a range has finite ends, not .*0\.0.* and .*inf"):
        quantizer.set_range(*ends)


def test_what_they_are_called():
    made = {
        "Quantizer(int4, per channel)": STATIC["int4 channel"](),
        "Quantizer(int4, per group of 4)": STATIC["int4 group"](),
        "Quantizer(uint8, per tensor)": STATIC["uint8"](),
        "Quantizer(uint6, per tensor, power-of-two scales)": STATIC["power of two"](),
        "Quantizer(ternary, per channel)": STATIC["ternary channel"](),
        "Quantizer(apot4, per group of 4)": STATIC["apot group"](),
        "Quantizer(kmeans3, per tensor)": STATIC["kmeans"](),
        "Quantizer(float8_e5m2, per tensor)": STATIC["e5m2"](),
        "Quantizer(uint8, dynamic per tensor)": DYNAMIC["dynamic"](),
        "Quantizer(int4, dynamic per token)": DYNAMIC["dynamic token"](),
    }
    assert [str(quantizer) for quantizer in made.values()] == list(made)
    assert [made[name].precision for name in list(made)[4:8]] == ["ternary", 4, 3, "e5m2"]


def test_which_ones_engines_compute_with():
    integer = {"int4 tensor", "int4 channel", "uint8", "power of two"}
    assert {form for form, make in ALL.items() if make().integer} == integer


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("int4 tensor", 30 + 4),
        ("int4 channel", 30 + 6 * 4),
        ("int4 group", 30 + 18 * 4),
        ("uint8", 60 + 4 + 1),
        ("int16", 120 + 10 * 4),
        ("e4m3 group", 60 + 18 * 4),
        ("binary channel", 8 + 6 * 4),
        ("ternary channel", 15 + 6 * 4),
        ("apot tensor", 30 + 4 + 15 * 4),
        ("kmeans", 23 + 8 * 4),
        ("dynamic", 0),
    ],
)
def test_stored_bytes_by_hand(form, expected):
    assert ALL[form]().stored_bytes(60) == expected


def test_stored_zero_points_have_the_width_of_codes():
    assert UniformQuantizer(16, symmetric=False, axis=0, channels=3).stored_bytes(0) == 3 * (4 + 2)
