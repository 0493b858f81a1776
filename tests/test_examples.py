"""The examples run, and compression keeps what they say."""

import importlib.util
from pathlib import Path

import pytest

from fxcompress.policies import read

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_quickstart(capsys):
    spec = importlib.util.spec_from_file_location("quickstart", EXAMPLES / "quickstart.py")
    assert spec is not None
    assert spec.loader is not None
    quickstart = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quickstart)
    kept = quickstart.main(epochs=3)
    assert kept["float32"] > 0.9
    assert kept["int8"] == pytest.approx(kept["float32"], abs=0.01)
    assert kept["mixed in ONNX Runtime"] == pytest.approx(kept["float32"], abs=0.03)
    assert "needs" in capsys.readouterr().out


def test_policies_are_valid():
    found = sorted((EXAMPLES / "policies").glob("*.yaml"))
    assert [path.name for path in found] == ["digits-mixed.yaml"]
    for path in found:
        assert read(path).search is not None
