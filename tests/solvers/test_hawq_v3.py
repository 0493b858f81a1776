"""The nine published bit allocations of HAWQ-V3 for ResNet-18 (Yao et al. 2021, arXiv 2011.10680, released code)."""

import pytest

from fxcompress.solvers import Decision, Problem, exact

# One number for each of 19 layers: stage 1 has unit 1 conv1, conv2, unit 2 conv1, conv2; the others also a downsample
# convolution after conv2 of unit 1.
TRACE = (  # average trace of the Hessian
    ".06857826 .03162379 .03298575 .01205663 .02222431 .00596336 .06931772 .00807129 .00372905 .00530698 "
    ".00209011 .00737569 .00210454 .00151197 .00158041 .00078146 .00451841 .00098745 .00072944"
)
ERROR8 = (  # ||Q(W) - W||^2 at 8 bit
    ".0235 .0125 .0102 .0082 .0145 .0344 .0023 .0287 .0148 .0333 .0682 .0027 .0448 .0336 .0576 "
    ".1130 .0102 .0947 .0532"
)
ERROR4 = (
    "6.7430 3.9691 3.3281 2.6796 4.7277 10.5966 .6827 9.0942 4.8857 10.7599 21.7546 .8603 14.5324 10.9651 18.7706 "
    "36.4044 3.1572 29.6994 17.4016"
)
LATENCY4 = (  # ms on a T4
    ".21094 .21093 .21104 .21087 .13642 .19168 .02532 .19148 .19143 .11395 .20556 .01917 .20567 .20567 .13185 "
    ".22288 .01790 .22305 .22286"
)
LATENCY8 = (
    ".36189 .36212 .31142 .30454 .19185 .38949 .03342 .38905 .38929 .19135 .34307 .02802 .34313 .34311 .21117 "
    ".37377 .02897 .37398 .37405"
)
PARAMETERS = [36864] * 4 + [73728, 147456, 8192, 147456, 147456, 294912, 589824, 32768, 589824, 589824]
PARAMETERS += [1179648, 2359296, 131072, 2359296, 2359296]
MACS = [115605504] * 4 + [57802752, 115605504, 6422528, 115605504, 115605504] * 3
TIED = {4: 6, 9: 11, 14: 16}  # the downsample of a residual block takes the bits of the convolution beside it


def numbers(text):
    return [float(word) for word in text.split()]


LOSS = {
    4: [trace * error for trace, error in zip(numbers(TRACE), numbers(ERROR4), strict=True)],
    8: [trace * error for trace, error in zip(numbers(TRACE), numbers(ERROR8), strict=True)],
}
COSTS = {
    "size": {bits: [bits * count for count in PARAMETERS] for bits in (4, 8)},  # bits
    "bops": {bits: [bits * bits * macs for macs in MACS] for bits in (4, 8)},
    "latency": {4: [round(1e5 * ms) for ms in numbers(LATENCY4)], 8: [round(1e5 * ms) for ms in numbers(LATENCY8)]},
}


def layer_bits(budget, percent):
    """Solve for a limit at `percent` of the way from all at 4 bit to all at 8 bit; return the layers at 8 bit."""
    decisions = []
    for layer in range(19):
        if layer in TIED.values():
            continue
        group = [layer, TIED[layer]] if layer in TIED else [layer]
        loss = tuple(sum(LOSS[bits][member] for member in group) for bits in (4, 8))
        costs = {budget: tuple(sum(COSTS[budget][bits][member] for member in group) for bits in (4, 8))}
        decisions.append(Decision(str(layer), ("int4", "int8"), loss, costs))
    least, most = sum(COSTS[budget][4]), sum(COSTS[budget][8])
    found = exact(Problem(tuple(decisions), {budget: least + percent * (most - least) // 100}))
    assert found.status == "optimal"
    wide = {int(name) for name, option in found.chosen.items() if option == 1}
    return wide | {TIED[layer] for layer in wide & TIED.keys()}, found.objective


@pytest.mark.parametrize(
    ("budget", "percent", "at_8_bit", "omega"),
    [
        ("size", 25, {*range(14)}, 0.1183),
        ("size", 50, {*range(15), 16}, 0.0745),
        ("size", 75, {*range(13), 14, 15, 16, 17}, 0.0334),
        ("bops", 25, {0, 1, 2, 4, 6}, 0.4604),
        ("bops", 50, {0, 1, 2, 4, 5, 6, 7, 9, 10, 11}, 0.2157),
        ("bops", 75, {*range(8), 9, 10, 11, 12, 14, 16, 17}, 0.0800),
        ("latency", 25, {0, 1, 2, 4, 6}, 0.4604),
        ("latency", 50, {*range(5), 6, 7, 9, 10, 11, 14, 16}, 0.2027),
        ("latency", 75, {*range(8), 9, 10, 11, 12, 14, 16, 17}, 0.0800),
    ],
)
def test_published_configurations(budget, percent, at_8_bit, omega):
    found, objective = layer_bits(budget, percent)
    assert found == at_8_bit
    assert objective == pytest.approx(omega, abs=5e-5)


def test_the_ends():
    assert sum(LOSS[4]) == pytest.approx(1.3077, abs=5e-5)
    assert sum(LOSS[8]) == pytest.approx(0.00426, abs=5e-6)
    assert layer_bits("size", 0)[0] == set()
    assert layer_bits("size", 100)[0] == set(range(19))
