"""An EPUB book -> its title and its pages in reading order.

In: the opened archive of a book. Out: the title of its metadata and the bytes of the pages that
its spine lists. Knows nothing of HTML: what a page says is for `text` to find out.

Format: EPUB 3.3, sections 4 (container) and 5 (package document), w3.org/TR/epub-33.
"""

from __future__ import annotations

import posixpath
import zipfile
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

CONTAINER = "META-INF/container.xml"
PAGE_TYPES = frozenset({"application/xhtml+xml", "text/html", "text/x-oeb1-document"})


class MissingPartError(KeyError):
    """The book names a part that it does not contain; `args[0]` is that name."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """One page of a book."""

    name: str
    """Its name in the archive."""
    content: bytes
    """HTML, as it is in the archive."""


def read_book(archive: zipfile.ZipFile) -> tuple[str | None, list[Page]]:
    """Title and pages of a book, in the order of its spine, without the table of contents.

    A page is read once, however often the spine lists it: the standard lists it once, and a small
    file that repeats a page must not become an endless book.

    Raises:
        MissingPartError: the spine names a part that is not there.
        Exception: nearly any other, where the archive is no book.
    """
    container = _parse_xml(archive.read(CONTAINER))
    package_name = next(container.iterfind(".//{*}rootfile")).get("full-path")
    package = _parse_xml(archive.read(package_name))
    items = {item.get("id"): item for item in package.iterfind("{*}manifest/{*}item")}
    pages: dict[str, Page] = {}
    for reference in package.iterfind("{*}spine/{*}itemref"):
        item = items.get(reference.get("idref"))
        if item is None:
            raise MissingPartError(reference.get("idref"))
        if _is_page(item):
            name = _part_name(package_name, item.get("href"))
            pages[name] = pages.get(name) or _read_page(archive, name)
    title = next(package.iterfind("{*}metadata//{*}title"), None)
    return None if title is None else title.text, list(pages.values())


def _parse_xml(data: bytes) -> Any:
    """The root element; a document type is read over, and nothing outside `data` is opened."""
    from lxml import etree

    parser = etree.XMLParser(
        resolve_entities=False, load_dtd=False, no_network=True, huge_tree=False
    )
    return etree.fromstring(data, parser)


def _is_page(item: Any) -> bool:
    # The table of contents ("nav") would only repeat the headings.
    return item.get("media-type") in PAGE_TYPES and "nav" not in item.get("properties", "").split()


def _part_name(package_name: str, href: str) -> str:
    """Name in the archive of an address that is relative to the package document."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(package_name), unquote(href)))


def _read_page(archive: zipfile.ZipFile, name: str) -> Page:
    try:
        return Page(name=name, content=archive.read(name))
    except KeyError:
        raise MissingPartError(name) from None
