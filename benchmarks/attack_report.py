"""Attacks beside those of others: promises kept or not, and tables in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from .attack_contestants import OURS
from .report import markdown

Result = dict[str, Any]  # of one attack
Document = dict[str, Any]  # of benchmarks.attacks

STRENGTH_TARGET = 0.002
"""So far may the accuracy under ours be above that under the strongest of the others."""

SPEED_TARGET = 1.5
"""So many times as long takes the fastest of the others, on a CPU."""


def check_targets(document: Document) -> list[dict[str, Any]]:
    """One entry for each promise that was measured."""
    return list(_checked_targets(document))


def _checked_targets(document: Document) -> Iterator[dict[str, Any]]:
    for result in document["results"]:
        above = result["strength"]["above_lowest_peer"]
        if above is None:
            continue
        yield _target(result, "accuracy above that of the strongest peer", STRENGTH_TARGET, above, at_most=True)
        for timed in result["speed"] if document["settings"]["device"] == "cpu" else ():
            fastest = min(ratio["of_medians"] for ratio in timed["ratios"].values())
            yield _target(result, f"x the fastest peer, {timed['batch']} images", SPEED_TARGET, fastest, at_most=False)


def _target(result: Result, what: str, bound: float, measured: float, *, at_most: bool) -> dict[str, Any]:
    met = measured <= bound if at_most else measured >= bound
    return {"attack": result["attack"], "what": what, "bound": bound, "at_most": at_most, "measured": measured,
            "met": met}


def summary(document: Document) -> str:
    """All tables, with what they show."""
    peers = ", ".join(f"{name} {version}" for name, version in document["peers"].items())
    classifier, settings = document["classifier"], document["settings"]
    threads = "" if settings["threads"] is None else f", threads: {settings['threads']}"
    return "\n\n".join((
        f"{classifier['name']} by {classifier['method']}, {document['images']} images of {classifier['dataset']}, "
        f"natural accuracy {document['natural_accuracy']:.2%}; {document['device_name']}{threads}; {peers}",
        "Accuracy under each attack, in percent, and how far ours is above the lowest of the others, in points:",
        strength_table(document),
        f"Images that only {OURS} breaks / that only the other breaks, with any of the seeds:",
        overlap_table(document),
        "Milliseconds a batch (10th to 90th percentile), and how many times as long the others take (lowest to highest "
        "round):",
        speed_table(document),
        "What is not as it was on a model in train mode with one module in eval mode, after any of the attacks:",
        traces_table(document),
        "Targets:",
        targets_table(document),
    ))  # fmt: skip


def strength_table(document: Document) -> str:
    """One row an attack: mean accuracies, with the spread over seeds, and the difference."""
    names = _contestants(document)
    rows = [["attack", *names, "above lowest peer"]]
    for result in document["results"]:
        found = result["strength"]
        above = found["above_lowest_peer"]
        rows.append([result["attack"], *(_accuracy(found, name) for name in names),
                     "-" if above is None else f"{100 * above:+.2f}"])
    return markdown(rows)


def overlap_table(document: Document) -> str:
    """One row an attack: images that only one of two breaks."""
    peers = [name for name in _contestants(document) if name != OURS]
    rows = [["attack", *peers]]
    for result in document["results"]:
        ours, theirs = result["strength"]["only_ours"], result["strength"]["only_peer"]
        rows.append([result["attack"], *(f"{ours[name]} / {theirs[name]}" if name in ours else "-" for name in peers)])
    return markdown(rows)


def speed_table(document: Document) -> str:
    """One row an attack and a batch size: our time, and ratios."""
    peers = [name for name in _contestants(document) if name != OURS]
    rows = [["attack", "images", f"{OURS}, ms", *(f"x {name}" for name in peers)]]
    for result in document["results"]:
        for timed in result["speed"]:
            ours = timed["timings"][OURS]
            rows.append([
                result["attack"], str(timed["batch"]),
                f"{ours['median_ms']:.4g} ({ours['p10_ms']:.4g}-{ours['p90_ms']:.4g})",
                *(_ratio(timed["ratios"].get(name)) for name in peers),
            ])  # fmt: skip
    return markdown(rows)


def traces_table(document: Document) -> str:
    """One row a contestant: the most that any attack changed."""
    rows = [["contestant", "weights with a gradient", "modules in another mode", "buffers changed",
             "weights with another requires_grad"]]
    for name in _contestants(document):
        found = [result["traces"][name] for result in document["results"] if name in result["traces"]]
        rows.append([name, *(str(max(one[key] for one in found)) for key in found[0])])
    return markdown(rows)


def targets_table(document: Document) -> str:
    """One row a target: bound, measured, met or not met."""
    rows = [["attack", "target", "measured", ""]]
    rows += (
        [target["attack"], f"{'<=' if target['at_most'] else '>='} {target['bound']:g} {target['what']}",
         f"{target['measured']:.4g}", "met" if target["met"] else "NOT MET"]
        for target in document["targets"]
    )  # fmt: skip
    return markdown(rows)


def _contestants(document: Document) -> list[str]:
    return [OURS, *document["settings"]["peers"]]


def _accuracy(found: dict[str, Any], name: str) -> str:
    if name not in found["accuracy"]:
        return "-"
    shares = found["accuracy"][name]
    text = f"{100 * found['mean_accuracy'][name]:.2f}"
    if len(shares) > 1:
        text += f" +- {100 * statistics.stdev(shares):.2f}"
    return text + (f" ({found['invalid'][name]} invalid)" if found["invalid"][name] else "")


def _ratio(found: dict[str, float] | None) -> str:
    return "-" if found is None else f"{found['of_medians']:.2f} ({found['lowest']:.2f}-{found['highest']:.2f})"
