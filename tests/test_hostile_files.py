"""Hostile files by the ten thousand: none crashes, hangs, takes all memory, is executed, or passes for what was saved.

What the files are is in hostile_files.py, which reads each kind in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hostile_files
import pytest

COUNTS = {
    "checkpoint": 1500, "model": 300, "foreign model": 100, "torch zip": 800, "torch legacy": 150, "pickle": 1400,
    "run": 450, "resumed run": 40, "best model": 16, "logged tests": 24, "joint training": 50, "trainer state": 400,
    "outcomes": 600, "config": 550, "metrics": 700, "cifar": 1100, "cifar archive": 300, "npz": 1400, "svhn": 700,
}  # fmt: skip
"""Of each kind, as many as its cases are quick."""
MILLION, PARTS = 10**6, 20


Job = tuple[str, int, int]
"""Kind, first case, number of cases."""


def swept(jobs: list[Job], folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of one job after the other, as each ends: the kind, and what became of its files."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, hostile_files.__file__, str(folder)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, env=environment, **pipes) as process:
        process.stdin.write(json.dumps(jobs))
        process.stdin.close()
        yield from ((job[0], json.loads(line)) for job, line in zip(jobs, process.stdout, strict=True))
    assert process.returncode == 0


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    jobs = [(kind, 0, count) for kind, count in COUNTS.items()]
    return dict(swept(jobs, tmp_path_factory.mktemp("sweep")))


def files_in(result: dict[str, Any]) -> int:
    return sum(result["counts"].values())


def told(kind: str, result: dict[str, Any]) -> str:
    """A line about a kind, and one for each deed."""
    deeds: dict[str, Counter[str]] = {}
    for name, count in result["counts"].items():
        deed, _, end = name.rpartition(": ")
        deeds.setdefault(deed, Counter())[end] += count
    lines = [f"{files_in(result):,} files of the kind {kind!r} in {result['seconds']:.1f} s"]
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
    assert files_in(result) == COUNTS[kind] and refused > COUNTS[kind] // 4, told(kind, result)


def jobs_of_part(part: int) -> list[Job]:
    """Of a million other files than those above, in the same proportions, those of a part: some thousands a job."""
    jobs = []
    for kind, share in COUNTS.items():
        total = share * MILLION // sum(COUNTS.values()) + 1
        first, end = (COUNTS[kind] + total * number // PARTS for number in (part - 1, part))
        jobs += [(kind, start, min(2000, end - start)) for start in range(first, end, 2000)]
    return jobs


def test_the_parts_have_a_million_files_together_each_once_and_none_of_those_above() -> None:
    ends = dict(COUNTS)
    for part in range(1, PARTS + 1):
        for kind, first, count in jobs_of_part(part):
            assert first == ends[kind] and count > 0
            ends[kind] += count
    assert sum(ends.values()) - sum(COUNTS.values()) >= MILLION


@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, PARTS + 1), ids=lambda part: f"part-{part}-of-{PARTS}")
def test_a_million_hostile_files(part: int, tmp_path: Path) -> None:
    """``-m slow -s`` shows how far it has come, and with ``-k part-7-of`` it is that part alone."""
    jobs = jobs_of_part(part)
    total = sum(count for _, _, count in jobs)
    workers = os.cpu_count() or 1
    kinds: dict[str, dict[str, Any]] = {kind: {"counts": Counter(), "findings": [], "seconds": 0.0} for kind in COUNTS}

    def work(worker: int) -> None:
        for kind, result in swept(jobs[worker::workers], tmp_path / str(worker)):
            kinds[kind]["counts"].update(result["counts"])
            kinds[kind]["findings"] += result["findings"]
            kinds[kind]["seconds"] += result["seconds"]
            done, found = (sum(map(size, kinds.values())) for size in (files_in, lambda one: len(one["findings"])))
            print(f"part {part} of {PARTS}: {done:,} of {total:,} files, {found} findings", flush=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(workers)))
    for kind, result in kinds.items():
        print(told(kind, result))
    findings = {kind: result["findings"][:20] for kind, result in kinds.items() if result["findings"]}
    assert not findings, f"case, what was done to the file, what it came to: {findings}"
    assert sum(map(files_in, kinds.values())) == total


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
