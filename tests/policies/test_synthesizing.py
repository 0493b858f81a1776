"""The `data` line of a policy: its forms, its defaults, its errors, and which tuning needs it in a plan."""

import pytest

from fxcompress.errors import PolicyError
from fxcompress.policies import dump, parse

STEPS = "version: 1\nsteps: [fold_batch_norm]\n"


def test_defaults():
    policy = parse(f"{STEPS}data: zeroq", "p.yaml")
    assert parse(STEPS, "p.yaml").data is None
    assert policy.data.arguments == {"batches": 8, "batch_size": 32, "iterations": 500, "seed": 0}


def test_it_is_written_as_it_was_read():
    policy = parse(f"{STEPS}data: {{zeroq: {{batches: 2}}}}", "p.yaml")
    assert policy.plain()["data"] == {"zeroq": {"batches": 2}}
    assert parse(dump(policy), "again") == policy


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("data: zeroque", "p.yaml:3: data: unknown name 'zeroque' (did you mean 'zeroq'?); accepted: zeroq, or your "
         "own as package.module:attribute"),
        ("data: {zeroq: {batch: 1}}", "p.yaml:3: data.zeroq.batch: unknown key 'batch' (did you mean 'batches'?); "
         "accepted: batches, batch_size, iterations, seed"),
        ("data: {zeroq: {iterations: 0}}", "p.yaml:3: data.zeroq.iterations: should be greater than or equal to 1"),
        ("data: [zeroq]", "p.yaml:3: data: write a name, or one name with its arguments: 'name: {argument: value}'"),
    ],
)  # fmt: skip
def test_errors(line, said):
    with pytest.raises(PolicyError) as caught:
        parse(STEPS + line, "p.yaml")
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("tune", "needs"),
    [
        ("[]", False),
        ("[ada_round]", True),
        ("[bias_correction]", True),
        ("[{bias_correction: {statistics: batch_norm}}]", False),
        ("[{bias_correction: {statistics: batch_norm}}, gptq]", True),
        ("['my.own:step']", True),
    ],
)
def test_which_tuning_reads_data(tune, needs):
    assert parse(f"{STEPS}tune: {tune}", "p.yaml").tunes_on_data is needs
