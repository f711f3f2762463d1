"""Logs: one JSON object a line, on stderr.

In: records of `logging`. Out: lines. What clients send is not in them: of an unexpected error the
kind and the places in the code are logged, not its message.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import datetime, timezone
from typing import Any

from ..errors import ExtensibleError

LOGGER = logging.getLogger("extensible_embedding.serve")
_SERVERS = ("uvicorn", "uvicorn.error")


class JsonLines(logging.Formatter):
    """A record as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            fields.update(fault_fields(record.exc_info[1]))
        return json.dumps(fields, ensure_ascii=True, default=str)


def fault_fields(error: BaseException) -> dict[str, Any]:
    """What is logged of an error: its sentence if it is ours, else where it was raised."""
    fields: dict[str, Any] = {"error": type(error).__name__}
    if isinstance(error, ExtensibleError):
        return {**fields, "message": str(error)}
    frames = traceback.extract_tb(error.__traceback__)
    return {**fields, "stack": [f"{each.filename}:{each.lineno} {each.name}" for each in frames]}


def log(event: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """One line."""
    LOGGER.log(level, event, extra={"fields": fields})


def set_up(level: str = "info") -> None:
    """Sends all logs to stderr as JSON: the server's, and what libraries warn of."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    handler.addFilter(_is_wanted)
    root = logging.getLogger()
    root.handlers, root.level = [handler], logging.WARNING
    for logger in (LOGGER, *map(logging.getLogger, _SERVERS)):
        logger.setLevel(level.upper())


def _is_wanted(record: logging.LogRecord) -> bool:
    """Some libraries log what they work on."""
    return record.levelno >= logging.WARNING or record.name in (LOGGER.name, *_SERVERS)
