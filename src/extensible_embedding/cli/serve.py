"""`extensible serve` and `extensible mcp`: one server over a reader, an embedder and a store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError, MissingExtraError
from .citing import ExpandOption, parse_expand
from .console import load_embedder, load_reader, note, quiet_libraries
from .options import Models, at_least, with_models
from .stores import KEPT_K, KeptKOption, RowType, RowTypeOption, parse_kept_k, store_to_fill

if TYPE_CHECKING:
    from ..serve.choice import EngineChoice
    from ..serve.keys import Keys
    from ..serve.service import Service
    from ..serve.settings import ServeSettings
    from ..store.store import ContextStore

KEYS = "--keys"
ENGINE_OPTION = "--engine-option"
TRANSFORMERS = "transformers"
StoreToServe = Annotated[
    str,
    typer.Argument(metavar="STORE", help="Folder of the store; made if it is not there."),
]


class LogLevel(str, Enum):
    """What is logged."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


MAX_TEXT = 1024
MaxTextOption = Annotated[
    int,
    typer.Option(
        "--max-text",
        metavar="MIB",
        help="Text that a client keeps in all of its contexts, where its key has no other limit.",
        callback=at_least(1, "--max-text"),
    ),
]


@with_models
def serve(
    store: StoreToServe,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help=f"Address to listen at; any but this machine's own needs {KEYS}.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", help="Port to listen at.", min=0, max=65535)
    ] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(KEYS, metavar="FILE", help="YAML file with the API keys that are accepted."),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            metavar="ENGINE",
            help="What runs the reader: transformers; llama.cpp, for .gguf files; vllm; or, on a "
            "server elsewhere, vllm-server or sglang.",
        ),
    ] = TRANSFORMERS,
    engine_url: Annotated[
        str | None,
        typer.Option("--engine-url", metavar="URL", help="Of vllm-server or sglang."),
    ] = None,
    engine_option: Annotated[
        list[str] | None,
        typer.Option(
            ENGINE_OPTION,
            metavar="KEY=VALUE",
            help="A setting of transformers, llama.cpp or vllm, such as tensor_parallel_size=2; "
            "may be given several times. What can be read as JSON is, else it is text.",
        ),
    ] = None,
    name: Annotated[
        str,
        typer.Option("--name", metavar="NAME", help="What clients call the model."),
    ] = "extensible",
    k: KeptKOption = KEPT_K,
    row_type: RowTypeOption = RowType.BFLOAT16,
    expand: ExpandOption = "auto",
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens",
            metavar="N",
            help="Tokens of an answer where a request does not say.",
            callback=at_least(1, "--max-new-tokens"),
        ),
    ] = 512,
    max_requests: Annotated[
        int,
        typer.Option(
            "--max-requests",
            metavar="N",
            help="Requests at the same time; more are told to come back.",
            callback=at_least(1, "--max-requests"),
        ),
    ] = 256,
    max_body: Annotated[
        int,
        typer.Option(
            "--max-body",
            metavar="MIB",
            help="Size of a request, hence of an uploaded file, where its key has no other limit.",
            callback=at_least(1, "--max-body"),
        ),
    ] = 32,
    max_text: MaxTextOption = MAX_TEXT,
    timeout: Annotated[
        int,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            help="For an answer, from its request to its last token.",
            callback=at_least(1, "--timeout"),
        ),
    ] = 600,
    log_level: Annotated[
        LogLevel, typer.Option("--log-level", metavar="info|warning|error", help="What is logged.")
    ] = LogLevel.INFO,
    *,
    models: Models,
) -> None:
    """Serve answers and contexts to OpenAI's clients.

    Clients send messages, which may be longer than the window, or name contexts of the store, which
    they can also create, grow and delete. Stops at Ctrl-C when the answers that run are done. Each
    request is logged as a line of JSON on stderr. docs/serving.md tells of clients, keys and
    exposing it safely.
    """
    check_installed()
    from ..serve.app import run
    from ..serve.choice import EngineChoice, check_choice
    from ..serve.keys import Keys, read_keys
    from ..serve.logs import set_up
    from ..serve.settings import MIB, Limits, ServeSettings, is_loopback

    settings = ServeSettings(
        model=name,
        k=parse_kept_k(k),
        row_type=row_type.value,
        expand=parse_expand(expand),
        max_new_tokens=max_new_tokens,
        max_requests=max_requests,
        request_timeout_s=timeout,
        limits=Limits(
            max_body_bytes=max_body * MIB,
            max_text_bytes=max_text * MIB,
            max_concurrent=max_requests,
        ),
    )
    if keys is None and not is_loopback(host):
        raise InputError(
            f"A server that other machines can reach has keys, but --host is {host!r} without "
            f"{KEYS}; give a file of keys, or leave --host out."
        )
    known = Keys(limits=settings.limits) if keys is None else read_keys(keys, settings.limits)
    options = parse_engine_options(engine_option or [])
    choice = EngineChoice(name=engine, url=engine_url, options=options)
    check_choice(choice)
    opened = store_to_fill("STORE", store)
    service = _service(opened, known, choice, settings, models)
    set_up(log_level.value)
    run(service, host, port, lambda url: note(f"Serving {service.reader.name} at {url}/v1"))


@with_models
def mcp(store: StoreToServe, max_text: MaxTextOption = MAX_TEXT, *, models: Models) -> None:
    """Give an agent or a desktop assistant tools to keep documents and to ask about them.

    Speaks the Model Context Protocol on stdin and stdout. Its tools: add_document, add_file,
    list_documents, ask. Files are those that you may read yourself.
    """
    check_installed()
    _mcp(store_to_fill("STORE", store), max_text, models)


def _mcp(store: ContextStore, max_text: int, models: Models) -> None:
    import asyncio

    from ..serve.choice import EngineChoice
    from ..serve.keys import Keys
    from ..serve.logs import set_up
    from ..serve.mcp import mcp_server
    from ..serve.settings import MIB, Limits, ServeSettings

    limits = Limits(max_text_bytes=max_text * MIB)
    settings = ServeSettings(k=int(KEPT_K), expand="auto", limits=limits)
    service = _service(store, Keys(limits=limits), EngineChoice(), settings, models)
    set_up("warning")

    async def run() -> None:
        async with service.running():
            await mcp_server(service, files=True).run_stdio_async()

    asyncio.run(run())


@quiet_libraries()
def _service(
    store: ContextStore,
    keys: Keys,
    choice: EngineChoice,
    settings: ServeSettings,
    models: Models,
) -> Service:
    from ..serve.choice import choose_engine
    from ..serve.service import Service

    reader = load_reader(models.reader, models)
    embedder = load_embedder(models, reader)
    engine = choose_engine(choice, reader, models.reader)
    return Service(reader, embedder, engine, store, settings, keys)


def parse_engine_options(given: Sequence[str]) -> dict[str, Any]:
    """Settings of an engine by name, of the form KEY=VALUE; a name's dashes are as good as `_`.

    Raises:
        InputError: one has another form, or is there twice.
    """
    options: dict[str, Any] = {}
    for each in given:
        key, equals, value = each.partition("=")
        name = key.replace("-", "_")
        if not equals or not name.isidentifier():
            raise InputError(
                f"{ENGINE_OPTION} is KEY=VALUE, such as tensor_parallel_size=2, but it is "
                f"{each!r}; write it so."
            )
        if name in options:
            raise InputError(f"{ENGINE_OPTION} sets a name once, but {name!r} twice; keep one.")
        options[name] = _value(value)
    return options


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def check_installed() -> None:
    """Raises MissingExtraError unless what the server needs is installed."""
    try:
        import fastapi  # noqa: F401
        import mcp.server  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"A server needs packages that are not installed ({error.name} is missing); run `pip "
            "install 'extensible-embedding[serve]'`."
        ) from error
