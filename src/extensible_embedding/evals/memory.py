"""The peak memory of one reading, in a process of its own.

In: which models, a setting, the context's token ids in a file. Out: the most memory that the
reading took at a time, beside the models. Memory that one reading leaves behind would hide what the
next one takes, hence the process. On a CPU it is what Linux counts as resident (peak since the
models were loaded and warm, minus what they held then), on CUDA what torch allocated.

`python -m extensible_embedding.evals.memory` reads a request from stdin and prints bytes or a
reason; `peak_memory` calls it.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..embedder import ExtensibleEmbedder
from ..reader import Reader
from .cost_readings import CANNOT, reading_maker
from .cost_settings import ONLINE, CostSetting
from .methods import CannotRunError

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_WARM_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a process of its own finds reader and embedder."""

    reader: str
    embedder: str
    derivative: bool = False
    device: str | None = None
    dtype: str | None = None
    window: int | None = None
    trust_remote_code: bool = False

    def load(self) -> ExtensibleEmbedder:
        """The embedder with its reader."""
        reader = Reader.from_pretrained(
            self.reader,
            dtype=getattr(torch, self.dtype) if self.dtype else None,
            device=self.device,
            window=self.window,
            trust_remote_code=self.trust_remote_code,
        )
        return ExtensibleEmbedder.from_pretrained(
            self.embedder, reader, derivative=self.derivative
        ).eval()


def peak_memory(
    source: ModelSource,
    setting: CostSetting,
    ids_file: Path,
    new_tokens: int,
    folder: Path | None = None,
) -> int:
    """Bytes that a reading takes at most, beside the models.

    Args:
        source: of the models.
        setting: how to read.
        ids_file: token ids as `torch.save` wrote them; the first `context_tokens` are read.
        new_tokens: tokens to generate.
        folder: of the rows of an offline setting.

    Raises:
        CannotRunError: the reading cannot run, or its memory cannot be told on this system.
    """
    request = {
        "source": dataclasses.asdict(source),
        "setting": dataclasses.asdict(setting),
        "ids_file": str(ids_file),
        "new_tokens": new_tokens,
        "folder": str(folder) if folder else None,
        "num_threads": torch.get_num_threads(),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", __name__],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode < 0:
        raise CannotRunError(f"its process was killed by signal {-done.returncode}")
    if done.returncode > 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CannotRunError(f"its process failed: {reason}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if answer["peak_bytes"] is None:
        raise CannotRunError(answer["note"])
    return int(answer["peak_bytes"])


def measure_request(request: dict[str, Any]) -> dict[str, Any]:
    """Loads, warms up, and measures one reading."""
    torch.set_num_threads(request["num_threads"])
    embedder = ModelSource(**request["source"]).load()
    setting, new_tokens = CostSetting(**request["setting"]), request["new_tokens"]
    folder = Path(request["folder"]) if request["folder"] else None
    ids = torch.load(request["ids_file"], weights_only=True)

    def run() -> None:
        make = reading_maker(embedder, setting, ids[: setting.context_tokens], new_tokens, folder)
        make().generate(new_tokens)

    try:
        warm_up(embedder, ids)
        return {"peak_bytes": peak_bytes(run, embedder.reader.device), "note": ""}
    except CANNOT as error:
        return {"peak_bytes": None, "note": str(error)}


def warm_up(embedder: ExtensibleEmbedder, ids: torch.Tensor) -> None:
    """Reads a few tokens raw and as rows, so that what is made once is there."""
    some = ids[: min(_WARM_TOKENS, embedder.reader.window // 2)]
    for method, k in (("raw", 1), ("extensible", min(2, len(some)))):
        setting = CostSetting(method, ONLINE, k, len(some))
        reading_maker(embedder, setting, some, 2)().generate(2)


def peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """The most memory that a function takes at a time, beside what is there.

    Raises:
        CannotRunError: this system does not tell.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu" or not _CLEAR.exists():
        raise CannotRunError(f"peak memory on {device.type} of {sys.platform} is not counted")
    _release_freed()
    before = _resident("VmRSS")
    _CLEAR.write_text(_RESET_PEAK)
    run()
    return max(0, _resident("VmHWM") - before)


def _resident(name: str) -> int:
    found = re.search(rf"{name}:\s*(\d+) kB", _STATUS.read_text("ascii"))
    assert found is not None
    return 1024 * int(found[1])


def _release_freed() -> None:
    """Gives freed memory back to the system, where its C library (glibc) keeps it."""
    gc.collect()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def main() -> None:
    """Answers a request."""
    sys.stdout.write(json.dumps(measure_request(json.load(sys.stdin))) + "\n")


if __name__ == "__main__":
    main()
