"""A folder as one ZIP, packed while it is sent: nothing is written to disk, little is held in memory."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

CHUNK = 1 << 20  # bytes


class _Outbox:
    """A file that cannot seek, for zipfile to write to; what was written is taken out again."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._chunks.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def take(self) -> bytes:
        taken = b"".join(self._chunks)
        self._chunks.clear()
        return taken


def zipped(
    folder: Path,
    names: Sequence[str],
    *,
    within: str,
    texts: Mapping[str, str] | None = None,
    compress: bool = True,
) -> Iterator[bytes]:
    """The files `names` of a folder, and `texts` by name, in a folder `within` of the archive.

    No time of day is in it: the same files give the same archive. Weights are not worth compressing.
    """
    outbox = _Outbox()
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(outbox, "w", kind) as archive:  # type: ignore[call-overload]
        for name, text in (texts or {}).items():
            archive.writestr(_entry(f"{within}/{name}", kind), text)
            yield outbox.take()
        for name in names:
            entry = _entry(f"{within}/{name}", kind)
            with open(folder / name, "rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                while chunk := source.read(CHUNK):
                    target.write(chunk)
                    yield outbox.take()
    yield outbox.take()


def _entry(name: str, kind: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.compress_type = kind
    return entry
