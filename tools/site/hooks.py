"""What fits README.md, CHANGELOG.md and docs/*.md into the site as they are (mkdocs.yml).

Links. In the repository a page links to others, and to files outside docs/, by relative paths. On the site the README
is index.md, and the files that it or another page links to are copied beside it, under the path that they have in the
repository. A link to a folder is left as its text.

Formulas, in GitHub's syntax, become MathML when the site is built: browsers draw it themselves, so the site needs no
script and no font from elsewhere, and a formula that is not LaTeX ends the build.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path

from math_core import LatexError, LatexToMathML
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

FROM_ROOT = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "examples.md": "examples/README.md"}
"""Pages whose sources are not in docs/."""

LATEX = LatexToMathML(fancy_error=False)


def on_files(files: Files, config: MkDocsConfig) -> None:
    for name, origin in FROM_ROOT.items():
        files.append(File.generated(config, name, content=(ROOT / origin).read_text()))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    folder = source(page.file.src_uri).parent

    def link(match: re.Match[str]) -> str:
        path = Path(posixpath.normpath(folder / match["target"]))
        if path.is_dir():
            return match["text"]
        if not path.exists():
            return match[0]  # which mkdocs complains of
        target = posixpath.relpath(site_path(path, config, files), posixpath.dirname(page.file.src_uri) or ".")
        return f"[{match['text']}]({target}{match['anchor']})"

    markdown = re.sub(r"\[(?P<text>[^][]*)\]\((?!\w+:)(?P<target>[^)#\s]+)(?P<anchor>#?[^)\s]*)\)", link, markdown)
    return re.sub(r'(?<=(?:src|ref)=")docs/', "", markdown) if page.file.src_uri in FROM_ROOT else markdown


def source(page: str) -> Path:
    """The file that a page of the site is made from."""
    return ROOT / FROM_ROOT.get(page, f"docs/{page}")


def site_path(path: Path, config: MkDocsConfig, files: Files) -> str:
    """Where the site has a file of the repository, which is copied there if it is not."""
    name = path.relative_to(ROOT).as_posix()
    for page, origin in FROM_ROOT.items():
        if name == origin:
            return page
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    if files.get_file_from_path(name) is None:
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return name


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    def formula(match: re.Match[str]) -> str:
        latex, alone = html.unescape(match["latex"]).strip(), match["tag"] == "div"
        try:
            drawn = LATEX.convert_with_local_state(latex, displaystyle=alone)
        except LatexError as error:
            raise PluginError(f"{source(page.file.src_uri).name}: no formula: {latex}: {error}") from None
        return f'<div style="margin: 1em 0; overflow: auto hidden">{drawn}</div>' if alone else drawn

    pattern = r'<(?P<tag>span|div) class="arithmatex">\s*\\[(\[](?P<latex>.*?)\\[)\]]\s*</(?P=tag)>'
    return re.sub(pattern, formula, content, flags=re.DOTALL)
