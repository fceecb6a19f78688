"""Hostile files by the ten thousand: none crashes, hangs, takes all memory, is executed, or passes for what was saved.

What the files are is in hostile_files.py, which reads each kind in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hostile_files
import pytest

COUNTS = {
    "checkpoint": 1600, "model": 300, "foreign model": 200, "torch zip": 1000, "torch legacy": 250, "pickle": 1400,
    "run": 600, "joint training": 70, "trainer state": 600, "outcomes": 600, "config": 700, "metrics": 700,
    "cifar": 1300, "cifar archive": 300, "svhn": 700,
}  # fmt: skip
"""Of each kind, as many as its cases are quick."""
MILLION = 10**6


Job = tuple[str, int, int]
"""Kind, first case, number of cases."""


def swept(jobs: list[Job], folder: Path) -> list[dict[str, Any]]:
    """What became of them."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, hostile_files.__file__, str(folder)]
    result = subprocess.run(command, input=json.dumps(jobs), env=environment, stdout=subprocess.PIPE, text=True)
    assert result.returncode == 0
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    jobs = [(kind, 0, count) for kind, count in COUNTS.items()]
    return dict(zip(COUNTS, swept(jobs, tmp_path_factory.mktemp("sweep"))))


def told(kind: str, result: dict[str, Any]) -> str:
    """A line about a kind, and one for each deed."""
    deeds: dict[str, Counter[str]] = {}
    for name, count in result["counts"].items():
        deed, _, end = name.rpartition(": ")
        deeds.setdefault(deed, Counter())[end] += count
    lines = [f"{sum(result['counts'].values())} files of the kind {kind!r} in {result['seconds']:.1f} s"]
    lines += [f"    {deed}: " + ", ".join(f"{count} {end}" for end, count in ends.items())
              for deed, ends in sorted(deeds.items())]  # fmt: skip
    return "\n".join(lines)


def test_every_kind_is_swept_and_together_there_are_ten_thousand() -> None:
    assert COUNTS.keys() == hostile_files.KINDS.keys()
    assert sum(COUNTS.values()) >= 10_000


@pytest.mark.parametrize("kind", COUNTS)
def test_hostile_files_are_refused_by_name_or_read_as_they_were_saved(
    kind: str, results: dict[str, dict[str, Any]]
) -> None:
    result = results[kind]
    print(told(kind, result))
    assert not result["findings"], f"case, what was done to the file, what it came to: {result['findings'][:9]}"
    refused = sum(count for name, count in result["counts"].items() if name.endswith(": refused"))
    assert sum(result["counts"].values()) == COUNTS[kind] and refused > COUNTS[kind] // 4, told(kind, result)


@pytest.mark.slow
def test_a_million_hostile_files(tmp_path: Path) -> None:
    """Other cases than those above, of each kind in the same proportions; a shard has some thousands."""
    shards: list[Job] = []
    for kind, share in COUNTS.items():
        total = share * MILLION // sum(COUNTS.values()) + 1
        shards += [(kind, first, min(5000, COUNTS[kind] + total - first))
                   for first in range(COUNTS[kind], COUNTS[kind] + total, 5000)]  # fmt: skip

    workers = os.cpu_count() or 1
    together: dict[str, dict[str, Any]] = {
        kind: {"counts": Counter(), "findings": [], "seconds": 0.0} for kind in COUNTS
    }
    with ThreadPoolExecutor(workers) as pool:
        parts = [(shards[worker::workers], tmp_path / str(worker)) for worker in range(workers)]
        swept_parts = pool.map(swept, *zip(*parts))
    for (jobs, _), part in zip(parts, swept_parts):
        for (kind, _, _), result in zip(jobs, part):
            together[kind]["counts"].update(result["counts"])
            together[kind]["findings"] += result["findings"]
            together[kind]["seconds"] += result["seconds"]
    for kind, result in together.items():
        print(told(kind, result))
    findings = {kind: result["findings"][:20] for kind, result in together.items() if result["findings"]}
    assert not findings, f"case, what was done to the file, what it came to: {findings}"
    assert sum(sum(result["counts"].values()) for result in together.values()) >= MILLION


@pytest.mark.parametrize(
    ("deed", "told"),
    [("os.abort()", "died with status -6"), ("os._exit(3)", "died with status 3"), ("time.sleep(99)", "does not end")],
)
def test_a_case_that_kills_its_process_is_told(deed: str, told: str, tmp_path: Path) -> None:
    """Of a sweep that cannot fail nobody would know what it is worth."""
    program = (
        "import os, sys, time; from pathlib import Path; import hostile_files as h\n"
        "clock = time.monotonic; time.monotonic = lambda: 40 * clock()\n"
        f"h.KINDS['x'] = h.Kind('x', lambda rng: ('nothing', b''), lambda path: {deed})\n"
        "h.SECONDS_A_CASE = 30; h.case_of = lambda name, index, of=h.case_of: ('x', b'')\n"
        "sweep = h.sweep\n"
        "def without_warming_up(name, *rest):\n"
        "    h.create_model = lambda name: 1 / 0\n"
        "    return sweep(name, *rest)\n"
        "h.sweep = without_warming_up\n"
        "print(h.forked('x', 7, 1, Path(sys.argv[1]) / 'sweep')['findings'])"
    )
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}"}
    command = [sys.executable, "-c", program, str(tmp_path)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "'7'" in found.stdout and told in found.stdout, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("read", "found"),
    [
        (lambda path: 1 / 0, "ZeroDivisionError"),
        (lambda path: int("x"), "ValueError that names no file"),
        (lambda path: [None for _ in iter(int, 1)], "hangs"),
        (lambda path: exec("raise ValueError(f'{path} MemoryError')"), "allocates"),
        (lambda path: "other content", "holds something else"),
    ],
    ids=["undocumented", "nameless", "endless", "huge", "wrong"],
)
def test_what_is_wrong_is_found(read: Any, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile_files, "SECONDS_A_CASE", 0.1)
    kind = hostile_files.Kind("case", lambda rng: ("nothing", b""), read, lambda done, value: value == "content")
    assert found in hostile_files.verdict(kind, "nothing", tmp_path / "case")
