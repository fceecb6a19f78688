"""docs/reliability.md: tests and files that it names are there, its -k finds some, and its lower bounds are held."""

import re
from pathlib import Path

import named_tests
import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
NAMES = sorted(set(re.findall(r"test_\w+\.py(?:::test_\w+)?", PAGE)))
CHOICES = [(line, choice) for line in PAGE.splitlines() for choice in re.findall(r" -k (\w+)", line)]


@pytest.mark.parametrize("name", NAMES)
def test_every_test_it_names_exists(name):
    assert named_tests.is_there(name)


def test_every_file_it_names_exists():
    files = re.findall(r"(?:tests|benchmarks)/[\w/]+\.\w+", PAGE)
    assert len(files) > 30 and not [file for file in files if not (ROOT / file).exists()]


def test_every_choice_of_tests_chooses_some():
    assert CHOICES
    for line, choice in CHOICES:
        for file in re.findall(r"tests/(test_\w+\.py)", line):
            assert [name for name in named_tests.functions(file) if choice in name], f"{file} -k {choice}"


@pytest.mark.parametrize(
    "claim, file, held",
    [
        ("at least 1,056 cases", "test_operator_accuracy.py", ">= 1056"),
        ("at least 500 each", "test_bad_calls.py", "len(BAD_CALLS) >= 500"),
        ("at least 500 each", "test_bad_api_calls.py", "len(BAD_CALLS) >= 500"),
        ("at least 10,000", "test_hostile_files.py", ">= 10_000"),
        ("a million", "test_hostile_files.py", ">= MILLION"),
        ("at least 100 kills", "test_resume.py", "== exact >= 100"),
        ("30 of them in saves", "test_resume.py", "kill_runs(tmp_path, monkeypatch, 70, 30)"),
        ("at 10^9 draws", "test_noise_distribution.py", "result.n == 10**9"),
        ("at 10^7 draws", "test_noise_distribution.py", "N = 10_000_000"),
    ],
)
def test_its_lower_bounds_are_held_by_tests(claim, file, held):
    assert claim in PAGE and held in (ROOT / "tests" / file).read_text()
