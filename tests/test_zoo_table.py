"""The zoo's table and page: what is kept, measured again and written."""

from argparse import Namespace
from dataclasses import replace

import pytest

from benchmarks.zoo import rows
from benchmarks.zoo import run as zoo
from benchmarks.zoo.entries import Entry
from benchmarks.zoo.processes import Finished
from benchmarks.zoo.rows import Row
from benchmarks.zoo.sample import FLOORS, below_floor
from benchmarks.zoo.write import page

GOOD = Row(
    *("torchvision", "classification", "resnet18", "torch 2, torchvision 0"),
    parameters=11_689_512,
    macs=1_186_000_000,
    forward_seconds=0.125,
    capture="equal",
    way="symbolic",
    capture_seconds=0.5,
    macs_share=1.0,
    parameters_share=1.0,
    difference=0.0,
    larger="equal",
    larger_difference=0.0,
    layers=21,
    unseen=0,
    fx="equal",
    fx_seconds=0.25,
    export="equal",
    export_seconds=2.0,
)


def test_rows_are_read_as_they_were_written(tmp_path):
    failed = Row("timm", "vgg", "vgg11", "torch 2, timm 1", capture='Error: "a",\n  b', macs=3)
    rows.write(tmp_path / "zoo.csv", [GOOD])
    rows.append(tmp_path / "zoo.csv", failed)
    assert rows.read(tmp_path / "zoo.csv") == [GOOD, replace(failed, capture='Error: "a", b')]
    assert rows.read(tmp_path / "other.csv") == []


def test_the_page_lists_every_exception_with_its_reason():
    half = replace(GOOD, name="half", macs_share=0.9499, unseen=1, first_unseen="layer1 (Odd): it is | odd")
    fixed = replace(GOOD, name="fixed", larger="Error: axis 0", export="Error")
    failed = Row(*("timm", "vgg", "vgg11", "torch 2, timm 1"), capture="Error: no", fx="no", export="no")
    text = page([GOOD, half, fixed, failed])
    assert "| torchvision | 3 | 100.0% (3) | 66.7% (2) | 100.0% (3) | 66.7% (2) | 66.7% (2) | 0.5 | 2.0 |" in text
    assert "| timm | 1 | 0.0% (0) | 0.0% (0) | 0.0% (0) | 0.0% (0) | 0.0% (0) |  |  |" in text
    assert "| **all** | 4 | 75.0% (3) | 50.0% (2) | 75.0% (3) | 50.0% (2) | 50.0% (2) | 0.5 | 2.0 |" in text
    assert "## Exceptions (3)\n" in text
    reason = r"94.9% of the multiply-accumulates are seen; not layer1 (Odd): it is \| odd"
    assert f"- **torchvision half**: {reason}\n" in text
    assert "- **torchvision fixed**: with another batch size: Error: axis 0\n" in text
    assert "- **timm vgg11**: Error: no\n" in text
    line = "| resnet18 | classification | 11.7 | 1186 | yes | yes | yes | symbolic | 0.5 | 100% | 100% | yes |"
    assert line in text


def test_a_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch):
    def entry(library: str, name: str) -> Entry:
        return Entry(library, "any", name, lambda: pytest.fail("built"))

    measured: list[str] = []

    def measure(wanted, options):
        for one in wanted:
            if one.name == "broken":
                raise KeyboardInterrupt
            measured.append(one.name)
            yield replace(GOOD, library=one.library, name=one.name, versions=zoo.versions(one.library))

    def complete(*names: str, library: str | None = "torch", fresh: bool = False) -> list[str]:
        measured.clear()
        options = Namespace(library=library, fresh=fresh, out=tmp_path)
        zoo._complete(tmp_path / "zoo.csv", [entry("torch", name) for name in names], options)
        return [row.name for row in rows.read(tmp_path / "zoo.csv")]

    monkeypatch.setattr(zoo, "_measure", measure)
    rows.write(tmp_path / "zoo.csv", [replace(GOOD, library="timm", name="other")])
    with pytest.raises(KeyboardInterrupt):
        complete("a", "b", "broken", "c")
    assert complete("a", "b", "d", "c") == ["a", "b", "d", "c", "other"]
    assert measured == ["d", "c"]
    assert complete("a", "c", fresh=True) == ["a", "c", "other"]
    assert measured == ["a", "c"]
    assert complete("a", library=None) == ["a"]
    assert "## torch\n" in (tmp_path / "zoo.md").read_text()
    monkeypatch.setattr(zoo, "versions", lambda library: "newer")
    assert complete("a", library=None) == ["a"]
    assert measured == ["a"]


def test_what_a_process_did_not_live_to_measure_has_the_reason():
    task = Entry("torch", "any", "any", lambda: pytest.fail("built"))
    early = zoo._row(Finished(task, 3.0, {"capture": "capturing", "macs": 5}, "killed by SIGKILL"))
    assert (early.capture, early.macs, early.captured) == ("killed by SIGKILL while capturing", 5, False)
    late = zoo._row(Finished(task, 3.0, {"capture": "equal", "fx": "no", "export": "tracing"}, "time limit of 3 s"))
    assert (late.capture, late.fx, late.export) == ("equal", "no", "time limit of 3 s while tracing")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, ""),
        ({"capture": "Error"}, "torchvision resnet18: Error; with another batch size: equal"),
        ({"larger": ""}, "torchvision resnet18: equal; with another batch size: not run"),
        (
            {"macs_share": 0.99},
            "torchvision resnet18: 99.0% of the multiply-accumulates are seen, at least 100% were",
        ),
    ],
)
def test_a_model_of_the_sample_below_its_floor_is_told(changes, text):
    assert below_floor(replace(GOOD, **changes)) == text


def test_the_sample_is_of_all_libraries():
    assert len(FLOORS) == 20
    assert {library for library, _ in FLOORS} == {"torch", "torchvision", "timm", "transformers", "diffusers"}
