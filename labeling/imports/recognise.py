"""Which form a file has: told from its first line, or named by the user."""

import csv
from enum import StrEnum
from typing import IO, Any

from labeling.imports.items import RefusedRow, UnreadableFile, shown
from labeling.imports.lines import lines_of
from labeling.imports.rows import parse_object

DELIMITERS = (",", ";", "\t")
LOOKED_AT = 20  # lines


class Form(StrEnum):
    PROMPTS_TXT = "prompts-txt"
    PROMPTS_CSV = "prompts-csv"
    PROMPTS_JSONL = "prompts-jsonl"
    PAIRS_JSONL = "pairs-jsonl"
    PAIRS_CSV = "pairs-csv"
    RANKINGS_JSONL = "rankings-jsonl"
    OPEN_ASSISTANT = "open-assistant"
    DEMONSTRATIONS_JSONL = "demonstrations-jsonl"
    DEMONSTRATIONS_CSV = "demonstrations-csv"
    UNPAIRED_JSONL = "unpaired-jsonl"
    UNPAIRED_CSV = "unpaired-csv"
    TEXTS_JSONL = "texts-jsonl"
    TEXTS_CSV = "texts-csv"
    TEXTS_TXT = "texts-txt"

    @property
    def described(self) -> str:
        return TITLES[self]


TITLES = {
    Form.PROMPTS_TXT: "Prompts, one a line (TXT)",
    Form.PROMPTS_CSV: "Prompts (CSV with a column prompt)",
    Form.PROMPTS_JSONL: "Prompts (JSONL with prompt or messages)",
    Form.PAIRS_JSONL: "Preference pairs (JSONL with chosen and rejected)",
    Form.PAIRS_CSV: "Preference pairs (CSV with prompt, chosen and rejected)",
    Form.RANKINGS_JSONL: "Rankings (JSONL with prompt, completions and ranks)",
    Form.OPEN_ASSISTANT: "Open-Assistant conversation trees (JSONL)",
    Form.DEMONSTRATIONS_JSONL: "Demonstrations (JSONL with prompt and completion, or messages)",
    Form.DEMONSTRATIONS_CSV: "Demonstrations (CSV with prompt and completion)",
    Form.UNPAIRED_JSONL: "Single judgements (JSONL with prompt, completion and label)",
    Form.UNPAIRED_CSV: "Single judgements (CSV with prompt, completion and label)",
    Form.TEXTS_JSONL: "Texts of a field (JSONL with text)",
    Form.TEXTS_CSV: "Texts of a field (CSV with a column text)",
    Form.TEXTS_TXT: "Texts of a field, parted by blank lines (TXT)",
}


def recognise(stream: IO[bytes], *, name: str) -> Form:
    """The form of a file, by its first line that is not blank; its name settles what content leaves open."""
    suffix = name.rpartition(".")[2].lower()
    first_problem = ""
    for line in lines_of(stream):
        if line.number > LOOKED_AT:
            break
        text = line.text.strip()
        try:
            if line.problem is not None:
                raise line.problem
            if text.startswith("{"):
                return _form_of_object(parse_object(text))
        except RefusedRow as refused:
            # The row is refused when it is read; a later one may show the form.
            if text == "{":
                raise UnreadableFile("an object goes over several lines; JSONL has one on each") from None
            if suffix == "txt" and text:
                return Form.PROMPTS_TXT
            first_problem = first_problem or f"; line {line.number}: {refused.detail}"
            continue
        if text == "[" or text.startswith(("[{", "[[")):
            raise UnreadableFile("it is one JSON array; write JSONL, one object on each line")
        if text and not first_problem:
            return _form_of_text(text, suffix)
    raise UnreadableFile(
        "no line at its beginning is text, a header of CSV or a JSON object that can be recognised"
        + first_problem
    )


def _form_of_object(row: dict[str, Any]) -> Form:
    if "message_tree_id" in row or (isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]):
        return Form.OPEN_ASSISTANT
    if "chosen" in row and "rejected" in row:
        return Form.PAIRS_JSONL
    if "completions" in row and "ranks" in row:
        return Form.RANKINGS_JSONL
    if _holds_completion(row) and "rating" not in row:
        return Form.UNPAIRED_JSONL if "label" in row else Form.DEMONSTRATIONS_JSONL
    if "text" in row and not {"prompt", "messages", "chosen", "rejected"} & row.keys():
        return Form.TEXTS_JSONL
    if ("prompt" in row or "messages" in row) and not {"chosen", "rejected"} & row.keys():
        return Form.PROMPTS_JSONL
    raise UnreadableFile(
        f"its first object has the columns {shown(', '.join(row))}; wanted are `prompt` or `messages`,"
        " `chosen` and `rejected`, `prompt`, `completions` and `ranks`, `prompt` and `completion` (with or"
        " without `label`), `text`, or the trees of Open-Assistant"
    )


def _holds_completion(row: dict[str, Any]) -> bool:
    """Whether a row shows one completion: to a prompt, or as the last turn of a conversation."""
    if {"chosen", "rejected"} & row.keys():
        return False
    messages = row.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    ends_with_reply = isinstance(last, dict) and last.get("role") == "assistant"
    return ("prompt" in row and "completion" in row) or ("prompt" not in row and ends_with_reply)


def _form_of_text(text: str, suffix: str) -> Form:
    for delimiter in DELIMITERS:
        header = columns_of(text, delimiter)
        if "chosen" in header and "rejected" in header:
            return Form.PAIRS_CSV
        if "prompt" in header and "completion" in header and "rating" not in header:
            return Form.UNPAIRED_CSV if "label" in header else Form.DEMONSTRATIONS_CSV
        if "prompt" in header:
            return Form.PROMPTS_CSV
        if "text" in header and suffix in {"csv", "tsv"}:
            return Form.TEXTS_CSV
    if suffix in {"csv", "tsv"}:
        raise UnreadableFile(f"its header has no column `prompt` and no `text`: {shown(text)}")
    if suffix in {"json", "jsonl", "ndjson"}:
        raise UnreadableFile(f"its first line is no JSON object: {shown(text)}")
    return Form.PROMPTS_TXT


def columns_of(header: str, delimiter: str) -> list[str]:
    """The names in the header of a CSV file, in small letters."""
    try:
        cells = next(csv.reader([header], delimiter=delimiter), [])
    except csv.Error:
        return []
    return [cell.strip().lower() for cell in cells]
