"""MkDocs calls this at each build: pages are given their numbers, tables and pictures, and nothing is fetched."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

sys.path.insert(0, str(Path(__file__).parent))
import book

PICTURES: dict[str, str] = {}  # a place in a page: what stands there
OUTSIDE = re.compile(
    r"\[([^\]]+)\]\((?:\.\./)+((?:examples|README|CONTRIBUTING|CHANGELOG|benchmarks|src|tests)[^)]*)\)"
)
LOADED = re.compile(r'<(?:script|img|iframe|source)[^>]*\ssrc="(?:https?:)?//|<link[^>]*rel="(?:stylesheet|preconnect)"'
                    r'[^>]*href="(?:https?:)?//|@import url\(|@font-face[^}]*https?://')  # fmt: skip
DRAWING = re.compile(r"^!\[(.+)\]\(([\w./]+\.svg)\)$", re.MULTILINE)
FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    here, language = Path(page.file.abs_src_path).parent, language_of(page)
    stem = re.sub(r"\W", "-", page.file.src_uri.removesuffix(".md"))

    def place(svg: str) -> str:
        name = f"drawn-{stem}-{len(PICTURES)}"
        PICTURES[name] = book.themed(svg, name)
        return f'<figure class="drawn" id="{name}"></figure>'

    try:
        text = book.expanded(markdown, language, place)
        text = DRAWING.sub(lambda m: place(book.relabelled((here / m[2]).read_text(encoding="utf-8"), m[1])), text)
    except Exception as error:
        raise PluginError(f"{page.file.src_uri}: {type(error).__name__}: {error}") from error
    return "".join(part if part.startswith("```") else linked(part) for part in FENCE.split(text))


def language_of(page: Any) -> str:
    return "zh" if page.file.src_uri.startswith("zh/") else "en"


def twin_of(uri: str) -> str:
    """A link to the same chapter in the other language, where there is one."""
    name, other = ("English", uri.removeprefix("zh/")) if uri.startswith("zh/") else ("中文", f"zh/{uri}")
    if not (Path(__file__).parent / other).exists():
        return ""
    way = os.path.relpath(other, os.path.dirname(uri) or ".").removesuffix(".md")
    return f'<a class="twin" href="{way}.html">{name}</a>\n'


def linked(text: str) -> str:
    """Papers by their number at arXiv; files of the repository that are no pages by their names."""
    text = text.replace("<details>", '<details markdown="1">')
    text = re.sub(r"(?<![\[/])arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    return OUTSIDE.sub(r"\1 (`\2`)", text)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    html = re.sub(r"<code>[^<]*</code>", lambda m: m[0].replace(r"\|", "|"), html)  # as tables must write it elsewhere
    return twin_of(page.file.src_uri) + re.sub(
        r'(<figure class="drawn" id="([^"]+)">)(</figure>)', lambda m: m[1] + PICTURES[m[2]] + m[3], html
    )


def on_post_page(output: str, page: Any, **_: Any) -> str:
    if found := LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} would load something from elsewhere: {found[0]}")
    return output.replace('<html lang="en"', f'<html lang="{language_of(page)}"', 1)
