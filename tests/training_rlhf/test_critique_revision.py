"""Critique and revision: what is asked, what is written, and that a run that was stopped writes the same."""

import doctest
import json
from typing import Any

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.training

from tests.training_rlhf.conftest import MakeRun, run_child  # noqa: E402
from tests.training_rlhf.constitutional import (  # noqa: E402
    PRINCIPLES,
    make_constitutional,
    write_constitution,
)
from training.rlhf import critique_revision, preflight, progress, sampling  # noqa: E402
from training.rlhf.config import RunConfig  # noqa: E402
from training.rlhf.constitutional import constitution, made_data  # noqa: E402
from training.rlhf.constitutional.constitution import Constitution, Principle  # noqa: E402
from training.rlhf.progress import Cancelled  # noqa: E402
from training.rlhf.run_dir import ProgressWriter, RunDir, read_jsonl  # noqa: E402


def make(run_dir: RunDir) -> dict[str, Any]:
    return critique_revision.make(run_dir, RunConfig.load(run_dir.config), ProgressWriter(run_dir))


def rows_of(run_dir: RunDir) -> list[Any]:
    return list(read_jsonl(run_dir.path / critique_revision.FILE))


def test_the_examples_in_the_docstrings_hold() -> None:
    tested = doctest.testmod(critique_revision)
    assert tested.attempted > 2
    assert not tested.failed


def test_every_prompt_is_answered_criticised_and_revised_as_often_as_asked(make_run: MakeRun) -> None:
    run_dir = make_constitutional(make_run, "critique_revision", critique_revision={"rounds": 2})
    made = make(run_dir)["evaluation"]["made"]
    rows = rows_of(run_dir)
    assert [row["row"] for row in rows] == list(range(1, 10))
    assert [row["split"] for row in rows] == ["train"] * 7 + ["test"] * 2
    assert all(len(row["turns"]) == 2 and row["answer"]["tokens"] > 0 for row in rows)
    used = [turn["principle"] for row in rows for turn in row["turns"]]
    assert {1, 2, 3} == set(used)
    assert made["principles"] == {str(n): used.count(n) for n in (1, 2, 3)}
    assert sum(made["outcomes"].values()) == made["rows"] == 9
    assert made["constitution"] == 3
    told = [line["values"] for line in read_jsonl(run_dir.progress) if line["values"]]
    assert told and set(told[0]) >= {"revisions/changed", "eos_rate"}


def test_the_policy_reads_its_answer_and_critique_and_the_words_of_the_principle(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    generate = sampling.generate

    def noting(model: Any, tokenizer: Any, conversations: Any, **kwargs: Any) -> Any:
        read.append([list(one) for one in conversations])
        return generate(model, tokenizer, conversations, **kwargs)

    monkeypatch.setattr(sampling, "generate", noting)
    run_dir = make_constitutional(make_run, "critique_revision", critique_revision={"rounds": 2})
    make(run_dir)
    answers, critiques, revisions, later, _ = read
    row = rows_of(run_dir)[0]
    first = PRINCIPLES[row["turns"][0]["principle"] - 1]
    assert answers[0] == row["prompt"]
    assert [turn["content"] for turn in critiques[0][1:]] == [row["answer"]["text"], first["critique"]]
    assert [turn["content"] for turn in revisions[0][3:]] == [
        row["turns"][0]["critique"]["text"],
        first["revision"],
    ]
    assert later[0][1]["content"] == row["turns"][0]["revision"]["text"]  # it takes the answer's place


def test_a_run_that_was_stopped_leaves_the_same_bytes_as_one_that_was_not(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made_data, "AT_ONCE", 2)
    whole = make_constitutional(make_run, "critique_revision")
    make(whole)
    run_dir = make_constitutional(make_run, "critique_revision")
    generate, calls = sampling.generate, []

    def stopping(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["seed"])
        if len(calls) == 5:  # in the middle of the second chunk
            monkeypatch.setattr(progress._Stop, "requested", True)
        return generate(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(sampling, "generate", stopping)
        with pytest.raises(Cancelled):
            make(run_dir)
    draft = run_dir.path / f".{critique_revision.FILE}"
    assert len(draft.read_text().splitlines()) == 2
    with open(draft, "a") as file:
        file.write('{"row": 3, "sp')  # it died here
    monkeypatch.setattr(progress._Stop, "requested", False)
    make(run_dir)
    path = critique_revision.FILE
    assert (run_dir.path / path).read_bytes() == (whole.path / path).read_bytes()


def test_no_more_prompts_are_written_to_than_asked_for_and_the_seed_chooses_them(make_run: MakeRun) -> None:
    lines = []
    for seed in (0, 0, 1):
        run_dir = make_constitutional(
            make_run, "critique_revision", prompts=40, seed=seed, critique_revision={"prompts": 4}
        )
        found = made_data.read(run_dir, RunConfig.load(run_dir.config), most=4)
        assert [one.split for one in found.asked] == ["train"] * 4 + ["test"]
        assert found.rows["train"]["kept"] == 4
        lines.append([one.row.line for one in found.asked])
    assert lines[0] == lines[1] != lines[2]


def test_each_principle_is_drawn_about_as_often_as_the_others() -> None:
    words = Constitution(
        version=1,
        principles=tuple(
            Principle(number=n, text="t", critique="c", revision="r", comparison="q") for n in (1, 2, 3, 4)
        ),
    )
    drawn = [words.sampled(seed=5, row=row, turn=0).number for row in range(4000)]
    assert all(900 < drawn.count(number) < 1100 for number in (1, 2, 3, 4))
    assert {one.number for one in words.several(9, seed=5, row=1)} == {1, 2, 3, 4}
    assert len({one.number for one in words.several(2, seed=5, row=1)}) == 2


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "There is no constitution"),
        ("{", "is not JSON"),
        ('{"version": 1, "principles": []}', "at least one principle"),
        ('{"version": 1, "principles": [{"text": "Be kind."}]}', "Principle 1 has no critique"),
    ],
)
def test_a_run_without_a_whole_constitution_is_refused_before_the_start(
    content: str | None, what: str, make_run: MakeRun
) -> None:
    run_dir = make_constitutional(make_run, "critique_revision")
    path = run_dir.data / constitution.FILE
    path.unlink() if content is None else path.write_text(content)
    report = preflight.check(run_dir, RunConfig.load(run_dir.config))
    assert not report["ok"]
    assert what in report["errors"][0]["what"]


def test_requests_that_leave_too_little_room_are_told_of_before_the_start(make_run: MakeRun) -> None:
    run_dir = make_constitutional(make_run, "critique_revision")
    config = RunConfig.load(run_dir.config)
    assert not any("end of the conversation" in said for said in preflight.check(run_dir, config)["warnings"])
    write_constitution(run_dir, [PRINCIPLES[0] | {"critique": "Why? " * 50}])
    report = preflight.check(run_dir, config)
    assert report["ok"]
    assert any("end of the conversation" in said for said in report["warnings"])


def test_the_command_makes_the_rows_and_a_result(make_run: MakeRun) -> None:
    run_dir = make_constitutional(make_run, "critique_revision")
    checked = run_child(run_dir, "--preflight")
    assert checked.returncode == 0, checked.stdout
    guess = json.loads(run_dir.preflight.read_text())["estimate"]
    assert guess["steps"] == 9 and guess["seconds"] > 0 and guess["memory_bytes"] > 4 * guess["parameters"]
    done = run_child(run_dir)
    assert done.returncode == 0, done.stdout
    result = json.loads(run_dir.result.read_text())
    assert result["method"] == "critique_revision"
    assert result["rows"]["train"]["kept"] == 7
    assert json.loads(run_dir.evaluation.read_text()) == result["evaluation"]
    assert len(rows_of(run_dir)) == 9
