"""Hooks of MkDocs: reference pages made from the code, pages that stand outside docs/, and links between all of them.

A file keeps its path in the site, without `docs/` in front; so one rule turns links that work in the repository into links of the site.
The reference takes the place of a comment, `<!-- reference: settings -->`; every build makes it anew, so that it cannot be stale.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from site_reference import REFERENCES

ROOT = Path(__file__).resolve().parents[1]
_HOME = {"README.md": "index.md"}  # the README and the home page say the same, each in its place
_LINK = re.compile(r"(?P<text>!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
_MARK = re.compile(r"^<!-- reference: (\w+) -->$", re.M)
_SHORT = re.compile(r"(?<!<pre>)(?<!</span>)<code>([^<\n]{1,26})</code>")
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.M | re.S)


def outside() -> list[str]:
    """Paths of the files outside docs/ that belong to the site."""
    results = [*ROOT.glob("results/**/*.md"), *ROOT.glob("results/*.html")]
    return ["CHANGELOG.md", "CONTRIBUTING.md", *sorted(each.relative_to(ROOT).as_posix() for each in results)]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/."""
    for path in outside():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Put the reference into its place and turn the repository's links into the site's."""
    home = "docs/" if (ROOT / "docs" / page.file.src_uri).is_file() else ""
    known = {file.src_uri for file in files}
    parts = _CODE.split(_MARK.sub(lambda mark: REFERENCES[mark[1]](), markdown))
    return "".join(part if place % 2 else _relink(part, home + page.file.src_uri, known) for place, part in enumerate(parts))


def on_page_content(html: str, **_: Any) -> str:
    """Mark short names, which a line shall not break behind their hyphens."""
    return _SHORT.sub(r'<code class="short">\1</code>', html)


def _relink(text: str, source: str, known: set[str]) -> str:
    """Text in which links from the file `source` of the repository lead to pages of the site; what has none is named without a link."""

    def new(link: re.Match[str]) -> str:
        path = in_site(posixpath.normpath(posixpath.join(posixpath.dirname(source), link["path"])), known)
        if path is None:
            return link["text"][1:-1]
        here = posixpath.dirname(source.removeprefix("docs/"))
        return f"{link['text']}({posixpath.relpath(path, here or '.')}{link['anchor'] or ''})"

    return _LINK.sub(new, text)


def in_site(path: str, known: set[str]) -> str | None:
    """The page or file of the site that stands for a path of the repository; a folder's is its README; None where there is none."""
    path = path.removeprefix("docs/")
    for each in (_HOME.get(path, path), f"{path}/README.md", f"{posixpath.dirname(path)}/README.md"):
        if each in known:
            return each
    return None
