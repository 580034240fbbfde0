"""Rows at the door: what is taken, what is refused with file and line, what is too long. Needs no torch."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.training_rlhf.conftest import pair_row, ranking_row, write_rows
from training.rlhf.data import (
    Comparison,
    drop_too_long,
    ranking_comparisons,
    read_for_dpo,
    read_for_reward_model,
    read_pairs,
    read_rankings,
)
from training.rlhf.failures import Refused
from training.rlhf.run_dir import RunDir


def test_a_pair_is_one_comparison_of_two_completions(tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", [pair_row(1, margin=2.0, weight=0.5, p=0.75, strength=3)])
    (element,) = read_pairs(tmp_path / "pairs.jsonl")
    assert element.comparisons == [Comparison(chosen=0, rejected=1, margin=2.0, weight=0.5, p=0.75)]
    assert element.conversation(0)[-1]["content"].startswith("Hello")
    assert element.strength == 3


def test_what_a_bare_trl_row_leaves_out_is_neutral(tmp_path: Path) -> None:
    row = {name: value for name, value in pair_row(1).items() if name in ("prompt", "chosen", "rejected")}
    write_rows(tmp_path / "pairs.jsonl", [row])
    (element,) = read_pairs(tmp_path / "pairs.jsonl")
    assert element.comparisons == [Comparison(chosen=0, rejected=1, margin=0.0, weight=1.0, p=1.0)]


def test_a_ranking_says_something_about_each_two_and_counts_as_one(tmp_path: Path) -> None:
    write_rows(tmp_path / "rankings.jsonl", [ranking_row(1, [3, 1, 1, 2], weight=0.5)])
    (element,) = read_rankings(tmp_path / "rankings.jsonl")
    assert len(element.comparisons) == 6
    assert sum(one.weight for one in element.comparisons) == pytest.approx(0.5)
    decided = {(one.chosen, one.rejected) for one in element.comparisons if one.p == 1.0}
    assert decided == {(1, 0), (2, 0), (3, 0), (1, 3), (2, 3)}
    assert [one.p for one in element.comparisons if {one.chosen, one.rejected} == {1, 2}] == [0.5]


@pytest.mark.parametrize("count", [2, 3, 9])
def test_every_two_completions_are_compared_once_whatever_their_order(count: int) -> None:
    ranks = [1 + (number * 7) % count for number in range(count)]
    compared = ranking_comparisons(ranks)
    assert len({frozenset(pair[:2]) for pair in compared}) == math.comb(count, 2)
    assert all(ranks[better] <= ranks[other] for better, other, _ in compared)


def pairs_of(ranking: dict[str, Any]) -> list[dict[str, Any]]:
    """As a dataset writes them beside the ranking."""
    return [
        {"prompt": ranking["prompt"], "chosen": ranking["completions"][better],
         "rejected": ranking["completions"][other], "weight": 1 / 3, "p": p}
        for better, other, p in ranking_comparisons(ranking["ranks"])
    ]  # fmt: skip


def test_a_rankings_own_pairs_are_not_learnt_twice_and_other_pairs_stay(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    ranking = ranking_row(1, [1, 2, 3])
    own = pairs_of(ranking)
    write_rows(run_dir.data / "rankings.train.jsonl", [ranking])
    write_rows(run_dir.data / "pairs.train.jsonl", [*own, pair_row(5), own[0]])
    elements = read_for_reward_model(run_dir, "train")
    # The last row says once more what the ranking says: somebody was asked about these two as well.
    assert [(element.table, element.line) for element in elements] == [
        ("pairs", 4),
        ("pairs", 5),
        ("rankings", 1),
    ]
    assert len(read_for_dpo(run_dir, "train")) == 5
    assert read_for_dpo(run_dir, "test") == []


def test_the_common_verdict_of_several_rankings_is_not_learnt_twice_and_another_pair_stays(
    tmp_path: Path,
) -> None:
    run_dir = RunDir(tmp_path)
    rankings = [ranking_row(1, ranks) | {"weight": 1 / 3} for ranks in ([1, 2, 3], [1, 3, 2], [1, 2])]
    rankings[2]["completions"] = rankings[2]["completions"][:2]  # partial
    verdict = pairs_of(rankings[0])
    write_rows(run_dir.data / "rankings.train.jsonl", rankings)
    write_rows(run_dir.data / "pairs.train.jsonl", [*verdict, verdict[0]])  # the last by other raters
    tables = [(element.table, element.line) for element in read_for_reward_model(run_dir, "train")]
    assert tables == [("pairs", 4), ("rankings", 1), ("rankings", 2), ("rankings", 3)]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"prompt": "Say hello."}, "prompt: a list of messages"),
        ({"chosen": []}, "chosen: a list of messages"),
        ({"rejected": [{"role": "assistant"}]}, "rejected: each message has a role and a content"),
        ({"p": 1.5}, "p is 1.5"),
        ({"weight": 0}, "weight is 0.0"),
        ({"margin": "2"}, "margin is '2'"),
        ({"margin": float("nan")}, "margin is nan"),
        ({"strength": 1.5}, "strength is 1.5"),
    ],
)
def test_a_row_that_is_no_pair_is_refused_with_file_and_line(
    columns: dict[str, Any], words: str, tmp_path: Path
) -> None:
    write_rows(tmp_path / "pairs.train.jsonl", [pair_row(0), pair_row(1, **columns)])
    with pytest.raises(Refused) as refused:
        read_pairs(tmp_path / "pairs.train.jsonl")
    assert words in refused.value.what
    assert refused.value.where == "pairs.train.jsonl, line 2"
    assert refused.value.do


@pytest.mark.parametrize("content", [b'{"prompt": [\n', b"[1, 2]\n", b'{"prompt": "\xff"}\n', b"null\n"])
def test_a_line_that_is_no_row_is_refused_with_file_and_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(json.dumps(pair_row(0)).encode() + b"\n\n" + content)
    with pytest.raises(Refused, match=r"pairs\.jsonl, line 3"):
        read_pairs(tmp_path / "pairs.jsonl")


@pytest.mark.parametrize(
    "columns",
    [{"ranks": [1, 2]}, {"ranks": [1.5, 2, 3]}, {"completions": []}, {"completions": [[], [], []]}],
)
def test_a_ranking_whose_parts_do_not_fit_is_refused(columns: dict[str, Any], tmp_path: Path) -> None:
    write_rows(tmp_path / "rankings.jsonl", [ranking_row(0, [1, 2, 3]) | columns])
    with pytest.raises(Refused, match="line 1"):
        read_rankings(tmp_path / "rankings.jsonl")


def test_rows_over_the_limit_are_dropped_and_counted_and_none_is_cut(tmp_path: Path) -> None:
    answers = [[{"role": "assistant", "content": "x" * length}] for length in (5, 50, 20)]
    rows = [pair_row(number, chosen=answer) for number, answer in enumerate(answers)]
    write_rows(tmp_path / "pairs.jsonl", rows)
    elements = read_pairs(tmp_path / "pairs.jsonl")

    def letters(messages: list[dict[str, str]]) -> int:
        return sum(len(message["content"]) for message in messages)

    fitting = drop_too_long(elements, limit=40, count_tokens=letters)
    assert fitting.elements == [elements[0], elements[2]]
    assert fitting.dropped == 1
    assert fitting.longest == letters(elements[1].conversation(0))
    assert (
        drop_too_long(elements, limit=letters(elements[1].conversation(0)), count_tokens=letters).dropped == 0
    )
