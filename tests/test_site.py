"""The site is built from README.md, CHANGELOG.md and docs/ without a complaint, and its pages hold together."""

from __future__ import annotations

import io
import logging
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

for needed in ("mkdocs", "material", "math_core"):
    pytest.importorskip(needed, reason=f'needs {needed}: pip install ".[site]"')

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not (ROOT / "mkdocs.yml").exists(), reason="needs a checkout")


def build(root: Path, output: Path) -> str:
    """What mkdocs complained of, as with --strict; an empty text where there is a site in the folder now."""
    from mkdocs.commands.build import build as build_site
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort

    complaints = io.StringIO()
    handler = logging.StreamHandler(complaints)
    logging.getLogger("mkdocs").addHandler(handler)
    try:
        build_site(load_config(str(root / "mkdocs.yml"), strict=True, site_dir=str(output)))
    except Abort:
        return complaints.getvalue()
    finally:
        logging.getLogger("mkdocs").removeHandler(handler)
    return ""


class Page(HTMLParser):
    """The ids of a page; where it leads to; and what it needs to be shown."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.needs: list[str] = []
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.ids.add(values.get("id", ""))
        self.links += [values[name] for name in ("href", "src", "srcset") if name in values]
        self.needs += [values[name] for name in ("src", "srcset") if name in values]
        self.needs += [values["href"]] if tag == "link" and values.get("rel") == "stylesheet" else []


# ---- The site ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    assert build(ROOT, folder) == ""
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {file: Page(file) for file in site.glob("*.html") if file.name != "404.html"}


def test_every_page_is_there(site, pages):
    expected = {"index", "changelog", "examples", *(file.stem for file in (ROOT / "docs").glob("*.md"))}
    assert {file.stem for file in pages} == expected


def test_every_link_leads_somewhere(pages):
    for file, page in pages.items():
        for link in page.links:
            target, anchor = map(unquote, urldefrag(link))
            if not re.match(r"\w+:", target):
                path = file.parent / target if target else file
                assert path.is_file(), f"{file.name} leads to {link}, which is not there"
                assert not anchor or path.suffix != ".html" or anchor in pages[path].ids | {"__skip"}, (file.name, link)


def test_nothing_is_fetched_from_elsewhere(pages):
    for file, page in pages.items():
        assert [need for need in page.needs if re.match(r"\w+:|//", need) and not need.startswith("data:")] == [], file


def test_lists_tables_and_formulas_are_more_than_text(pages):
    """What GitHub shows as such, Python's Markdown may take for words: a list that follows a line of text, say."""
    for file in pages:
        for text in re.findall(r"<p>(.*?)</p>", file.read_text(), re.DOTALL):
            words = re.sub(r"<code>.*?</code>", "", text, flags=re.DOTALL)
            assert not re.search(r"^\s*([-*+|] |\d+\. |\|)|\$\$|\\[(\[]", words, re.MULTILINE), f"{file.name}: {text}"


# ---- A small one, with something wrong in it -----------------------------------------------------------------------


@pytest.fixture
def small(tmp_path) -> Path:
    """A repository of four pages and two files, under this one's mkdocs.yml, but for its navigation, and hooks."""
    root = tmp_path / "repository"
    texts = {
        "README.md": "# Home\n\n[a page](docs/training.md#one--two) ![a figure](docs/figure.png)\n\n"
        '<img src="docs/figure.png">',
        "CHANGELOG.md": "# Changes\n\n[home](README.md)",
        "examples/README.md": "# Examples\n\n[training](../docs/training.md)",
        "docs/training.md": "# Training\n\n## One & two\n\n[home](../README.md#home), [changes](../CHANGELOG.md), "
        "[data](../results/a.json), [a folder](../results/)\n\n$x_i$ costs $5 or $6\n\n$$\n\\frac{1}{2}\n$$\n\n"
        "```math\n\\begin{aligned} a &< b \\end{aligned}\n```",
        "docs/figure.png": "",
        "results/a.json": "{}",
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    settings, own = (ROOT / "mkdocs.yml").read_text(), "nav: [index.md, changelog.md, examples.md, training.md]\n\n"
    (root / "mkdocs.yml").write_text(re.sub(r"^nav:.*\n(?: .*\n)+\n", own, settings, flags=re.MULTILINE))
    shutil.copytree(ROOT / "tools" / "site", root / "tools" / "site")
    return root


def test_links_and_formulas_are_fitted_in(small, tmp_path):
    assert build(small, tmp_path / "site") == ""
    home, training = ((tmp_path / "site" / f"{name}.html").read_text() for name in ("index", "training"))
    assert 'href="training.html#one--two"' in home and home.count('src="figure.png"') == 2
    assert 'href="training.html"' in (tmp_path / "site" / "examples.html").read_text()
    for link in ('href="index.html#home"', 'href="changelog.html"', 'href="results/a.json"', ", a folder</p>"):
        assert link in training
    assert (tmp_path / "site" / "results" / "a.json").read_text() == "{}"
    assert training.count("<math") == 3 and training.count('display="block"') == 2
    assert "<mfrac>" in training and "costs $5 or $6" in training and "arithmatex" not in training


def append(file: Path, text: str) -> None:
    with file.open("a") as end:
        end.write(f"\n\n{text}\n")


def test_links_that_lead_nowhere_end_the_build(small, tmp_path):
    append(small / "README.md", "[none](docs/none.md) [none](docs/training.md#none)")
    append(small / "docs" / "training.md", "[none](../results/none.json)")
    append(small / "docs" / "other.md", "# Not in the navigation")
    complaint = build(small, tmp_path / "site")
    for wrong in ("docs/none.md", "training.md#none", "../results/none.json", "other.md"):
        assert wrong in complaint


def test_a_formula_that_is_none_ends_the_build(small, tmp_path):
    append(small / "docs" / "training.md", "$\\none{x}$")
    assert "training.md: no formula: \\none{x}" in build(small, tmp_path / "site")
