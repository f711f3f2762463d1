"""A file -> its text.

In: the path of a text, HTML, EPUB, PDF or DOCX file. Out: a `Document`, whose text has LF line ends
and no byte order mark; Unicode is not normalised. Knows nothing of tokens or models, does not
recognise scans and guesses no encoding: what it cannot read exactly it refuses.

The library of a format is imported by the function that uses it, so that importing the package
stays cheap.
"""

from __future__ import annotations

import codecs
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .archive import open_archive
from .epub import MissingPartError, Page, read_book
from .errors import InputError

if TYPE_CHECKING:
    from bs4 import Tag
    from pypdf import PdfReader

# UTF-32 goes first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_BINARY_STARTS = (
    (b"%PDF-", "a PDF without the ending .pdf"),
    (b"PK\x03\x04", "a zip archive (as are .docx, .epub and .odt)"),
    (b"{\\rtf", "an RTF file"),
    (b"\xd0\xcf\x11\xe0", "an old Microsoft Office file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"GIF8", "an image"),
)
_BLOCKS = frozenset(
    {"address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details"}
    | {"dialog", "div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form"}
    | {"h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "html", "legend", "li", "main", "nav"}
    | {"ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul"}
)
_CELLS = frozenset({"td", "th"})
_HIDDEN = frozenset({"head", "noscript", "script", "style", "template", "title"})
_SPACES = re.compile(r"[ \t\n\r\f]+")
_DOCX_DEFAULT_TITLE = "Word Document"  # what python-docx makes up for a file without metadata


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text and where it came from."""

    title: str
    """From the file's metadata where its format has such, else the file's name without ending."""
    text: str
    """Never empty; paragraphs of converted formats are separated by a blank line."""
    source: str
    """The path as given."""


def read_document(path: str | Path) -> Document:
    """Read a file; the ending chooses the format, and any unknown one means UTF-8 text.

    Raises:
        InputError: The file is missing, unreadable, empty, binary, damaged or not UTF-8.
    """
    path = Path(path)
    data = _read_bytes(path)
    if not data:
        raise InputError(f"A document must hold text, but '{path}' is empty; give another file.")
    reader = _READERS.get(path.suffix.lower(), _read_plain)
    title, text = reader(path, data)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise InputError(_no_text(path))
    return Document(title=_one_line(title or "") or _whole(path.stem), text=text, source=str(path))


def _read_bytes(path: Path) -> bytes:
    try:
        _check_ordinary(path)
        return path.read_bytes()
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(
            f"A document must be an existing file, but there is no '{path}'; check the path."
        ) from None
    except PermissionError:
        raise InputError(
            f"A document must be readable, but you may not read '{path}'; "
            f"change its permissions, for instance with `chmod u+r`."
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"A document must be readable, but reading '{path}' failed ({error}); "
            f"check the path and the disk."
        ) from error


def _check_ordinary(path: Path) -> None:
    if path.is_dir():
        raise InputError(
            f"A document must be a file, but '{path}' is a folder; give one file inside it."
        )
    # A named pipe or a device could keep us reading for ever.
    if path.exists() and not path.is_file():
        raise InputError(
            f"A document must be an ordinary file, but '{path}' is not; save it to one first."
        )


def _no_text(path: Path) -> str:
    if path.suffix.lower() == ".pdf":
        return (
            f"A PDF must have a text layer, but '{path}' has none (it may be a scan); "
            f"recognise its text first, for instance with `ocrmypdf`."
        )
    return f"A document must hold text, but '{path}' has none; give another file."


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _read_plain(path: Path, data: bytes) -> tuple[None, str]:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            raise InputError(_not_utf8(path, f"starts with the mark of {encoding}", encoding))
    for start, kind in _BINARY_STARTS:
        if data.startswith(start):
            raise InputError(_not_text(path, f"is {kind}"))
    return None, _decode(path, data, "utf-8")


def _decode(path: Path, data: bytes, encoding: str) -> str:
    """Decode strictly: a wrong character would go unnoticed, a refused file does not."""
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        what = f"has an invalid byte 0x{data[error.start]:02x} at offset {error.start}"
        raise InputError(_undecodable(path, data, encoding, what)) from None
    if "\0" in text:
        raise InputError(_not_text(path, "is binary (it has NUL characters)"))
    return text


def _undecodable(path: Path, data: bytes, encoding: str, what: str) -> str:
    if b"\0" in data:
        return _not_text(path, "is binary (it has NUL bytes)")
    if encoding == "utf-8":
        return _not_utf8(path, what, "LATIN1")
    return (
        f"A page must be valid in the encoding that it declares, but '{path}' {what} "
        f"({encoding}); save it again as UTF-8."
    )


def _not_utf8(path: Path, what: str, encoding: str) -> str:
    return (
        f"Text must be valid UTF-8, but '{path}' {what}; convert it, "
        f"for instance with `iconv -f {encoding} -t UTF-8` if it is {encoding}."
    )


def _not_text(path: Path, what: str) -> str:
    return (
        f"Documents are text, .html, .epub, .pdf or .docx files, but '{path}' {what}; "
        f"convert it to one of these or mend its ending."
    )


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a format's library raises into one sentence, and keep its warnings quiet."""
    logger = logging.getLogger("pypdf")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (InputError, MemoryError):
        raise
    # A damaged file can make these libraries raise nearly anything, KeyError and TypeError too.
    except Exception as error:
        raise InputError(
            f"A {path.suffix} file must be a readable {kind}, but '{path}' is damaged or of "
            f"another format ({type(error).__name__}: {_one_line(str(error))}); get a sound copy."
        ) from error
    finally:
        logger.setLevel(level)


def _read_html(path: Path, data: bytes) -> tuple[str | None, str]:
    with _reading(path, "HTML page"):
        return _parse_html(path, data)


def _parse_html(path: Path, data: bytes) -> tuple[str | None, str]:
    from bs4 import BeautifulSoup

    # Unlike lxml's HTML parser, this one takes `<title/>` as XHTML does: opened and closed.
    soup = BeautifulSoup(_decode(path, data, _html_encoding(data)), "html.parser")
    title = soup.title.get_text() if soup.title else None
    return title, "\n\n".join(filter(None, _paragraphs(soup)))


def _html_encoding(data: bytes) -> str:
    """The encoding of a page: by its mark, else as declared, else UTF-8."""
    from bs4.dammit import EncodingDetector

    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    if data.startswith(codecs.BOM_UTF8):
        return "utf-8"
    declared = EncodingDetector.find_declared_encoding(data, is_html=True) or "utf-8"
    name = codecs.lookup(declared).name
    if name.startswith("utf-16"):  # read as ASCII just now, so it cannot be
        return "utf-8"
    # HTML has "Latin-1" and "ASCII" mean Windows-1252 (encoding.spec.whatwg.org).
    return "cp1252" if name in ("iso8859-1", "ascii") else name


def _paragraphs(root: Tag) -> Iterator[str]:
    """The text between the edges of block elements; may yield empty strings."""
    from bs4.element import NavigableString, PreformattedString, Tag

    # Our own stack, since a page may nest deeper than Python's; None marks the end of a block.
    stack: list[Any] = [root]
    pieces: list[str] = []
    while stack:
        node = stack.pop()
        if node is None or (isinstance(node, Tag) and node.name in _BLOCKS):
            yield _join_pieces(pieces)
            pieces.clear()
        if isinstance(node, Tag):
            if node.name == "pre":
                yield _preformatted(node)
            elif node.name not in _HIDDEN:
                pieces.append(_gap(node.name))
                stack.extend([None] if node.name in _BLOCKS else [])
                stack.extend(reversed(node.contents))
        elif isinstance(node, NavigableString) and not isinstance(node, PreformattedString):
            pieces.append(_SPACES.sub(" ", node))
    yield _join_pieces(pieces)


def _gap(name: str) -> str:
    return "\n" if name == "br" else " " if name in _CELLS else ""


def _join_pieces(pieces: list[str]) -> str:
    lines = "".join(pieces).split("\n")
    return "\n".join(re.sub(" {2,}", " ", line).strip(" ") for line in lines).strip("\n")


def _preformatted(tag: Tag) -> str:
    for line_break in tag.find_all("br"):
        line_break.replace_with("\n")
    return tag.get_text().strip("\r\n")


def _read_epub(path: Path, data: bytes) -> tuple[str | None, str]:
    with _reading(path, "EPUB book"):
        try:
            title, pages = read_book(open_archive(path, data))
        except MissingPartError as error:
            raise InputError(
                f"An EPUB book must contain every part of its spine, but '{path}' lacks "
                f"'{error.args[0]}'; get a sound copy."
            ) from None
        return title, "\n\n".join(filter(None, (_epub_page(path, page) for page in pages)))


def _epub_page(path: Path, page: Page) -> str:
    try:
        return _parse_html(path, page.content)[1]
    except InputError:
        raise InputError(
            f"An EPUB book must have pages of text, but '{page.name}' in '{path}' is not "
            f"(damaged or copy-protected); get a copy that is sound and free of protection."
        ) from None


def _read_pdf(path: Path, data: bytes) -> tuple[str | None, str]:
    from pypdf import PdfReader

    with _reading(path, "PDF"):
        reader = PdfReader(BytesIO(data))
        if reader.is_encrypted:
            _unlock(path, reader)
        title = reader.metadata.title if reader.metadata else None
        return _whole(title or ""), "\n\n".join(filter(None, _pdf_pages(reader)))


def _unlock(path: Path, reader: PdfReader) -> None:
    """Open with the empty password, as viewers do; some ciphers need a library we do not have."""
    from pypdf.errors import DependencyError

    try:
        opened = bool(reader.decrypt(""))
    except DependencyError:
        opened = False
    if not opened:
        raise InputError(
            f"A PDF must not be encrypted, but '{path}' is; "
            f"save an open copy, for instance with `qpdf --decrypt`."
        )


def _pdf_pages(reader: PdfReader) -> Iterator[str]:
    for page in reader.pages:
        yield _whole(page.extract_text()).strip()


def _whole(text: str) -> str:
    """The same in whole characters.

    Some PDFs have halves, which no tokenizer or file accepts, and names of files may hold bytes
    that are none.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _read_docx(path: Path, data: bytes) -> tuple[str | None, str]:
    import docx

    with _reading(path, "Word document"):
        open_archive(path, data)
        document = docx.Document(BytesIO(data))
        title: str = document.core_properties.title
        blocks = chain.from_iterable(map(_docx_texts, document.iter_inner_content()))
        text = "\n\n".join(block for block in blocks if block.strip())
        return None if title == _DOCX_DEFAULT_TITLE else title, text


def _docx_texts(block: Any) -> Iterator[str]:
    """The text of a paragraph, or that of each row of a table."""
    from docx.table import Table

    if not isinstance(block, Table):
        yield block.text
        return
    for row in block.rows:
        # A merged cell is listed once for each column that it covers.
        yield "\t".join(cell.text for cell in dict.fromkeys(row.cells))


_READERS: dict[str, Callable[[Path, bytes], tuple[str | None, str]]] = {
    ".docx": _read_docx,
    ".epub": _read_epub,
    ".htm": _read_html,
    ".html": _read_html,
    ".pdf": _read_pdf,
    ".xhtml": _read_html,
}
