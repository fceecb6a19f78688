"""The files of a result: whole, the same each time, and without matplotlib the data alone."""

import json
from dataclasses import dataclass

import pytest
import torch

from adt_fast.analysis import AnalysisResult


@dataclass(frozen=True, eq=False)
class Example(AnalysisResult):
    values: torch.Tensor
    names: tuple[str, ...] = ("a", "b")

    def table(self):
        return [("name", "value"), *zip(self.names, self.values.tolist())]

    def draw(self, figure):
        axes = figure.subplots()
        axes.plot(self.values.numpy())
        axes.set(xlabel="index", ylabel="value (1)")


@pytest.fixture
def result():
    return Example(torch.tensor([0.1, 1e-9], dtype=torch.float64))


def test_data(result, tmp_path):
    result.save(tmp_path)
    assert json.loads((tmp_path / "data.json").read_text()) == {"values": [0.1, 1e-9], "names": ["a", "b"]}
    assert (tmp_path / "data.csv").read_text() == "name,value\na,0.1\nb,1e-09\n", "to the last digit"


def test_figures(result, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    before = dict(matplotlib.rcParams)
    saved = result.save(tmp_path / "1")
    assert sorted(path.name for path in (tmp_path / "1").iterdir()) == sorted(path.name for path in saved.files)
    assert (tmp_path / "1" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "1" / "figure.pdf").read_bytes().startswith(b"%PDF")
    assert not any(word in (tmp_path / "1" / "figure.pdf").read_bytes() for word in (b"/Type3", b"/CreationDate"))
    again = result.save(tmp_path / "2")
    assert [path.read_bytes() for path in saved.files] == [path.read_bytes() for path in again.files]
    assert dict(matplotlib.rcParams) == before, "the caller's style is his own"
    assert result.plot().axes[0].get_xlabel() == "index"


def test_without_matplotlib(result, tmp_path, no_matplotlib):
    (tmp_path / "figure.png").write_bytes(b"of an older result")
    saved = result.save(tmp_path)
    assert [path.name for path in saved.files] == ["data.json", "data.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.csv", "data.json"]
    assert saved.note == 'figures need matplotlib: pip install "adt_fast[report]"'
    with pytest.raises(ImportError, match=r"adt_fast\[report\]"):
        result.plot()


def test_what_cannot_be_written_leaves_the_folder_as_it_was(tmp_path):
    Example(torch.tensor([1.0, 2.0])).save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="JSON"):
        Example(torch.tensor([1.0, float("nan")])).save(tmp_path)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
