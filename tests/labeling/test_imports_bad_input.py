"""Files that are wrong: a message that says what and where, and nothing half-written."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from labeling.imports import ImportReport, UnreadableFile, import_file
from labeling.imports.lines import MAX_LINE_BYTES
from labeling.models import Completion, Label, Policy, Project, Prompt, Round
from labeling.prompts import MAX_CHARACTERS

GOOD = {"prompt": "Q", "chosen": "a", "rejected": "b"}


def bring(
    project: Project, tmp_path: Path, content: bytes, *, name: str = "data.jsonl", **kwargs: Any
) -> ImportReport:
    path = tmp_path / name
    path.write_bytes(content)
    return import_file(project=project, path=path, **kwargs)


def nothing_is_stored() -> bool:
    return not any(m.objects.exists() for m in (Prompt, Completion, Label, Round, Policy))


def lines(*rows: Any) -> bytes:
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in (*_ended(rows),))


def _ended(rows: Any) -> Any:
    for row in rows:
        yield row if isinstance(row, bytes) else json.dumps(row).encode()
        yield b"\n"


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "broken JSON": (b'{"prompt": "Q", ', "at column 1"),
    "a list": (b"[1, 2]", "is no JSON object"),
    "deep nesting": (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "the same key twice": (
        b'{"prompt": "Q", "prompt": "R", "chosen": "a", "rejected": "b"}',
        "'prompt' stands twice",
    ),
    "NaN": (b'{"prompt": "Q", "chosen": "a", "rejected": "b", "margin": NaN}', "NaN is no JSON"),
    "a number of many digits": (b'{"prompt": "Q", "margin": ' + b"9" * 5000 + b"}", "too many digits"),
    "not UTF-8": (b'{"prompt": "caf\xe9"}', "byte 0xe9 at offset "),
    "a NUL character": ({**GOOD, "chosen": "a\0b"}, "`chosen` has a NUL character at position 1"),
    "half a surrogate pair": (b'{"prompt": "Q", "chosen": "\\ud800", "rejected": "b"}', "surrogate pair"),
    "a million characters": (
        {**GOOD, "chosen": "x" * 1_000_000},
        "`chosen` has 1,000,000 characters; at most 200,000",
    ),
    "chosen is a number": ({**GOOD, "chosen": 3}, "`chosen` is int, not text"),
    "chosen is null": ({**GOOD, "chosen": None}, "`chosen` is missing"),
    "rejected is missing": ({"prompt": "Q", "chosen": "a"}, "`rejected` is missing"),
    "an empty completion": ({**GOOD, "rejected": "  "}, "`rejected` is empty"),
    "the same completion twice": ({**GOOD, "rejected": "a"}, "the same text"),
    "a prompt that is a number": ({**GOOD, "prompt": 7}, "list of messages"),
    "an empty prompt": ({**GOOD, "prompt": ""}, "turn 1 is empty"),
    "an unknown role": ({**GOOD, "prompt": [{"role": "tool", "content": "x"}]}, "role 'tool'"),
    "content that is a list": (
        {**GOOD, "prompt": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
        "turn 1 is list, not text",
    ),
    "a prompt that ends with the assistant": (
        {**GOOD, "prompt": [{"role": "assistant", "content": "x"}]},
        "must be the user's",
    ),
    "a completion of two turns": (
        {**GOOD, "chosen": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]},
        "one turn of the assistant",
    ),
    "a completion without a role": ({**GOOD, "chosen": [{"content": "x"}]}, "turn 1 has no `role`"),
    "no common beginning": ({"chosen": "a", "rejected": "b"}, "share no beginning"),
    "implicit and mixed": (
        {"chosen": "a", "rejected": [{"role": "assistant", "content": "b"}]},
        "both be text or",
    ),
    "a margin that is no number": ({**GOOD, "margin": "much"}, "`margin` is no number: 'much'"),
    "a margin that is a truth value": ({**GOOD, "margin": True}, "`margin` is no number: True"),
    "a margin below zero": ({**GOOD, "margin": -1}, "below zero"),
    "an infinite margin": ({**GOOD, "margin": "inf"}, "`margin` is no number"),
    "a strength out of range": ({**GOOD, "strength": 5}, "wanted is 0 to 4"),
}


@pytest.mark.parametrize(("bad", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_refused_with_its_line_and_nothing_is_stored(
    project: Project, tmp_path: Path, bad: Any, message: str
) -> None:
    report = bring(project, tmp_path, lines(GOOD, b"", bad, {**GOOD, "prompt": "R"}))
    assert (report.stored, report.rows, report.accepted, report.refused) == (False, 3, 2, 1)
    [refusal] = report.refusals
    assert refusal.line == 3
    assert message in refusal.detail
    assert report.refused_by_reason == {refusal.reason: 1}
    assert nothing_is_stored()
    json.dumps(report.to_json()).encode()  # it can be stored and sent, whatever the row held


def test_good_rows_are_kept_when_the_user_says_so(project: Project, tmp_path: Path) -> None:
    content = lines(b'{"prompt', GOOD, {**GOOD, "chosen": "b"}, {**GOOD, "prompt": "R"})
    report = bring(project, tmp_path, content, keep_good=True)
    assert (report.stored, report.accepted, report.refused) == (True, 2, 2)
    assert [r.line for r in report.refusals] == [1, 3]
    assert sorted(p.messages[0]["content"] for p in Prompt.objects.all()) == ["Q", "R"]


def test_a_file_without_a_good_row_stores_nothing_even_then(project: Project, tmp_path: Path) -> None:
    report = bring(project, tmp_path, lines({**GOOD, "chosen": ""}), keep_good=True)
    assert not report.stored
    assert nothing_is_stored()


def test_many_refusals_are_counted_and_the_first_are_listed(project: Project, tmp_path: Path) -> None:
    report = bring(project, tmp_path, lines(GOOD, *[{**GOOD, "margin": "x"}] * 500))
    assert report.refused == 500
    assert len(report.refusals) == 200
    assert report.refused_by_reason == {"bad margin": 500}


def test_a_completion_of_the_longest_length_is_accepted(project: Project, tmp_path: Path) -> None:
    report = bring(project, tmp_path, lines({**GOOD, "chosen": "x" * MAX_CHARACTERS}))
    assert report.stored
    assert len(Completion.objects.order_by("pk")[0].text) == MAX_CHARACTERS


def test_a_huge_line_is_refused_and_the_next_one_read(project: Project, tmp_path: Path) -> None:
    content = lines(GOOD, b'{"prompt": "' + b"x" * MAX_LINE_BYTES + b'"}', {**GOOD, "prompt": "R"})
    report = bring(project, tmp_path, content, keep_good=True)
    assert report.accepted == 2
    assert [(r.line, r.reason) for r in report.refusals] == [(2, "line too long")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "it is empty"),
        ("a.jsonl", b"\n \n", "no line at its beginning"),
        ("a.csv", b"prompt\n\n", "has no rows"),
        ("a.jsonl", b'[{"prompt": "x"}]', "one JSON array"),
        ("a.json", b'{\n  "prompt": "x"\n}', "over several lines"),
        ("a.jsonl", b'{"question": "x"}', "columns 'question'"),
        ("a.jsonl", b'{"prompt": x}', "line 1: expecting value at column 12"),
        ("a.jsonl", b"Tell me a story\n", "no JSON object"),
        ("a.csv", b"question\nx\n", "no column `prompt`"),
        ("a.csv", b"prompt,Prompt\nx,y\n", "names a column twice"),
        ("a.csv", b'prompt\n"never ends\n', "broken CSV"),
        ("a.csv", b"prompt\nok\ncaf\xe9\n", "line 3: byte 0xe9 at offset 13"),
        ("a.parquet", b"PAR1" + bytes(100), "a Parquet file"),
        ("a.jsonl.gz", b"\x1f\x8b\x08" + bytes(50), "compressed with gzip"),
        ("a.txt", bytes(range(256)) * 40, "binary"),
        ("a.txt", b"\xff\xfe\x00\x00a\x00\x00\x00", "UTF-32"),
        ("a.txt", "x".encode("utf-16") + b"\x00\xd8", "broken UTF-16-LE at byte 4"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(
    project: Project, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(UnreadableFile, match="(?i)" + message.replace("(", r"\(")):
        bring(project, tmp_path, content, name=name)
    assert nothing_is_stored()


def test_a_directory_a_missing_file_and_an_unknown_form_are_refused(project: Project, tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="directory"):
        import_file(project=project, path=tmp_path)
    with pytest.raises(UnreadableFile, match="No such file"):
        import_file(project=project, path=tmp_path / "nowhere")
    with pytest.raises(UnreadableFile, match="no form 'xml'"):
        bring(project, tmp_path, b"x", form="xml")


def test_a_pipe_is_refused_and_not_waited_for(project: Project, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UnreadableFile, match="a pipe or a device"):
        import_file(project=project, path=tmp_path / "pipe.jsonl")


@pytest.mark.parametrize("content", [b"a\0b\n", b"\0ab\n", b"Tell me\0 a story\n", b"a\0b\0c\n"])
def test_a_nul_in_a_tiny_file_does_not_make_it_utf_16(
    project: Project, tmp_path: Path, content: bytes
) -> None:
    report = bring(project, tmp_path, content, name="a.txt")
    assert not report.stored
    assert "NUL character at position" in report.refusals[0].detail
    assert nothing_is_stored()


def test_a_short_file_of_utf_16_without_a_mark_is_still_told(project: Project, tmp_path: Path) -> None:
    for number, encoding in enumerate(("utf-16-le", "utf-16-be")):
        bring(project, tmp_path, f"Why {number}?\n".encode(encoding), name="a.txt")
    assert [p.messages[0]["content"] for p in Prompt.objects.order_by("pk")] == ["Why 0?", "Why 1?"]


def test_a_carriage_return_alone_ends_a_line_of_text(project: Project, tmp_path: Path) -> None:
    content = b"one\rtwo\r\rthree\r\nfour\rcaf\xe9\nsix\x00\rseven"
    report = bring(project, tmp_path, content, name="a.txt", keep_good=True)
    texts = [p.messages[0]["content"] for p in Prompt.objects.order_by("pk")]
    assert texts == ["one", "two", "three", "seven"]
    assert [refusal.line for refusal in report.refusals] == [5, 6]


def test_a_file_over_the_limit_is_refused(project: Project, tmp_path: Path, settings: Any) -> None:
    settings.IMPORT_MAX_BYTES = 1_000_000
    with pytest.raises(UnreadableFile, match="at most 1 MB"):
        bring(project, tmp_path, b"x" * 1_000_001)


def test_latin_1_is_refused_line_by_line_with_the_byte(project: Project, tmp_path: Path) -> None:
    report = bring(project, tmp_path, "plain\nn\xe4chste\n".encode("latin-1"), name="a.txt", keep_good=True)
    assert [p.messages[0]["content"] for p in Prompt.objects.all()] == ["plain"]
    [refusal] = report.refusals
    assert "byte 0xe4 at offset 7 of the file" in refusal.detail


def test_a_csv_row_with_too_many_cells_is_refused_with_its_line(project: Project, tmp_path: Path) -> None:
    content = b'prompt\n"two\nlines"\nfine\nnot, fine\n'
    report = bring(project, tmp_path, content, name="a.csv", keep_good=True)
    assert [(r.line, r.reason) for r in report.refusals] == [(5, "too many cells")]
    assert report.prompts.created == 2


def test_a_failure_while_storing_leaves_nothing(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from labeling.imports.store import Store

    def fail(self: Store) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "publish", fail)
    with pytest.raises(OSError, match="No space left"):
        bring(project, tmp_path, lines(GOOD))
    assert nothing_is_stored()


def test_control_characters_of_a_file_name_do_not_reach_the_policy(project: Project, tmp_path: Path) -> None:
    bring(project, tmp_path, lines(GOOD), name="a\x1b[31m\nb.jsonl")
    assert Policy.objects.get().name == "imported: a[31mb.jsonl"
