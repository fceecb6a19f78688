"""docs/contributing.md: the stations of an operator are where it says, and the method that it names trains.

That its examples run is in tests/test_docs_examples.py, that its layers are those of the code in tests/test_layers.py.
"""

import re
from pathlib import Path

import pytest
import torch
from plain_adt import TinyClassifier, tiny_batch

from adt_fast import Trainer
from adt_fast.methods import create_method, registry

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "contributing.md").read_text()
STATIONS = re.findall(r"^\| ((?:\w+/)+[\w.]+) \| (.*?): ", PAGE, re.MULTILINE)


@pytest.mark.parametrize("file, names", STATIONS, ids=[file for file, _ in STATIONS])
def test_the_names_of_a_station_are_in_its_file(file, names):
    text = (ROOT / file).read_text()
    assert re.findall(r"`(\w+)`", names) and not [
        name for name in re.findall(r"`(\w+)`", names) if not re.search(rf"\b{name}\b", text)
    ]


def test_a_native_operator_has_a_station_wherever_it_is_named():
    """In the sources; of the tests and benchmarks those that go through all operators."""
    named = {
        str(path.relative_to(ROOT))
        for folder in ("csrc", "adt_fast")
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix in (".h", ".cpp", ".cu", ".py") and re.search(r"(?<![a-z]_)\blinf_step\b\W", path.read_text())
    }
    assert named <= {file for file, _ in STATIONS}


def test_the_method_it_names_trains(monkeypatch):
    line = re.search(r"^(MethodSpec\(.*\)),$", PAGE, re.MULTILINE)[1]
    spec = eval(line, vars(registry))
    monkeypatch.setitem(registry._METHODS, spec.name, spec)
    model, (images, labels) = TinyClassifier(), tiny_batch()
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), create_method(spec.name, model, steps=2))
    before = [parameter.clone() for parameter in model.parameters()]
    trainer.step(images, labels)
    assert not all(map(torch.equal, before, model.parameters()))
