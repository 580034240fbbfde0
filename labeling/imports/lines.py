"""Bytes to lines of text: encodings, byte order marks, huge lines. Streams, and never holds more than a line.

UTF-8 with or without a mark, and UTF-16. Nothing is guessed beyond that: a file in another encoding is
refused with the place of the first byte that is no UTF-8, because a wrong guess garbles text in silence.
"""

import codecs
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from django.conf import settings

from labeling.imports.items import RefusedRow, UnreadableFile

# The largest trees of Open-Assistant have about one megabyte.
MAX_LINE_BYTES = 16_000_000
_CHUNK = 1 << 20
_SAMPLE = 65_536
FEW = 3  # NUL characters

_MAGIC = {
    b"PK\x03\x04": "a ZIP archive (or an Office document)",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "compressed with gzip",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"%PDF": "a PDF",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"SQLite format 3": "a SQLite database",
    b"ARROW1": "an Arrow file",
}


@dataclass(frozen=True, slots=True)
class Line:
    number: int
    text: str  # with its line end
    problem: RefusedRow | None = None


@contextmanager
def open_as_utf8(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for `lines_of`, behind its byte order mark; UTF-16 goes through a temporary file."""
    try:
        about = path.stat()
        if stat.S_ISDIR(about.st_mode):
            raise UnreadableFile("it is a directory, not a file")
        if not stat.S_ISREG(about.st_mode):  # opening a pipe waits for whoever writes, perhaps for ever
            raise UnreadableFile("it is a pipe or a device; save what comes out of it into a file first")
        size = about.st_size
        stream = path.open("rb")
    except OSError as error:
        raise UnreadableFile(f"it cannot be opened: {error.strerror}") from error
    with stream:
        if size == 0:
            raise UnreadableFile("it is empty")
        if size > settings.IMPORT_MAX_BYTES:
            limit = settings.IMPORT_MAX_BYTES // 1_000_000
            raise UnreadableFile(f"it has {size:,} bytes; at most {limit:,} MB are accepted")
        encoding, mark = _encoding(stream.read(_SAMPLE))
        stream.seek(mark)
        if encoding == "utf-8":
            yield stream
            return
        with tempfile.TemporaryFile(prefix="ratchet-import-") as utf8:
            _transcode(stream, utf8, encoding=encoding, offset=mark)
            utf8.seek(0)
            yield utf8


def _encoding(sample: bytes) -> tuple[str, int]:
    """The encoding that the beginning of a file shows, and the length of its byte order mark."""
    for magic, what in _MAGIC.items():
        if sample.startswith(magic):
            raise UnreadableFile(f"it is {what}; import text: TXT, CSV or JSONL")
    if sample.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise UnreadableFile("it is UTF-32; save it as UTF-8")
    if sample.startswith(codecs.BOM_UTF8):
        return "utf-8", 3
    if sample.startswith(codecs.BOM_UTF16_LE):
        return "utf-16-le", 2
    if sample.startswith(codecs.BOM_UTF16_BE):
        return "utf-16-be", 2
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    # Text in Latin letters is every second byte NUL in UTF-16 and never in UTF-8. A few NULs show nothing.
    many = max(len(sample) // 5, FEW)
    if odd > many and odd > 10 * even:
        return "utf-16-le", 0
    if even > many and even > 10 * odd:
        return "utf-16-be", 0
    control = sum(byte < 9 or 13 < byte < 32 for byte in sample)
    if control > len(sample) // 20 + 8:
        raise UnreadableFile("it is binary, not text; import TXT, CSV or JSONL")
    return "utf-8", 0


def _transcode(source: IO[bytes], target: IO[bytes], *, encoding: str, offset: int) -> None:
    decoder = codecs.getincrementaldecoder(encoding)()
    pending = 0  # bytes of a character that the last chunk cut
    while True:
        chunk = source.read(_CHUNK)
        try:
            target.write(decoder.decode(chunk, final=not chunk).encode())
        except UnicodeDecodeError as error:
            place = offset - pending + error.start
            raise UnreadableFile(f"it is broken {encoding.upper()} at byte {place:,}") from error
        if not chunk:
            return
        offset += len(chunk)
        pending = len(decoder.getstate()[0])


def lines_of(stream: IO[bytes]) -> Iterator[Line]:
    """Each line, or what is wrong with it. Only a line feed ends a line: text may hold any other mark."""
    offset, number = stream.tell(), 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        start = offset
        offset += len(raw)
        if len(raw) > MAX_LINE_BYTES:
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(_CHUNK)
                offset += len(raw)
            detail = f"the line has {offset - start:,} bytes; at most {MAX_LINE_BYTES:,} are accepted"
            yield Line(number, "", RefusedRow("line too long", detail))
            continue
        try:
            yield Line(number, raw.decode())
        except UnicodeDecodeError as error:
            detail = (
                f"byte 0x{raw[error.start]:02x} at offset {start + error.start:,} of the file is not UTF-8;"
                " save the file as UTF-8"
            )
            yield Line(number, "", RefusedRow("not UTF-8", detail))
