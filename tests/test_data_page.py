"""docs/data.md: its examples run as they are, and its tables list what there is."""

import inspect
import re
import textwrap
from pathlib import Path

import pytest

from adt_fast.data import BatchLoader, dataset_names

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: textwrap.shorten(example.splitlines()[-1], 40))
@pytest.mark.usefixtures("in_a_folder_of_its_own", "one_thread")
def test_every_example_runs(example):
    pytest.importorskip("sklearn")
    exec(compile(example, "docs/data.md", "exec"), {"__name__": "__main__"})


def rows(header):
    """The cells of the table whose header line starts so."""
    lines = PAGE[PAGE.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_every_data_set_has_a_row():
    assert [row[0].strip("`") for row in rows("| name |")] == list(dataset_names())


def test_every_option_has_a_row_with_its_default():
    parameters = inspect.signature(BatchLoader).parameters.values()
    options = {option.name: option.default for option in parameters if option.kind is option.KEYWORD_ONLY}
    listed = {name.strip("`"): default for name, _, default in rows("| option |")}
    assert sorted(listed) == sorted(options)
    for name, default in options.items():
        assert re.match(r"`(.*?)`", listed[name])[1].strip('"') == str(default)
