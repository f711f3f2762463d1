"""Each kind of file is read with its text and title; each bad one is refused with one sentence."""

from __future__ import annotations

import logging
import os
import re
import zipfile
from pathlib import Path
from types import SimpleNamespace

import docx
import pytest
from documents import PACKAGE, edit_zip, make_epub, make_pdf
from pypdf import PdfReader

from extensible_embedding.errors import InputError
from extensible_embedding.text import Document, read_document

PAGE = b"""<!DOCTYPE html>
<html><head><title>A
 page</title><style>p { color: red }</style></head>
<body><h1>Heading</h1><!-- a remark --><script>let x = "<p>no</p>";</script>
<p>One <b>bold</b>
   word.</p><p>Two<br/> lines &amp; a na\xc3\xafve one.
<ul><li>first<li>second</ul>
<pre>def f():
    return 1
</pre>
<table><tr><td>a</td><td>b</td></tr></table>
last</body></html>"""
PAGE_TEXT = """Heading

One bold word.

Two
lines & a na\u00efve one.

first

second

def f():
    return 1

a b

last"""


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def refusal(path: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        read_document(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.rst", "a.py", "a.unheard-of", "a"])
def test_plain_text_is_kept_as_it_is(tmp_path: Path, name: str) -> None:
    text = "# Title\n\n  indented\ttab \u00e9 e\u0301 \U0001f600\n\n\n"
    path = write(tmp_path / name, text.encode())
    assert read_document(path) == Document(title="a", text=text, source=str(path))
    assert read_document(str(path)) == read_document(path)


def test_line_ends_become_lf_and_the_mark_goes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\n\r\ntwo\rthree")
    assert read_document(path).text == "one\n\ntwo\nthree"


@pytest.mark.parametrize("name", ["a.html", "a.HTM", "a.xhtml"])
def test_html_keeps_paragraphs_and_drops_scripts(tmp_path: Path, name: str) -> None:
    document = read_document(write(tmp_path / name, PAGE))
    assert document.text == PAGE_TEXT
    assert document.title == "A page"


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("", "utf-8"),
        ("", "utf-8-sig"),
        ("", "utf-16"),
        ("utf-16", "utf-8"),
        ("iso-8859-1", "cp1252"),
        ("shift_jis", "shift_jis"),
    ],
)
def test_html_in_its_declared_encoding(tmp_path: Path, declared: str, encoding: str) -> None:
    text = "\u3042" if encoding == "shift_jis" else "\u201cna\u00efve\u201d"
    meta = f'<meta charset="{declared}">' if declared else ""
    path = write(tmp_path / "a.html", f"{meta}<p>{text}</p>".encode(encoding))
    assert read_document(path) == Document(title="a", text=text, source=str(path))


def test_html_may_nest_deeply_and_close_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.html", b"<div>" * 3000 + b"x<p>y" + b"<title/><p>z")
    assert read_document(path).text == "x\n\ny\n\nz"


def test_epub_follows_the_spine(tmp_path: Path) -> None:
    document = read_document(make_epub(tmp_path / "book.epub"))
    assert document.text == "beta\n\nText.\n\nalpha\n\nText."
    assert document.title == "An e-book"


def test_pdf(tmp_path: Path) -> None:
    data = make_pdf(["Page one.", "", "Page two."], title="A paper")
    document = read_document(write(tmp_path / "a.pdf", data))
    assert document.text == "Page one.\n\nPage two."
    assert document.title == "A paper"


def test_pdf_without_title_or_with_an_empty_password(tmp_path: Path) -> None:
    document = read_document(write(tmp_path / "paper.pdf", make_pdf(["Hello."], password="")))
    assert document.text == "Hello."
    assert document.title == "paper"


def test_pdf_joins_the_halves_of_a_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.pdf", make_pdf(["x"]))
    page = type(PdfReader(path).pages[0])
    halves, whole = "\ud835\udc65 \ud835", "\U0001d465 \ufffd"
    monkeypatch.setattr(page, "extract_text", lambda self: halves)
    monkeypatch.setattr(PdfReader, "metadata", SimpleNamespace(title=halves))
    document = read_document(path)
    assert (document.title, document.text) == (whole, whole)


@pytest.mark.parametrize("title", ["A report", ""])
def test_docx_keeps_the_order_of_paragraphs_and_tables(tmp_path: Path, title: str) -> None:
    document = docx.Document()
    document.core_properties.title = title
    document.add_paragraph("Before.")
    table = document.add_table(rows=2, cols=2)
    for cell, text in zip(table._cells, ["a", "b", "same", "same"], strict=True):
        cell.text = text
    table.rows[0].cells[0].merge(table.rows[0].cells[1]).text = "merged"
    document.add_paragraph("")
    document.add_paragraph("After.")
    document.save(str(tmp_path / "file.docx"))
    read = read_document(tmp_path / "file.docx")
    assert read.text == "Before.\n\nmerged\n\nsame\tsame\n\nAfter."
    assert read.title == (title or "file")


def test_docx_without_metadata_is_named_after_its_file(tmp_path: Path) -> None:
    document = docx.Document()
    document.add_paragraph("Text.")
    document.save(str(tmp_path / "file.docx"))

    def drop_metadata(name: str, data: bytes) -> bytes | None:
        if name == "_rels/.rels":
            data = data.replace(b"metadata/core-properties", b"metadata/none")
        return data

    assert read_document(edit_zip(tmp_path / "file.docx", drop_metadata)).title == "file"


def test_missing_file(tmp_path: Path) -> None:
    message = refusal(tmp_path / "no.txt")
    assert message == (
        f"A document must be an existing file, but there is no '{tmp_path / 'no.txt'}'; "
        "check the path."
    )


def test_folder(tmp_path: Path) -> None:
    assert f"but '{tmp_path}' is a folder; give one file inside it." in refusal(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_refused_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "must be an ordinary file" in refusal(tmp_path / "pipe")


def test_impossible_path() -> None:
    assert refusal("a\0b").startswith("A document must be")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "no"), "but you may not read"),
        (OSError(5, "Input/output error"), "failed ([Errno 5] Input/output error)"),
    ],
)
def test_unreadable_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, words: str
) -> None:
    def refuse(self: Path) -> bytes:
        raise error

    path = write(tmp_path / "a.txt", b"text")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert words in refusal(path)


@pytest.mark.parametrize("ending", ["txt", "html", "epub", "pdf", "docx"])
def test_empty_file(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a.{ending}", b"")
    assert refusal(path) == f"A document must hold text, but '{path}' is empty; give another file."


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", b" \n\t\r\n"),
        ("b.txt", b"\xef\xbb\xbf"),
        ("a.html", b"<title>Only a title</title><script>x</script>"),
    ],
)
def test_file_without_text(tmp_path: Path, name: str, data: bytes) -> None:
    assert "has none; give another file." in refusal(write(tmp_path / name, data))


def test_pdf_without_text_layer(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "scan.pdf", make_pdf(["", ""])))
    assert "must have a text layer" in message
    assert "`ocrmypdf`" in message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"abc\0def", "is binary (it has NUL characters)"),
        (b"\xff\0\xfe", "is binary (it has NUL bytes)"),
        (b"%PDF-1.7\n", "is a PDF without the ending .pdf"),
        (b"PK\x03\x04", "is a zip archive"),
        (b"{\\rtf1 hello}", "is an RTF file"),
    ],
)
def test_binary_file(tmp_path: Path, data: bytes, words: str) -> None:
    message = refusal(write(tmp_path / "a.txt", data))
    assert words in message
    assert "convert it" in message


def test_invalid_utf8_names_the_offset(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "na\u00efve caf\u00e9".encode("latin1"))
    assert refusal(path) == (
        f"Text must be valid UTF-8, but '{path}' has an invalid byte 0xef at offset 2; "
        "convert it, for instance with `iconv -f LATIN1 -t UTF-8` if it is LATIN1."
    )


def test_the_offset_counts_the_mark(tmp_path: Path) -> None:
    assert "at offset 4;" in refusal(write(tmp_path / "a.txt", b"\xef\xbb\xbfa\xff"))


@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-32"])
def test_other_unicode_encodings_are_named(tmp_path: Path, encoding: str) -> None:
    message = refusal(write(tmp_path / "a.txt", "text".encode(encoding)))
    assert f"starts with the mark of {encoding}" in message
    assert f"`iconv -f {encoding} -t UTF-8`" in message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'<meta charset="shift_jis"><p>\xff</p>', "(shift_jis); save it again as UTF-8."),
        (b"<p>\xff</p>", "Text must be valid UTF-8"),
        (b'<meta charset="klingon"><p>x</p>', "unknown encoding: klingon"),
    ],
)
def test_html_in_a_wrong_encoding(tmp_path: Path, data: bytes, words: str) -> None:
    assert words in refusal(write(tmp_path / "a.html", data))


@pytest.mark.parametrize("ending", ["epub", "pdf", "docx"])
@pytest.mark.parametrize("data", [b"plain text", b"%PDF-1.7\ngarbage", b"PK\x03\x04 garbage"])
def test_damaged_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: str, data: bytes
) -> None:
    message = refusal(write(tmp_path / f"a.{ending}", data))
    assert "is damaged or of another format" in message
    assert message.endswith("; get a sound copy.")
    assert not caplog.records
    assert logging.getLogger("pypdf").level == logging.NOTSET


@pytest.mark.parametrize("ending", ["epub", "pdf", "docx"])
def test_truncated_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    if ending == "epub":
        make_epub(path)
    elif ending == "pdf":
        write(path, make_pdf(["Hello."]))
    else:
        docx.Document().save(str(path))
    refusal(write(path, path.read_bytes()[:200]))


@pytest.mark.parametrize(
    ("package", "words"),
    [
        (PACKAGE.replace('idref="b"', 'idref="gone"'), "lacks 'gone'"),
        (PACKAGE.replace("alpha.xhtml", "gone.xhtml"), "lacks 'OPS/text/gone.xhtml'"),
        (PACKAGE.replace("text/alpha.xhtml", "../../etc/passwd"), "lacks '../etc/passwd'"),
        (PACKAGE.replace("</manifest>", ""), "is damaged or of another format"),
    ],
)
def test_epub_without_a_part_that_it_names(tmp_path: Path, package: str, words: str) -> None:
    assert words in refusal(make_epub(tmp_path / "a.epub", package))


def test_epub_without_a_title_is_named_after_its_file(tmp_path: Path) -> None:
    package = PACKAGE.replace("<dc:title>An e-book</dc:title>", "")
    assert read_document(make_epub(tmp_path / "book.epub", package)).title == "book"


def test_epub_opens_nothing_outside_itself(tmp_path: Path) -> None:
    write(tmp_path / "secret.txt", b"secret")
    entities = f'<!ENTITY out SYSTEM "file://{tmp_path}/secret.txt">'
    package = PACKAGE.replace("<package", f"<!DOCTYPE package [{entities}]><package")
    package = package.replace("An e-book", "A book &out;")
    assert read_document(make_epub(tmp_path / "a.epub", package)).title == "A book"


def test_epub_does_not_unfold_nested_entities(tmp_path: Path) -> None:
    entities = '<!ENTITY l0 "lol">' + "".join(
        f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10)
    )
    package = PACKAGE.replace("<package", f"<!DOCTYPE package [{entities}]><package")
    package = package.replace("An e-book", "A book &l9;")
    assert "entity" in refusal(make_epub(tmp_path / "a.epub", package))


def bomb(path: Path, num_bytes: int) -> Path:
    """Zeros, packed a thousandfold."""
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("zeros", "w", force_zip64=True) as part,
    ):
        for _ in range(num_bytes >> 20):
            part.write(bytes(1 << 20))
    return path


@pytest.mark.parametrize("ending", ["epub", "docx"])
def test_a_zip_bomb_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    path = make_epub(tmp_path / f"a.{ending}")
    if ending == "docx":
        docx.Document().save(str(path))
    monkeypatch.setattr("zipfile.ZipFile.read", None)
    monkeypatch.setattr("extensible_embedding.archive.RATIO_FREE_BYTES", 10 << 20)
    message = refusal(bomb(path, 40 << 20))
    assert "must unpack to at most 200 times the file's own size" in message
    assert "would unpack to 40 MiB" in message
    assert "; convert it" in message
    monkeypatch.setattr("extensible_embedding.archive.MAX_UNPACKED_BYTES", 8 << 20)
    assert "must unpack to at most 8 MiB" in refusal(path)


def test_copy_protected_epub(tmp_path: Path) -> None:
    path = edit_zip(
        make_epub(tmp_path / "a.epub"),
        lambda name, data: b"\x93\0\xf7" if name.endswith("alpha.xhtml") else data,
    )
    assert "(damaged or copy-protected)" in refusal(path)


def test_encrypted_pdf(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "a.pdf", make_pdf(["Hello."], password="secret")))
    assert "must not be encrypted" in message
    assert "`qpdf --decrypt`" in message


def test_epub_page_listed_often_is_read_once(tmp_path: Path) -> None:
    """A small book that lists one page a thousand times must not become an endless text."""
    once = read_document(make_epub(tmp_path / "once.epub")).text
    reference = re.search(r"<itemref [^>]*>", PACKAGE)
    assert reference is not None
    often = PACKAGE.replace(reference[0], reference[0] * 1000)
    assert read_document(make_epub(tmp_path / "often.epub", often)).text == once
