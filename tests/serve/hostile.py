"""Files that ask too much of whatever reads them."""

from __future__ import annotations


def endless_pdf(pages: int = 1000, depth: int = 8, calls: int = 40) -> bytes:
    """A small PDF of pages that call a form, which calls another so many times, and so on."""
    form = b"<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] "
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b"3 0 R " * pages, pages),
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R "
        b"/Resources << /XObject << /F 5 0 R >> >> >>",
        _stream(b"<< ", b"/F Do"),
    ]
    for number in range(6, 6 + depth):
        uses = b"/Resources << /XObject << /F %d 0 R >> >> " % number
        objects.append(_stream(form + uses, b"/F Do " * calls))
    return _pdf([*objects, _stream(form, b" ")])


def _stream(begin: bytes, content: bytes) -> bytes:
    return begin + b"/Length %d >>\nstream\n%s\nendstream" % (len(content), content)


def _pdf(objects: list[bytes]) -> bytes:
    out, places = b"%PDF-1.7\n", []
    for number, each in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    count = len(objects) + 1
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % count
    tail = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (count, len(out))
    return out + head + table + tail
