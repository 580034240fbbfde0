"""Write tables as JSONL, Parquet and a folder for `datasets.load_from_disk`, the same bytes each time.

The folder is what `DatasetDict.save_to_disk` leaves, written with pyarrow alone: the web tier has no
`datasets`. Features are left to be read off the Arrow schema, so that any version of `datasets` reads it.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from labeling.datasets.rows import Row

TABLES = ("pairs", "rankings", "ratings", "unpaired", "demonstrations", "texts", "prompts")
SPLITS = ("train", "test")
ROWS_AT_ONCE = 1000
ARROW_FILE = "data-00000-of-00001.arrow"


def schema_of(table: str) -> Any:
    """The Arrow schema of a table. Fixed, so that an odd first row cannot bend it."""
    import pyarrow as pa

    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    columns: Mapping[str, list[tuple[str, Any]]] = {
        "pairs": [
            ("prompt", messages),
            ("chosen", messages),
            ("rejected", messages),
            ("margin", pa.float64()),
            ("weight", pa.float64()),
            ("p", pa.float64()),
            ("strength", pa.int64()),
        ],
        "rankings": [
            ("prompt", messages),
            ("completions", pa.list_(messages)),
            ("ranks", pa.list_(pa.int64())),
            ("weight", pa.float64()),
        ],
        "ratings": [
            ("prompt", messages),
            ("completion", messages),
            ("rating", pa.int64()),
            ("criterion", pa.string()),
            ("rater", pa.int64()),
            ("weight", pa.float64()),
        ],
        "unpaired": [("prompt", messages), ("completion", messages), ("label", pa.bool_())],
        "demonstrations": [("prompt", messages), ("completion", messages)],
        "texts": [("text", pa.string())],
        "prompts": [("prompt", messages)],
    }
    return pa.schema(columns[table])


class SplitWriter:
    """Writes the rows of one split of one table in every format, a batch at a time."""

    def __init__(self, root: Path, table: str, split: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.rows = 0
        self._schema = schema_of(table)
        self._batch: list[Row] = []
        self._files = ExitStack()
        hub = root / "hub" / table / split
        hub.mkdir(parents=True, exist_ok=True)
        (root / table).mkdir(exist_ok=True)
        with ExitStack() as opening:  # a failure half-way closes what is open
            self._jsonl: IO[str] = opening.enter_context(
                open(root / table / f"{split}.jsonl", "w", encoding="utf-8", newline="\n")
            )
            self._parquet = opening.enter_context(
                pq.ParquetWriter(root / table / f"{split}.parquet", self._schema, compression="zstd")
            )
            sink = opening.enter_context(pa.OSFile(str(hub / ARROW_FILE), "wb"))
            self._arrow = opening.enter_context(pa.ipc.new_stream(sink, self._schema))
            self._files = opening.pop_all()
        self._hub = hub

    def _describe(self) -> None:
        with open(self._hub / ARROW_FILE, "rb") as file:
            # `datasets` keys its caches by this: other rows must have another one.
            fingerprint = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        _write_json(
            self._hub / "dataset_info.json",
            {"citation": "", "description": "", "homepage": "", "license": ""},
        )
        _write_json(
            self._hub / "state.json",
            {
                "_data_files": [{"filename": ARROW_FILE}],
                "_fingerprint": fingerprint,
                "_format_columns": None,
                "_format_kwargs": {},
                "_format_type": None,
                "_output_all_columns": False,
                "_split": self._hub.name,
            },
        )

    def write(self, row: Row) -> None:
        self._jsonl.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        self._batch.append(row)
        self.rows += 1
        if len(self._batch) == ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._batch:
            batch = pa.RecordBatch.from_pylist(self._batch, schema=self._schema)
            self._arrow.write_batch(batch)
            self._parquet.write_batch(batch)
            self._batch = []

    def close(self) -> None:
        with self._files:
            self._flush()
        self._describe()


class DatasetWriter:
    """The tables of one dataset below `root`. A split without rows has no files."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._splits: dict[tuple[str, str], SplitWriter] = {}

    def write(self, table: str, split: str, row: Row) -> None:
        writer = self._splits.get((table, split))
        if writer is None:
            writer = self._splits[table, split] = SplitWriter(self._root, table, split)
        writer.write(row)

    def counts(self) -> dict[str, dict[str, int]]:
        return {
            table: {split: self._rows(table, split) for split in SPLITS}
            for table in TABLES
            if any(self._rows(table, split) for split in SPLITS)
        }

    def _rows(self, table: str, split: str) -> int:
        writer = self._splits.get((table, split))
        return writer.rows if writer else 0

    def close(self) -> None:
        with ExitStack() as closing:
            for writer in self._splits.values():
                closing.callback(writer.close)
        for table, splits in self.counts().items():
            names = [split for split in SPLITS if splits[split]]
            _write_json(self._root / "hub" / table / "dataset_dict.json", {"splits": names})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
