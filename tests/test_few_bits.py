"""Two bits and one bit on a trained network, through the same passes: what is lost, and what tuning brings back."""

import pytest

import fxcompress
from tests.digits_net import accuracy, trained


@pytest.fixture(scope="module")
def digits():
    return trained(6)


@pytest.fixture(scope="module")
def measured(digits):
    """Return a function that gives the accuracy with some weights and inputs; the ends have weights of 8 bits."""
    net, images, held_out, labels = digits

    def measure(weight, input, *tune):
        rules = [{"weight": weight, "input": input}, {"select": {"names": ["0", "11"]}, "weight": {"bits": 8}}]
        steps = ["fold_batch_norm", {"kind": "quantize", "rules": rules}]
        policy = {"version": 1, "steps": steps, "tune": list(tune)}
        return accuracy(fxcompress.transform(net, policy, data=list(images[:512].split(128))), held_out, labels)

    return measure


W2, A4 = {"bits": 2, "observer": "mse"}, {"bits": 4, "observer": "mse"}
A8 = {"bits": 8}


def test_the_float_network_has_learned(digits):
    net, _, held_out, labels = digits
    assert accuracy(net, held_out, labels) > 0.93


def test_two_bit_weights_and_four_bit_inputs(measured):
    """Found: 0.74 rounded to the nearest, 0.95 after AdaRound, 0.92 after GPTQ with and without bias correction."""
    nearest = measured(W2, A4)
    assert nearest < 0.85
    assert measured(W2, A4, {"ada_round": {"iterations": 100}}) > nearest + 0.1
    assert measured(W2, A4, "gptq") > nearest + 0.1
    assert measured(W2, A4, "gptq", "bias_correction") > 0.9


def test_block_reconstruction_of_two_bits(measured):
    """Found: 0.94."""
    assert measured(W2, A4, {"block_reconstruction": {"iterations": 60}}) > measured(W2, A4) + 0.1


def test_binary_weights(measured):
    """Signs alone are guessing, 0.11 found; the biases bring 0.88 back, less than with two bits."""
    nearest, corrected = measured({"bits": "binary"}, A8), measured({"bits": "binary"}, A8, "bias_correction")
    assert nearest < 0.3
    assert 0.8 < corrected < measured(W2, A4, "bias_correction")


def test_ternary_weights(measured):
    """Found: 0.73, and 0.94 with biases corrected."""
    nearest, corrected = measured({"bits": "ternary"}, A8), measured({"bits": "ternary"}, A8, "bias_correction")
    assert measured({"bits": "binary"}, A8) < nearest < 0.85
    assert corrected > 0.9


def test_more_bits_lose_less(measured):
    found = [measured({"bits": bits, "observer": "mse"}, A8) for bits in (2, 3, 4, 8)]
    assert found[0] < found[1] <= found[3] + 0.02
    assert found[2] > 0.9
    assert found[3] > 0.93
