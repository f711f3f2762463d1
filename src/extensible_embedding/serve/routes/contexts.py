"""Contexts by REST: create from text or from a file, append, list, show, delete, usage.

In: JSON, or a form with a file, which goes to the disk while it comes. Out: what is kept. An answer
of 201 or 200 says that it is on the disk. A text or file for which there is no place is refused
before it comes.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, File, Form, Query, Request, UploadFile

from ..contexts import Kept
from ..parsing import file_name
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
from .places import embedder_place, parser_place, route_with_place

_at = partial(APIRouter, prefix="/v1", tags=["contexts"])
router = _at()
texts = _at(route_class=route_with_place(embedder_place))
files = _at(route_class=route_with_place(parser_place))
routers = (router, texts, files)
MAX_TEXT_BYTES = 1 << 20
"""Of a context's text, in one answer."""


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


@texts.post("/contexts", status_code=201, responses=errors_of(409, 507))
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


@files.post("/contexts/files", status_code=201, responses=errors_of(409, 507))
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
    given = file_name(file.filename or "")
    document = await while_there(request, service.parsing.upload(file.file, given, client))
    work = service.library.add(
        client,
        name or Path(given).stem,
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


@texts.post("/contexts/{name}/append", responses=errors_of(404, 409, 507))
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
        max_text_bytes=found.max_text_bytes,
    )


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
