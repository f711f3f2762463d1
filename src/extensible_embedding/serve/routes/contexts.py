"""Contexts by REST: create from text or from a file, append, list, show, delete, usage.

In: JSON, or a form with a file, which goes to the disk while it comes. Out: what is kept. An answer
of 201 or 200 says that it is on the disk.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, File, Form, Query, Request, UploadFile

from ...errors import InputError
from ...text import Document, read_document
from ..contexts import Kept
from ..errors import ApiError
from ..schema import (
    ContextList,
    ContextObject,
    ContextText,
    Deleted,
    MoreText,
    Name,
    NewContext,
    ProgressObject,
    UsageObject,
)
from .common import ClientOf, ServiceOf, errors_of, note, while_there

router = APIRouter(prefix="/v1", tags=["contexts"])
MAX_TEXT_BYTES = 1 << 20
"""Of a context's text, in one answer."""
_MAX_NAME_BYTES = 150
"""Of a file, and of the context that is named like it."""
_ODD = re.compile(r"[^\w.() -]+")


@router.get("/contexts", responses=errors_of())
async def list_contexts(
    client: ClientOf,
    service: ServiceOf,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[str, Query(max_length=200, description="A name; those after it.")] = "",
) -> ContextList:
    """Lists contexts by name."""
    rest = [each for each in await service.library.all(client) if each.name > after]
    return ContextList(data=[_object(each) for each in rest[:limit]], has_more=len(rest) > limit)


@router.post("/contexts", status_code=201, responses=errors_of(409, 507))
async def create_context(
    request: Request, body: NewContext, client: ClientOf, service: ServiceOf
) -> ContextObject:
    """Keeps a text as a context."""
    work = service.library.add(
        client,
        body.name,
        body.text,
        title=body.title,
        metadata=body.metadata,
        replace=body.replace,
    )
    return _noted(request, await while_there(request, work))


@router.post("/contexts/files", status_code=201, responses=errors_of(409, 507))
async def upload_context(
    request: Request,
    client: ClientOf,
    service: ServiceOf,
    file: Annotated[
        UploadFile, File(description="Text, HTML, EPUB, PDF, DOCX or code; at most as large.")
    ],
    name: Annotated[str, Form(max_length=200, description="By default the file's.")] = "",
    title: Annotated[str, Form(max_length=500, description="By default the file's own.")] = "",
    replace: Annotated[bool, Form(description="Take the place of one of that name.")] = False,
) -> ContextObject:
    """Keeps the text of a file as a context."""
    file_name = _file_name(file.filename or "")
    parsing = service.parsing.run(partial(_document, file, file_name))
    document = await while_there(request, parsing)
    work = service.library.add(
        client,
        name or Path(file_name).stem,
        document.text,
        title=title or document.title,
        replace=replace,
    )
    return _noted(request, await while_there(request, work))


@router.get("/contexts/{name}", responses=errors_of(404))
async def show_context(name: Name, client: ClientOf, service: ServiceOf) -> ContextObject:
    """Shows a context."""
    return _object(await service.library.show(client, name))


@router.get("/contexts/{name}/text", responses=errors_of(404, 409))
async def show_text(
    name: Name,
    client: ClientOf,
    service: ServiceOf,
    start_byte: Annotated[int, Query(ge=0, le=1 << 50)] = 0,
    num_bytes: Annotated[int, Query(ge=4, le=MAX_TEXT_BYTES)] = MAX_TEXT_BYTES,
) -> ContextText:
    """Shows a part of a context's text, by whole characters."""
    part = await service.library.text(client, name, start_byte, num_bytes)
    return ContextText(name=name, **dataclasses.asdict(part))


@router.post("/contexts/{name}/append", responses=errors_of(404, 409, 507))
async def append_to_context(
    request: Request, name: Name, body: MoreText, client: ClientOf, service: ServiceOf
) -> ContextObject:
    """Goes on with a context: its text grows, and only what is new is read."""
    kept = await while_there(request, service.library.append(client, name, body.text))
    return _noted(request, kept)


@router.delete("/contexts/{name}", responses=errors_of(404, 507))
async def delete_context(name: Name, client: ClientOf, service: ServiceOf) -> Deleted:
    """Deletes a context."""
    await service.library.delete(client, name)
    return Deleted(name=name)


@router.get("/progress", responses=errors_of())
async def progress(client: ClientOf, service: ServiceOf) -> ProgressObject:
    """Says how far the text is that becomes rows now, if the key sent it."""
    done, total = service.embedding.progress_of(client.name)
    return ProgressObject(done=done, total=total, waiting=max(0, service.embedding.jobs - 1))


@router.get("/usage", responses=errors_of())
async def usage(client: ClientOf, service: ServiceOf) -> UsageObject:
    """Says what the key keeps."""
    found = await service.library.usage(client)
    return UsageObject(
        contexts=found.contexts,
        max_contexts=found.max_contexts,
        tokens=found.tokens,
        rows=found.rows,
        text_bytes=found.text_bytes,
    )


def _file_name(given: str) -> str:
    """A name that a file can have here, with the ending of the given one."""
    end = _ODD.sub("_", Path(given).name).encode()[-_MAX_NAME_BYTES:]
    return end.decode(errors="ignore").strip(". ") or "document"


def _document(file: UploadFile, file_name: str) -> Document:
    """The text of an uploaded file."""
    with tempfile.TemporaryDirectory(prefix="extensible-") as folder:
        path = Path(folder) / file_name
        with path.open("wb") as copy:
            shutil.copyfileobj(file.file, copy)
        try:
            return read_document(path)
        except InputError as error:
            told = str(error).replace(f"{folder}/", "")
            raise ApiError(400, told, code="unreadable_file", param="file") from error


def _object(kept: Kept) -> ContextObject:
    manifest = kept.manifest
    return ContextObject(
        name=kept.name,
        title=manifest.title,
        metadata=manifest.metadata,
        tokens=manifest.num_tokens,
        rows=manifest.num_rows,
        k=manifest.settings.k,
        text_bytes=manifest.text_bytes,
        created=manifest.created,
        changed=manifest.changed,
        shared=kept.shared,
    )


def _noted(request: Request, kept: Kept) -> ContextObject:
    note(request, context_tokens=kept.manifest.num_tokens)
    return _object(kept)
