"""docs/operators.md has every operator, with its signature, and an example that compares it with plain PyTorch.

That the examples run is in tests/test_docs_examples.py.
"""

import inspect
import re
from pathlib import Path

import pytest

from adt_fast import ops

PAGE = (Path(__file__).parents[1] / "docs" / "operators.md").read_text()
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL))


def test_every_operator_has_a_section():
    assert sorted(SECTIONS) == sorted(ops.__all__)


def test_the_signatures_are_those_of_the_operators():
    block = re.search(r"```text\n(.*?)```", PAGE, re.DOTALL)[1]
    written = [re.sub(r"\s+", " ", signature) for signature in re.split(r"\n(?! )", block.strip())]
    for signature in written:
        name = signature.partition("(")[0]
        parameters = inspect.signature(getattr(ops, name)).parameters.values()
        bare = inspect.Signature([parameter.replace(annotation=parameter.empty) for parameter in parameters])
        assert signature == f"{name}{bare}".replace("'", '"')
    assert sorted(signature.partition("(")[0] for signature in written) == sorted(ops.__all__)


@pytest.mark.parametrize("name", ops.__all__)
def test_every_section_compares_its_operator(name):
    examples = "".join(re.findall(r"```python\n(.*?)```", SECTIONS[name], re.DOTALL))
    subject = "r[s, b, c" if name == "normal" else f"ops.{name}("  # whose results the examples above have
    assert subject in examples and re.search(r"^ *(same\(|assert )", examples, re.MULTILINE)
