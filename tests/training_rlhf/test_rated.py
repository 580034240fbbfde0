"""Rows of ratings as elements, their scale, and the head that is learnt from them."""

import json
from pathlib import Path

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

import torch  # noqa: E402

from tests.training_rlhf.conftest import pair_row, rating_row, write_rows  # noqa: E402
from training.rlhf import rating_head, reward_model  # noqa: E402
from training.rlhf.config import RunConfig  # noqa: E402
from training.rlhf.data import read_pairs  # noqa: E402
from training.rlhf.failures import Refused  # noqa: E402
from training.rlhf.rows.rated import Rated, joined, scale_of  # noqa: E402
from training.rlhf.rows.single_rows import read_ratings  # noqa: E402
from training.rlhf.run_dir import RunDir  # noqa: E402


def rated(*ratings: tuple[float, ...]) -> list[Rated]:
    turn = [{"role": "user", "content": "x"}]
    return [Rated(line=1, prompt=turn, completion=turn, ratings=given) for given in ratings]


def test_a_dataset_that_says_nothing_is_told_so_and_one_table_that_does_suffices(tmp_path: Path) -> None:
    config = RunConfig(method="reward_model", model="m")
    same = rated((3.0,), (3.0,))
    write_rows(tmp_path / "pairs.jsonl", [pair_row(1, p=0.5)])
    ties = read_pairs(tmp_path / "pairs.jsonl")
    (error,) = reward_model.errors(list(same), config=config, where="data")
    assert "the same rating" in error["what"]
    assert len(reward_model.errors([*same, *ties], config=config, where="data")) == 2
    assert reward_model.errors([*rated((3.0,), (4.0,)), *ties], config=config, where="data") == []
    assert reward_model.errors([], config=config, where="data") == []


def test_a_head_comes_back_to_the_last_bit_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    rows = rated((1.0,), (2.0,), (2.0,), (5.0,))
    for kind in ("ordinal", "regression"):
        head = rating_head.start(kind, rows, scale=[1, 2, 3, 4, 5], model="no folder")
        rating_head.save(head, tmp_path)
        again = rating_head.load(tmp_path)
        assert again is not None and again.to_json() == head.to_json()
    for text in ("{}", "[", '{"kind": "ordinal", "scale": [1, 2, 3], "first": [0.0], "increments": []}'):
        (tmp_path / rating_head.FILE).write_text(text)
        with pytest.raises(Refused, match="rating head"):
            rating_head.load(tmp_path)


def test_what_a_head_expects_is_on_the_scale_and_rises_with_the_score() -> None:
    rows = rated(*[(float(rating),) for rating in (1, 2, 2, 3, 4, 4, 5)])
    for kind in ("ordinal", "regression"):
        head = rating_head.start(kind, rows, scale=[1, 2, 3, 4, 5], model="")
        expected = head.expected(torch.tensor([-90.0, -1.0, 0.0, 1.0, 90.0])).tolist()
        assert expected == sorted(expected)
        assert (expected[0], expected[-1]) == pytest.approx((1, 5))
        assert expected[2] == pytest.approx(3, abs=0.05)  # the mean of what was given
        assert head.finds_acceptable(torch.tensor([-9.0, 9.0])).tolist() == [False, True]


def test_an_ordinal_scale_of_hundreds_of_ratings_is_refused() -> None:
    rows = rated(*[(number / 7,) for number in range(300)])
    scale = [one.rating for one in rows]
    with pytest.raises(Refused, match="at most 101"):
        rating_head.start("ordinal", rows, scale=scale, model="")
    assert rating_head.start("regression", rows, scale=scale, model="").kind == "regression"


def test_an_overall_verdict_counts_alone_and_other_criteria_alike(tmp_path: Path) -> None:
    rows = [
        rating_row(1, criterion="helpful", rating=2),
        rating_row(1, criterion="Overall", rating=5),
        rating_row(1, criterion="true", rating=1),
        rating_row(2, criterion="helpful", rating=2, weight=0.5),
        rating_row(2, criterion="true", rating=5),
        rating_row(2, criterion="helpful", rating=3),  # the same text, rated again
        rating_row(2, criterion="helpful", rating=4, rater=9),
        rating_row(3, criterion="", rating=1, rater=None),
    ]
    write_rows(tmp_path / "ratings.train.jsonl", rows)
    found = joined(read_ratings(tmp_path / "ratings.train.jsonl"))
    assert [one.ratings for one in found] == [(5.0,), (2.0, 5.0), (3.0,), (4.0,), (1.0,)]
    assert [one.line for one in found] == [1, 4, 6, 7, 8]
    assert (found[1].rating, found[1].weight) == (3.5, 0.75)


def test_the_scale_is_what_the_protocol_allows_or_else_what_was_given(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.data.mkdir()
    given = rated((2.0,), (4.0,))
    assert scale_of(run_dir, given) == [2, 4]
    rounds = [
        {"kind": "comparison", "protocol": {"options": {"strengths": 4}}},
        {"kind": "rating", "protocol": {"options": {"low": 1, "high": 5, "criteria": []}}},
    ]
    (run_dir.data / "manifest.json").write_text(json.dumps({"parents": {"rounds": rounds}}))
    assert scale_of(run_dir, given) == [1, 2, 3, 4, 5]
    (run_dir.data / "manifest.json").write_text("{}")
    assert scale_of(run_dir, given) == [2, 4]
