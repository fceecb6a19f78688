"""The report as one HTML file, figures included. Needs the extra ``report``: matplotlib and jinja2."""

from __future__ import annotations

from importlib import resources

from .figures import accuracy_bars, example_grid
from .report import RobustReport


def html_report(report: RobustReport) -> str:
    """A page that needs nothing beside it.

    Raises:
        ImportError: if matplotlib or jinja2 are not installed.
    """
    from jinja2 import Environment, StrictUndefined

    template = (resources.files("adt_fast.evaluation") / "report.html.jinja").read_text()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    has_examples = len(report.examples.get("natural", ())) > 0
    return environment.from_string(template).render(
        report=report,
        bars=accuracy_bars(report),
        grids={name: example_grid(report, name) for name in report.attacks} if has_examples else {},
    )
