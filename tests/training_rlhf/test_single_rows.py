"""Ratings, single judgements, demonstrations and prompts, as they come in at the door."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.rlhf.failures import Refused
from training.rlhf.rows.single_rows import read_demonstrations, read_prompts, read_ratings, read_unpaired

ASKED = {"prompt": [{"role": "user", "content": "Say hello."}]}
ANSWERED = ASKED | {"completion": [{"role": "assistant", "content": "Hello."}]}


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_table_comes_in_with_what_people_said(tmp_path: Path) -> None:
    (prompt,) = read_prompts(write(tmp_path, ASKED))
    assert prompt.conversations() == [ASKED["prompt"]]
    (shown,) = read_demonstrations(write(tmp_path, ANSWERED | {"weight": 0.5}))
    assert (shown.table, shown.weight, len(shown.conversations()[0])) == ("demonstrations", 0.5, 2)
    (rated,) = read_ratings(write(tmp_path, ANSWERED | {"rating": 4, "criterion": "kind", "rater": 1}))
    assert (rated.table, rated.rating, rated.criterion, rated.weight) == ("ratings", 4.0, "kind", 1.0)
    good, bad = read_unpaired(write(tmp_path, ANSWERED | {"label": True}, ANSWERED | {"label": False}))
    assert (good.label, bad.label, bad.line) == (True, False, 2)


def test_a_table_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_ratings(tmp_path / "ratings.train.jsonl") == []


@pytest.mark.parametrize(
    ("read", "row", "words"),
    [
        (read_prompts, {}, "The column prompt is missing."),
        (read_demonstrations, ASKED, "The column completion is missing."),
        (read_ratings, ANSWERED, "The column rating is missing."),
        (read_ratings, ANSWERED | {"rating": "good"}, "rating is 'good': a number."),
        (read_ratings, ANSWERED | {"rating": 3, "criterion": 1}, "criterion is 1: a text."),
        (read_ratings, ANSWERED | {"rating": 3, "weight": 0}, "weight is 0.0: above 0."),
        (read_unpaired, ANSWERED | {"label": 1}, "label is 1: true or false."),
    ],
)
def test_a_row_that_is_none_is_refused_with_its_line(
    read: Callable[[Path], Any], row: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match=re.escape(words)) as refused:
        read(write(tmp_path, row))
    assert refused.value.where == "rows.jsonl, line 1"
