"""progress: items come through, whether their number is known or not, and nothing is written off a terminal."""

import pytest
from torch.utils.data import DataLoader, IterableDataset

from fxcompress.measure.progress import progress, progress_steps


class Stream(IterableDataset):
    """Numbers of which nobody knows how many there are."""

    def __iter__(self):
        return iter(range(5))


@pytest.mark.parametrize(
    ("items", "expected"),
    [([1, 2, 3], 3), ((i for i in range(4)), 4), ([], 0), (DataLoader(Stream(), batch_size=2), 3)],
    ids=["list", "generator", "nothing", "stream"],
)
def test_items_come_through(items, expected, capfd):
    assert len(list(progress(items, "working"))) == expected
    assert capfd.readouterr() == ("", "")


def test_steps(capfd):
    with progress_steps(3, "working") as step:
        for _ in range(3):
            step()
    assert capfd.readouterr() == ("", "")
