"""Prompts and completions: one canonical form, one side of the split for ever."""

import hashlib
import json

import pytest

from labeling.models import Completion, Project, Prompt
from labeling.models.prompts import Message
from labeling.prompts import (
    MAX_CHARACTERS,
    InvalidCompletion,
    InvalidPrompt,
    NewCompletion,
    add_completions,
    add_prompts,
    canonical,
    digest_of,
    split_of,
)
from tests import factories


def asked(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def test_the_digest_is_over_canonical_json() -> None:
    expected = hashlib.sha256('[{"content":"Grüß Gott","role":"user"}]'.encode()).hexdigest()
    assert digest_of([{"content": "Grüß Gott", "role": "user"}]) == expected
    assert digest_of([{"role": "user", "content": "Grüß Gott"}]) == expected


def test_content_is_kept_exactly(project: Project) -> None:
    text = "  a\r\n\tb  \u00a0"
    [prompt] = add_prompts(project=project, conversations=[asked(text)])
    prompt.refresh_from_db()
    assert prompt.messages == [{"role": "user", "content": text}]


def test_keys_beyond_role_and_content_are_left_out() -> None:
    assert canonical([{"role": "user", "content": "Hi", "name": "x"}]) == asked("Hi")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "not an empty one"),
        ("Hi", "list of messages"),
        ([{"role": "user"}], "turn 1 is not an object"),
        (["Hi"], "turn 1 is not an object"),
        ([{"role": "tool", "content": "x"}], "role 'tool'"),
        ([{"role": ["user"], "content": "x"}], "role"),
        ([{"role": "assistant", "content": "x"}], "must be the user's"),
        ([{"role": "user", "content": 3}], "turn 1 is int, not text"),
        ([{"role": "user", "content": " \n"}], "turn 1 is empty"),
        ([{"role": "user", "content": "a\0b"}], "NUL character at position 1"),
        ([{"role": "user", "content": "ab\ud800"}], "surrogate pair at position 2"),
        ([{"role": "user", "content": "x" * (MAX_CHARACTERS + 1)}], "at most 200,000"),
        ([{"role": "user", "content": "x"}] * 201, "at most 200"),
    ],
)
def test_what_is_no_prompt_is_refused_with_the_reason(messages: object, reason: str) -> None:
    with pytest.raises(InvalidPrompt, match=reason):
        canonical(messages)


def test_a_million_characters_are_refused_and_the_limit_itself_is_accepted() -> None:
    assert canonical(asked("x" * MAX_CHARACTERS))
    with pytest.raises(InvalidPrompt, match="1,000,000 characters"):
        canonical(asked("x" * 1_000_000))


def test_the_same_conversation_is_one_prompt_however_often_it_comes(project: Project) -> None:
    first = add_prompts(project=project, conversations=[asked("A"), asked("B"), asked("A")])
    again = add_prompts(project=project, conversations=[asked("B"), asked("C")])
    assert [p.messages[0]["content"] for p in first] == ["A", "B", "A"]
    assert first[0].pk == first[2].pk
    assert again[0].pk == first[1].pk
    assert Prompt.objects.count() == 3


def test_projects_do_not_share_prompts(project: Project) -> None:
    other = factories.make_project("Other")
    [a] = add_prompts(project=project, conversations=[asked("A")])
    [b] = add_prompts(project=other, conversations=[asked("A")])
    assert a.pk != b.pk
    assert a.split == b.split


def test_a_share_of_the_prompts_is_held_out_and_stays_so() -> None:
    prompts = [asked(str(n)) for n in range(2000)]
    held_out = [prompt for prompt in prompts if split_of(prompt, 10) == "test"]
    assert 140 < len(held_out) < 260
    assert all(split_of(prompt, 30) == "test" for prompt in held_out)  # a larger share only adds
    assert {split_of(prompt, 0) for prompt in prompts} == {"train"}


@pytest.mark.parametrize("same", [" Why?", "Why?\n", "WHY?", "Ｗhy？", "Why? "])
def test_a_question_that_looks_the_same_stands_on_the_same_side(same: str) -> None:
    """Templates strip blanks: a model would be tested on what it was trained on."""
    for n in range(50):
        system = Message(role="system", content="Be brief.")
        assert split_of(asked(f"{n} {same}"), 50) == split_of([system, *asked(f"{n} Why?")], 50)


def test_later_turns_stand_on_the_side_of_their_opening(project: Project) -> None:
    project.test_percent = 50
    conversations = [
        [*asked(f"Question {n}"), Message(role="assistant", content="Answer"), *asked(f"And {m}?")]
        for n in range(20)
        for m in range(5)
    ]
    prompts = add_prompts(project=project, conversations=conversations)
    sides = [{p.split for p in prompts[n * 5 : n * 5 + 5]} for n in range(20)]
    assert all(len(side) == 1 for side in sides)
    assert {next(iter(side)) for side in sides} == {"train", "test"}


def test_each_turn_is_rendered_once_and_cannot_run(project: Project) -> None:
    [prompt] = add_prompts(
        project=project,
        conversations=[
            [Message(role="system", content="<script>alert(1)</script>"), *asked("**bold**")],
        ],
    )
    assert len(prompt.html) == 2
    assert "<script" not in prompt.html[0]
    assert "<strong>bold</strong>" in prompt.html[1]


def test_completions_are_stored_in_order_with_their_html(project: Project) -> None:
    [prompt] = add_prompts(project=project, conversations=[asked("A")])
    policy = factories.make_policy(project)
    texts = ["one", "*two*", ""]
    stored = add_completions(NewCompletion(prompt_id=prompt.pk, policy_id=policy.pk, text=t) for t in texts)
    assert [c.text for c in Completion.objects.all()] == texts
    assert [c.pk for c in stored] == list(Completion.objects.values_list("pk", flat=True))
    assert "<em>two</em>" in stored[1].html


def test_one_bad_completion_refuses_the_whole_call(project: Project) -> None:
    [prompt] = add_prompts(project=project, conversations=[asked("A")])
    policy = factories.make_policy(project)
    rows = [
        NewCompletion(prompt_id=prompt.pk, policy_id=policy.pk, text=t)
        for t in ("good", "b\0d", json.dumps(1))
    ]
    with pytest.raises(InvalidCompletion, match="NUL character at position 1"):
        add_completions(rows)
    assert not Completion.objects.exists()
