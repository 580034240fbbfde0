"""How many parameters a model's folder holds, from the headers of its safetensors files.

The web process asks, for the settings that it proposes: no weight is read.
"""

import json
import math
from pathlib import Path

LARGEST_HEADER = 50_000_000  # bytes


def parameters_of(location: str) -> int | None:
    """None for a hub id, and for a folder whose headers cannot be read.

    Reads one header a file; shards of a large model are tens of files.
    """
    folder = Path(location)
    if not folder.is_absolute():
        return None
    try:
        counts = [_parameters_in(path) for path in sorted(folder.glob("*.safetensors"))]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return sum(counts) or None


def _parameters_in(path: Path) -> int:
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > LARGEST_HEADER:
            raise ValueError("no header of safetensors")
        header = json.loads(file.read(size))
    return sum(math.prod(one["shape"]) for name, one in header.items() if name != "__metadata__")
