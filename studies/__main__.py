"""``python -m studies PLAN``: trains, measures, and writes the results."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from adt_fast._runs.machine import describe_machine
from adt_fast.analysis import epoch_times
from benchmarks.arguments import positive
from tools.measured import RESULTS, write_pages

from .figures import write_figures
from .plan import MEASUREMENTS, Plan, load_plan, shared_config
from .store import ModelFolder, without_places, write_json
from .training import carry_out, gathered

FIGURES = Path(__file__).parents[1] / "docs" / "images"


def main(arguments: Sequence[str] | None = None) -> None:
    """Carries out a plan from the command line."""
    options = _parser().parse_args(arguments)
    plan = load_plan(options.plan)
    kinds = tuple(options.only or MEASUREMENTS)
    work, data_dir = options.work / plan.name, options.data_dir
    tasks = list(plan.tasks(kinds))
    for run, _ in tasks:
        run.config(data_dir, work).resolved()  # all of them before the first training
    file, times = (options.output / f"study-{plan.name}{what}.json" for what in ("", "-epoch-time"))
    threads = max(1, torch.get_num_threads() // options.jobs)
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(carry_out, *task, work, data_dir, threads) for task in tasks]
        for number, finished in enumerate(as_completed(waiting), 1):
            outcome = finished.exception() or finished.result()  # one that fails does not stop the others
            print(f"{number}/{len(waiting)} {outcome}", flush=True)
            write_json(file, results(plan, work))
    if failed := [task.exception() for task in waiting if task.exception()]:
        raise failed[0]
    if options.epoch_time:
        write_json(times, _epoch_time(plan, data_dir))
    epoch_time = json.loads(times.read_text()) if times.exists() else None
    for path in write_figures(json.loads(file.read_text()), epoch_time, options.figures):
        print(f"drew {path}")
    for picture in pictures(plan, work):
        shutil.copy(picture, options.figures / "distribution.png")
    if options.output == RESULTS:
        write_pages()


def results(plan: Plan, work: Path) -> dict[str, Any]:
    """All that is known of the plan's models."""
    runs = [found for task in plan.tasks() if (found := gathered(*task, work)) is not None]
    device = next(run.config(None, work).resolved().device for run, _ in plan.tasks())
    return {"plan": plan.document, "machine": describe_machine(torch.device(device)), "runs": runs}


def pictures(plan: Plan, work: Path) -> Iterator[Path]:
    """The pictures of learned distributions, which were drawn as they were measured."""
    for run, measurements in plan.tasks(("distribution",)):
        for one in measurements:
            path = ModelFolder(work, run).file(one, "picture") / "figure.png"
            if path.exists():
                yield path


def _epoch_time(plan: Plan, data_dir: Path | None) -> dict[str, Any]:
    """A timing, so it has the machine to itself."""
    config = shared_config(plan.document["training"], data_dir)
    document = epoch_times(config, plan.document["epoch_time"]["methods"]).to_dict()
    return document | {"settings": without_places(document["settings"])}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m studies", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("plan", help="a file of studies/plans/ by its name, or any other by its path")
    add("--data-dir", type=Path, metavar="DIR", help="folder with the data set's published files")
    add("--work", type=Path, default=Path("runs/studies"), metavar="DIR", help="where models and measurements are kept")
    add("--output", type=Path, default=RESULTS, metavar="DIR", help="where the numbers go")
    add("--figures", type=Path, default=FIGURES, metavar="DIR", help="where the figures go")
    add("--only", nargs="+", choices=MEASUREMENTS, metavar="KIND", help=f"of {', '.join(MEASUREMENTS)}; default: all")
    add("--jobs", type=positive, default=1, help="models at a time, which share the threads")
    add("--epoch-time", action="store_true", help="time an epoch of each method, too; nothing else must run then")
    return parser


if __name__ == "__main__":
    main()
