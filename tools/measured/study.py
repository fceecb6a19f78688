"""The paper's experiments at a CPU's size: python -m studies cifar10-cpu."""

from __future__ import annotations

from benchmarks.report import markdown
from studies import paper
from studies.summary import Measured, by_name, differences, mean_and_deviation, spread, titled, values

from .results import Document, machine_words

FILES = ("study-cifar10-cpu.json", "study-cifar10-cpu-epoch-time.json")

_HEADINGS = ("natural", "FGSM", "PGD-20", "PGD-100", "MIM", "C&W", "FeaAttack", "A_rob")
_PAIRS = (
    ("adt-exp", "at-pgd"), ("adt-exp-am, recipe=published,gradient_scale=max_abs", "at-pgd"),
    ("adt-imp-am, recipe=published,gradient_scale=max_abs", "at-pgd"), ("adt-exp-trades", "trades"),
)  # fmt: skip
_COMPARED_UNDER = ("natural", "pgd-20", "A_rob")


def blocks(study: Document, epoch_time: Document) -> dict[str, str]:
    """A table for each of the paper's experiments, and where all was measured."""
    return {
        "accuracies": _accuracies(study),
        "differences": _differences(study),
        "entropy": _entropy(study),
        "strength": _strength(study),
        "curvature": _curvature(study),
        "landscape": _landscape(study),
        "autoattack": _autoattack(study),
        "epoch_time": _epoch_time(epoch_time),
        "machine": machine_words(study, 1),
        "epoch_time_machine": machine_words(epoch_time),
    }


def _accuracies(study: Document) -> str:
    rows = [["method", *_HEADINGS, "seeds"]]
    for name, method, models in titled(by_name(study, "accuracies")):
        theirs = paper.ACCURACIES[method] if ", " not in name else [None] * len(paper.COLUMNS)
        cells = [_beside(values(models, "accuracies", attack), number) for attack, number in zip(paper.COLUMNS, theirs)]
        rows.append([name, *cells, str(len(models))])
    return markdown(rows)


def _differences(study: Document) -> str:
    rows = [["less", "", *(_HEADINGS[paper.COLUMNS.index(attack)] for attack in _COMPARED_UNDER)]]
    for method, other in _PAIRS:
        mine, theirs = (paper.ACCURACIES[name.split(",")[0]] for name in (method, other))
        cells = []
        for attack in _COMPARED_UNDER:
            column = paper.COLUMNS.index(attack)
            found = differences(study, method, other, attack)
            cells.append(f"{_signed(found)} ({mine[column] - theirs[column]:+.1f})" if found else "")
        rows.append([method.replace("recipe=published,", ""), other, *cells])
    return markdown(rows)


def _strength(study: Document) -> str:
    rows = [["model", "PGD-20", "EXP", "EXP-AM", "IMP-AM", "EXP less PGD-20", "seeds"]]
    for name, method, models in titled(by_name(study, "strength")):
        by_attack = [values(models, "strength", attack) for attack in ("pgd-20", "exp", "exp-am", "imp-am")]
        theirs = paper.STRENGTH[method]
        stronger = [exp - pgd for pgd, exp in zip(*by_attack[:2])]
        cells = [_beside(mine, number) for mine, number in zip(by_attack, theirs)]
        rows.append([name, *cells, f"{_signed(stronger)} ({theirs[1] - theirs[0]:+.1f})", str(len(models))])
    return markdown(rows)


def _entropy(study: Document) -> str:
    rows = [["lambda", "natural", "PGD-20", "entropy, nats per element", "seeds"]]
    for models in by_name(study, "entropy").values():
        entropies = [model["entropy"]["entropy_per_element"] for model in models]
        accuracies = [spread(values(models, "entropy", attack)) for attack in ("natural", "pgd-20")]
        rows.append([f"{models[0]['entropy_weight']:g}", *accuracies, spread(entropies, 2), str(len(models))])
    return markdown(rows)


def _curvature(study: Document) -> str:
    found = by_name(study, "curvature")
    rows = [["model", "mean eigenvalue", "its median", "standard model's mean / this", "paper: the same", "seeds"]]
    standard = _mean_eigenvalue(found["standard"])
    for name, method, models in titled(found):
        medians = [model["curvature"]["quantiles"][50] for model in models]
        ratio = standard / _mean_eigenvalue(models)
        theirs = paper.CURVATURE["standard"][0] / paper.CURVATURE[method][0]
        mean = _digits([model["curvature"]["mean"] for model in models])
        rows.append([name, mean, _digits(medians), f"{ratio:.1f}", f"{theirs:.0f}", str(len(models))])
    return markdown(rows)


def _landscape(study: Document) -> str:
    rows = [["model", "loss at the image", "highest within epsilon", "highest in the picture"]]
    for name, _, models in titled(by_name(study, "landscape")):
        one = models[0]["landscape"]
        highest = max(map(max, one["losses"]))
        rows.append([name, *(f"{number:.3g}" for number in (one["at_image"], one["highest_in_ball"], highest))])
    return markdown(rows)


def _autoattack(study: Document) -> str:
    found = by_name(study, "autoattack")
    if not found:
        return "AutoAttack's package was not installed where this was measured; where it is, its numbers stand here."
    rows = [["model", "natural", "PGD-20", "C&W", "AutoAttack", "seeds"]]
    for name, _, models in titled(found):
        attacks = ("natural", "pgd-20", "cw-30", "autoattack")
        cells = [spread(values(models, "autoattack", attack)) for attack in attacks]
        rows.append([name, *cells, str(len(models))])
    return markdown(rows)


def _epoch_time(document: Document) -> str:
    seconds = dict(zip(document["methods"], document["epoch_seconds"]))
    rows = [["method", "seconds an epoch", "times AT-PGD"]]
    for method, time in seconds.items():
        rows.append([method, f"{time:.1f}", f"{time / seconds['at-pgd']:.2f}"])
    return markdown(rows)


def _beside(mine: list[float], theirs: float | None) -> str:
    """Ours, and the paper's in brackets."""
    return spread(mine) + ("" if theirs is None else f" ({theirs:.1f})")


def _signed(numbers: list[float]) -> str:
    return ("+" if mean_and_deviation(numbers)[0] >= 0 else "") + spread(numbers)


def _mean_eigenvalue(models: list[Measured]) -> float:
    return mean_and_deviation([model["curvature"]["mean"] for model in models])[0]


def _digits(numbers: list[float]) -> str:
    mean, deviation = mean_and_deviation(numbers)
    return f"{mean:.3g}" + (f" ± {deviation:.2g}" if len(numbers) > 1 else "")
