"""benchmarks.digits: it measures what the pages say of the digits, and its tables have it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

# At the end, so that an installed adt_fast is the one tested.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import digits


@pytest.fixture
def threads():
    """As many afterwards as before."""
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.mark.usefixtures("threads")
def test_it_measures_and_writes_what_the_tables_need(tmp_path, capsys, monkeypatch):
    measure = digits.measure
    monkeypatch.setattr(digits, "measure", lambda: measure(epochs=1, train_limit=32, test_limit=8))
    digits.main(["--output", str(tmp_path / "digits.json")])
    document = json.loads((tmp_path / "digits.json").read_text())
    assert document["machine"]["adt_fast"]["threads"] == 1 and document["test_images"] == 8
    assert document["settings"]["epochs"] == 1
    tables = (digits.entropy_table, digits.convergence_table, digits.loss_table)
    assert capsys.readouterr().out == "".join(f"{table(document)}\n\n" for table in tables)
    assert [point["entropy_weight"] for point in document["entropy_sweep"]["points"]] == [0, 0.001, 0.01, 0.1, 1]
    assert all(len(losses) == 101 for losses in document["convergence"]["losses"])
    for accuracies in document["loss_forms"].values():
        assert {name: len(values) for name, values in accuracies.items()} == {digits.OURS: 3, digits.TORCHS: 3}


def test_how_far_losses_are_from_the_last_one():
    document = {"convergence": {"losses": [[9.0, 2.2, 1.9, 2.0], [9.0, 1.0, 1.05, 1.0]]}}
    assert digits.largest_after(document, 2) == pytest.approx(0.05)
    assert digits.largest_after(document, 1) == pytest.approx(0.1)
