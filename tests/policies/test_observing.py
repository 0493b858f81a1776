"""Observers as a policy names them."""

import pytest
from pydantic import ValidationError

from fxcompress.policies.observing import InputObserver, WeightObserver


@pytest.mark.parametrize("observer", [InputObserver, WeightObserver])
@pytest.mark.parametrize("written", ["minmax", "entropy", "mse", "aciq", {"percentile": {"q": 99.9}}])
def test_words_of_both(observer, written):
    assert observer.model_validate(written).plain() == written


def test_arguments():
    assert WeightObserver.model_validate({"aciq": {"prior": "gauss"}}).args == {"prior": "gauss"}
    assert InputObserver.model_validate({"moving_average": {"momentum": 0.9}}).args == {"momentum": 0.9}


@pytest.mark.parametrize(
    ("observer", "written", "message"),
    [
        (WeightObserver, "moving_average", "unknown name 'moving_average'; accepted: minmax, percentile, entropy, "),
        (InputObserver, "entropie", r"unknown name 'entropie' \(did you mean 'entropy'\?\); accepted: minmax, "),
        (InputObserver, {"aciq": {"prior": "normal"}}, "'laplace' or 'gauss'"),
        (InputObserver, {"entropy": {"bins": 5}}, "unknown key 'bins'; accepted: none"),
    ],
)
def test_errors(observer, written, message):
    with pytest.raises(ValidationError, match=message):
        observer.model_validate(written)
