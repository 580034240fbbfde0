"""How much memory this process really took at its highest: what the estimate is checked against.

On a GPU what torch allocated there; otherwise what the process had in main memory, imports included. A part
of a run is measured by `reset` before it and `peak_bytes` after it; `highest_bytes` is that of the whole run.
"""

import contextlib
import resource
import sys
from pathlib import Path
from typing import Any

_CLEAR = Path("/proc/self/clear_refs")  # "5" written there makes the kernel forget the highest mark
_STATUS = Path("/proc/self/status")


class _Highest:
    bytes = 0  # before the last reset


def begin() -> None:
    """A run begins: what the process did before (checks, imports of others) is not its own."""
    reset()
    _Highest.bytes = 0


def reset() -> None:
    """Measure from here on."""
    _Highest.bytes = max(_Highest.bytes, peak_bytes())
    torch = _torch_with_gpu()
    if torch is not None:
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # elsewhere than on Linux the mark stays where it was
        _CLEAR.write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """The highest since the last reset."""
    torch = _torch_with_gpu()
    if torch is not None:
        return int(torch.cuda.max_memory_allocated())
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def highest_bytes() -> int:
    """The highest since the run began."""
    return max(_Highest.bytes, peak_bytes())


def _torch_with_gpu() -> Any:
    """torch, where it is imported and computes on a GPU: importing it here would cost seconds."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_available() else None
