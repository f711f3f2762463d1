"""What the cost benchmark measures: every combination of method, mode, k, length and window.

In: lists of each. Out: settings, or a refusal. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..downsampling import check_scale_factor
from ..errors import InputError
from .methods import WITH_K, check_methods

ONLINE, OFFLINE, STREAM = "online", "offline", "stream"
MODES = (ONLINE, OFFLINE, STREAM)


@dataclass(frozen=True)
class CostSetting:
    """One way to read a context, whose cost is measured."""

    method: str
    mode: str
    k: int
    """Tokens per row, where a stream begins; 1 for raw methods, 0 where the method chooses."""
    context_tokens: int
    window: int | None = None
    """Rows in all; None: the reader's own, and the whole context as rows."""


def raw_of(setting: CostSetting) -> CostSetting:
    """The raw reading that a setting is compared with."""
    return CostSetting("raw", ONLINE, 1, setting.context_tokens)


def check_settings(
    *,
    methods: Sequence[str],
    modes: Sequence[str],
    scale_factors: Sequence[int],
    context_tokens: Sequence[int],
    windows: Sequence[int],
    **numbers: int,
) -> list[CostSetting]:
    """What `measure_cost` will measure.

    Raises:
        InputError: an argument is not usable.
    """
    given = {"context_tokens": context_tokens, "windows": windows or [1]}
    for name, values in {**given, **{name: [value] for name, value in numbers.items()}}.items():
        if not values or min(values) < 1:
            raise InputError(f"{name} is 1 or more, but it is {list(values)}; give whole numbers.")
    found = cost_settings(methods, modes, scale_factors, context_tokens, windows)
    if not found:
        raise InputError("A stream compresses, so k is 2 or more, but it is 1; give a larger k.")
    return found


def cost_settings(
    methods: Sequence[str],
    modes: Sequence[str],
    scale_factors: Sequence[int],
    context_tokens: Sequence[int],
    windows: Sequence[int],
) -> list[CostSetting]:
    """Every combination that means something, shortest context first.

    Raises:
        InputError: a method, a mode or a scale factor is not usable.
    """
    check_methods(methods)
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        found_mode = f"{unknown[0]!r} is none of them" if unknown else "none is given"
        raise InputError(
            f"Modes are one or more of {', '.join(MODES)}, but {found_mode}; choose of these."
        )
    factors = sorted({check_scale_factor(k) for k in scale_factors})
    if not windows and not factors and any(method in WITH_K for method in methods):
        raise InputError(
            "Without windows, scale factors say how the context is read, but there are none; give "
            "some."
        )
    found: list[CostSetting] = []
    for length in sorted(set(context_tokens)):
        for method in dict.fromkeys(methods):
            own: list[int | None] = [None]  # the reader's own window
            for window in own if method in ("raw", "none") else sorted(set(windows)) or own:
                found += _of_method(method, modes, factors, length, window)
    return found


def _of_method(
    method: str, modes: Sequence[str], factors: Sequence[int], length: int, window: int | None
) -> list[CostSetting]:
    if method not in WITH_K:
        return [CostSetting(method, ONLINE, 1, length, window)]
    if method != "extensible":
        return [CostSetting(method, ONLINE, k, length, window) for k in factors or [0]]
    return [
        CostSetting(method, mode, k, length, window)
        for mode in dict.fromkeys(modes)
        for k in factors or [0]
        if mode != STREAM or k > 1
    ]
