"""A run in the browser: who may see and do what, and what the page says in each state."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from labeling.models import Project
from tests import factories
from tests.training.run_pages import manager, put_in, run
from tests.training.stage import make_run, make_sampled_round
from training import runs
from training.models import Artifact, Metric, Run, Worker

State = Run.State
FORM_OF = {"start": State.READY, "cancel": State.QUEUED, "resume": State.CANCELLED}
AFTER = {"start": State.QUEUED, "cancel": State.CANCELLED, "resume": State.CHECKING}
__all__ = ["manager", "run"]  # fixtures


# ---- the page of a run


@pytest.mark.parametrize("state", State.values)
def test_a_run_has_a_page_in_every_state(state: str, manager: Client, run: Run) -> None:
    page = manager.get(put_in(run, state, total_steps=10, step=5).get_absolute_url())
    assert page.status_code == 200
    assert State(state).label in page.content.decode()


def test_htmx_gets_the_state_alone(manager: Client, run: Run) -> None:
    fragment = manager.get(run.get_absolute_url(), headers={"HX-Request": "true"}).content.decode()
    assert 'id="run-state"' in fragment and "<html" not in fragment


@pytest.mark.parametrize(
    ("state", "offered"),
    [
        (State.CHECKING, {"cancel"}),
        (State.READY, {"start", "cancel"}),
        (State.REFUSED, {"resume"}),
        (State.RUNNING, {"cancel"}),
        (State.FAILED, {"resume"}),
        (State.CANCELLED, {"resume"}),
        (State.COMPLETE, set()),
    ],
)
def test_the_page_offers_what_the_state_allows(
    state: str, offered: set[str], manager: Client, run: Run
) -> None:
    page = manager.get(put_in(run, state).get_absolute_url()).content.decode()
    shown = {name for name in FORM_OF if f'action="{reverse(f"run_{name}", args=[run.pk])}"' in page}
    assert shown == offered


def said_of_the_queue(manager: Client, run: Run) -> str:
    return str(manager.get(run.get_absolute_url()).context["waits_behind"])


def test_a_queued_run_says_what_it_waits_behind(
    manager: Client, run: Run, project: Project, ann: User
) -> None:
    put_in(run, State.QUEUED)
    last = put_in(make_run(project, ann), State.QUEUED)
    assert said_of_the_queue(manager, run) == "The device is free; it is next."
    assert said_of_the_queue(manager, last) == "The device is free; 1 more before it."
    working = put_in(make_run(project, ann), State.RUNNING)
    assert said_of_the_queue(manager, run) == f"Run {working.pk} is on the device; it is next."
    assert said_of_the_queue(manager, last) == f"Run {working.pk} is on the device; 1 more before it."
    assert said_of_the_queue(manager, working) == ""


def test_the_queue_tells_of_another_project_only_that_it_has_a_run(
    manager: Client, run: Run, ann: User
) -> None:
    put_in(run, State.QUEUED)
    put_in(make_run(factories.make_project("Others"), ann), State.RUNNING)
    assert said_of_the_queue(manager, run) == "A run of another project is on the device; it is next."


def test_the_check_is_told_row_by_row_with_its_findings(manager: Client, run: Run) -> None:
    preflight = {
        "ok": False,
        "errors": [{"what": "All 40 rows are ties.", "where": "pairs.train", "do": "Judge more tasks."}],
        "warnings": ["3 prompts are on both sides of the split."],
        "rows": {"pairs": {"train": {"kept": 4120, "dropped": 17, "longest": 300, "ties": 40}}},
        "template": {"sample": "<|im_start|>user\nHi", "bos": 2, "eos_is_last": False},
        "estimate": {"seconds": 600, "memory_bytes": 3_000_000_000, "steps": 1040, "device": "cpu"},
    }
    page = manager.get(put_in(run, State.REFUSED, preflight=preflight).get_absolute_url()).content.decode()
    for said in (
        "All 40 rows are ties.", "Judge more tasks.", "pairs.train", "3 prompts are on both sides", "4,120",
        "17", "&lt;|im_start|&gt;user", "2 BOS tokens", "does not end with EOS", "10 min", "2.8", "1,040",
    ):  # fmt: skip
        assert said in page, said


def test_a_failed_run_tells_its_reason_and_its_last_words_as_text(manager: Client, run: Run) -> None:
    put_in(run, State.FAILED, message="The disk is full.", stderr_tail="<script>alert(1)</script>")
    page = manager.get(run.get_absolute_url()).content.decode()
    assert "The disk is full." in page
    assert "&lt;script&gt;alert(1)" in page and "<script>alert(1)" not in page


@pytest.mark.parametrize(
    ("state", "shown"),
    [(s, s in (State.FAILED, State.REFUSED)) for s in State.values],
)
def test_the_log_is_shown_only_where_something_went_wrong(
    state: str, shown: bool, manager: Client, run: Run
) -> None:
    put_in(run, state, stderr_tail="DeprecationWarning: soon")
    assert ("DeprecationWarning" in manager.get(run.get_absolute_url()).content.decode()) == shown


@pytest.mark.parametrize(
    ("state", "promised"),
    [(State.CHECKING, True), (State.RUNNING, True), (State.REFUSED, False), (State.COMPLETE, False)],
)
def test_curves_are_promised_only_while_some_may_come(
    state: str, promised: bool, manager: Client, run: Run
) -> None:
    page = manager.get(put_in(run, state).get_absolute_url()).content.decode()
    assert ('data-method="dpo">' in page) == promised
    assert ('data-method="dpo" hidden>' in page) != promised


def test_a_sampling_run_tells_what_it_wrote_and_leads_to_its_round(manager: Client, project: Project) -> None:
    round = make_sampled_round(project)
    run = put_in(
        runs.queue_sampling(round),
        State.COMPLETE,
        message="16 completions for 8 tasks; Round 1 is open.",
        started_at=timezone.now() - timedelta(seconds=30),
        ended_at=timezone.now(),
    )
    page = manager.get(run.get_absolute_url()).content.decode()
    assert f'8 tasks; Round 1 is open. <a href="{round.get_absolute_url()}">See Round 1</a>' in page
    assert 'data-method="sample" hidden>' in page


def test_a_run_names_the_policy_it_made(manager: Client, run: Run, project: Project) -> None:
    policy = factories.make_policy(project, "policy 2 (DPO, run 3)")
    Artifact.objects.create(run=run, kind="policy", folder="/x", policy=policy)
    page = manager.get(put_in(run, State.COMPLETE).get_absolute_url()).content.decode()
    assert f'It made <a href="{policy.get_absolute_url()}">policy 2 (DPO, run 3)</a>.' in page


def test_the_last_value_of_each_metric_is_there_without_javascript(manager: Client, run: Run) -> None:
    Metric.objects.create(run=run, seq=1, step=5, values={"loss": 0.7})
    Metric.objects.create(run=run, seq=2, step=10, values={"loss": 0.25, "eval_loss": 0.5})
    assert manager.get(run.get_absolute_url()).context["last_values"] == [
        ("eval_loss", 0.5, 10),
        ("loss", 0.25, 10),
    ]


@pytest.mark.parametrize(("total", "said"), [(0, ""), (80, ' value="20" max="80"')])
def test_a_running_run_has_a_bar_before_its_steps_are_counted(
    total: int, said: str, manager: Client, run: Run
) -> None:
    put_in(run, State.RUNNING, step=20, total_steps=total, message="Computing the reference")
    page = manager.get(run.get_absolute_url()).content.decode()
    assert f'<progress id="run-progress" class="progress"{said} aria-label="Steps done">' in page


def test_settings_are_told_in_groups_and_in_the_words_of_the_form(manager: Client, run: Run) -> None:
    shown = dict(manager.get(run.get_absolute_url()).context["settings_shown"])
    assert list(shown) == ["Training", "DPO", "Tuning", "Sampling"]
    assert ("Steps between checkpoints", run.config["training"]["save_every"]) in shown["Training"]
    tuning = dict(shown["Tuning"])
    assert tuning["What is trained"] == "LoRA adapters"
    assert "LoRA rank" in tuning and "Virtual tokens" not in tuning and "Frozen layers" not in tuning
    assert ("Batch size", run.config["sampling"]["batch_size"]) in shown["Sampling"]


def test_settings_that_a_method_does_not_read_are_not_told(
    manager: Client, project: Project, ann: User
) -> None:
    reward = make_run(project, ann, Run.Method.REWARD_MODEL)
    shown = dict(manager.get(reward.get_absolute_url()).context["settings_shown"])
    assert list(shown) == ["Training", "Reward model", "Tuning"]
    assert "Beta" not in dict(shown["Reward model"])  # a setting of DPO
    sampling = runs.queue_sampling(make_sampled_round(project))
    assert [name for name, _ in manager.get(sampling.get_absolute_url()).context["settings_shown"]] == [
        "Sampling"
    ]


def test_a_reward_model_that_learnt_from_ratings_alone_shows_how_well_it_orders_them(
    manager: Client, project: Project, ann: User
) -> None:
    run = make_run(project, ann, Run.Method.REWARD_MODEL)
    ratings = {"n": 240, "spearman": 0.713, "length_spearman": 0.2, "mae": 0.62, "mae_of_median": 1.04}
    evaluation = {"accuracy": None, "pairs": 0, "ratings": ratings}
    page = manager.get(put_in(run, State.COMPLETE, evaluation=evaluation).get_absolute_url()).content.decode()
    for said in ("On ratings it has not seen", "0.71", "240 ratings", "0.62", "1.04"):
        assert said in page, said
    assert "On comparisons it has not seen" not in page


def test_a_policy_without_kl_shows_its_figures_and_why(manager: Client, run: Run) -> None:
    evaluation = {"kl": None, "kl_note": "KL cannot be measured here.", "length_new": 48.2}
    page = manager.get(put_in(run, State.COMPLETE, evaluation=evaluation).get_absolute_url()).content.decode()
    assert "48.2" in page and "KL cannot be measured here." in page


def test_time_left_follows_the_pace_of_the_last_lines(manager: Client, run: Run) -> None:
    put_in(run, State.RUNNING, step=20, total_steps=80)
    for seq, ago in ((1, 30), (2, 0)):
        line = Metric.objects.create(run=run, seq=seq, step=seq * 10, values={})
        Metric.objects.filter(pk=line.pk).update(created_at=timezone.now() - timedelta(seconds=ago))
    assert "about 3 min left" in manager.get(run.get_absolute_url()).content.decode()


def test_no_time_is_left_when_all_steps_are_done(manager: Client, run: Run) -> None:
    put_in(run, State.RUNNING, step=20, total_steps=20)
    for seq, ago in ((1, 30), (2, 0)):
        line = Metric.objects.create(run=run, seq=seq, step=seq * 10, values={})
        Metric.objects.filter(pk=line.pk).update(created_at=timezone.now() - timedelta(seconds=ago))
    page = manager.get(run.get_absolute_url()).content.decode()
    assert "Step 20 of 20" in page and " left</span>" not in page


def test_a_reward_model_is_shown_beside_the_raters(manager: Client, project: Project, ann: User) -> None:
    run = make_run(project, ann, Run.Method.REWARD_MODEL)
    evaluation = {
        "accuracy": 0.74,
        "low": 0.6,
        "high": 0.85,
        "pairs": 41,
        "by_strength": {"1": {"accuracy": 0.55, "pairs": 20}, "4": {"accuracy": 0.93, "pairs": 21}},
        "calibration": [{"low": 0.5, "high": 0.6, "predicted": 0.56, "observed": 0.52, "count": 30}],
        "length_baseline_accuracy": 0.51,
    }
    page = manager.get(put_in(run, State.COMPLETE, evaluation=evaluation).get_absolute_url()).content.decode()
    for said in ("74 %", "60 % to 85 %", "41", "slightly", "far", "55 %", "93 %", "56 %", "52 %", "51 %"):
        assert said in page, said


def test_a_policy_is_shown_against_the_one_before(manager: Client, run: Run) -> None:
    evaluation = {
        "prompts": 64,
        "kl": 7.84,
        "win_rate_reward_model": 0.88,
        "win_rate_low": 0.8,
        "win_rate_high": 0.94,
        "reward_new": 1.92,
        "reward_old": 0.11,
        "length_new": 48.2,
        "length_old": 41.7,
        "eos_rate_new": 0.98,
        "eos_rate_old": 0.91,
    }
    page = manager.get(put_in(run, State.COMPLETE, evaluation=evaluation).get_absolute_url()).content.decode()
    for said in ("88 %", "80 % to 94 %", "7.84", "1.92", "0.11", "48.2", "41.7", "98 %", "91 %", "64"):
        assert said in page, said


def test_an_evaluation_that_failed_is_told_beside_the_model_that_is_there(manager: Client, run: Run) -> None:
    error = {"what": "A prompt <b>cannot</b> be read.", "where": "prompts.test.jsonl", "do": "Mend it."}
    put_in(run, State.COMPLETE, evaluation={"error": error})
    page = manager.get(run.get_absolute_url()).content.decode()
    assert "The model is there; measuring it failed." in page
    assert "A prompt &lt;b&gt;cannot&lt;/b&gt; be read." in page and "Mend it." in page


def test_why_there_is_no_next_round_is_told(manager: Client, run: Run) -> None:
    put_in(run, State.COMPLETE, message="Complete. The next round was not made: no prompts.")
    assert "The next round was not made: no prompts." in manager.get(run.get_absolute_url()).content.decode()


@pytest.mark.parametrize(
    "evaluation", [{"accuracy": "much"}, {"accuracy": None, "calibration": 3}, {"kl": None}, {"kl": 2}]
)
def test_an_evaluation_of_another_version_breaks_no_page(
    evaluation: dict[str, Any], manager: Client, run: Run
) -> None:
    assert (
        manager.get(put_in(run, State.COMPLETE, evaluation=evaluation).get_absolute_url()).status_code == 200
    )


def test_lineage_is_told_with_what_the_run_left(manager: Client, run: Run) -> None:
    Artifact.objects.create(
        run=run, kind="reward_model", folder="/runs/1/model", lineage={"versions": {"torch": "2.13.0"}}
    )
    page = manager.get(put_in(run, State.COMPLETE).get_absolute_url()).content.decode()
    assert run.dataset is not None
    for said in (run.dataset.digest, "starter", "torch 2.13.0", "/runs/1/model"):
        assert said in page, said


def test_the_page_says_when_no_worker_is_alive(manager: Client, run: Run) -> None:
    notice = "No training worker is alive"
    assert notice in manager.get(run.get_absolute_url()).content.decode()
    assert notice in manager.get(reverse("worker_notice")).content.decode()
    Worker.objects.create(name="w", device="cpu", seen_at=timezone.now())
    assert notice not in manager.get(run.get_absolute_url()).content.decode()
    assert notice not in manager.get(reverse("worker_notice")).content.decode()


@pytest.mark.parametrize("name", ["ann", "zed"])
def test_nobody_else_sees_a_run_or_its_workers(
    name: str, client: Client, run: Run, request: pytest.FixtureRequest
) -> None:
    client.force_login(request.getfixturevalue(name))
    assert client.get(run.get_absolute_url()).status_code == 404
    assert client.get(reverse("worker_notice")).status_code == 404


def test_a_manager_of_another_project_does_not_see_a_run(client: Client, run: Run) -> None:
    client.force_login(factories.make_user("max", factories.make_project("Others"), "manager"))
    assert client.get(run.get_absolute_url()).status_code == 404


def test_a_visitor_is_asked_to_sign_in(client: Client, run: Run) -> None:
    assert client.get(run.get_absolute_url()).headers["Location"].startswith(reverse("login"))


@pytest.mark.parametrize("run_id", [999, 10**25])
def test_a_run_that_is_not_there_is_not_found(run_id: int, manager: Client) -> None:
    assert manager.get(reverse("run", args=[run_id])).status_code == 404


def test_a_run_page_takes_no_post(manager: Client, run: Run) -> None:
    assert manager.post(run.get_absolute_url()).status_code == 405


# ---- start, cancel, resume


@pytest.mark.parametrize("action", FORM_OF)
def test_a_button_moves_the_run_and_comes_back_to_it(action: str, manager: Client, run: Run) -> None:
    put_in(run, FORM_OF[action])
    answer = manager.post(reverse(f"run_{action}", args=[run.pk]))
    run.refresh_from_db()
    assert answer.headers["Location"] == run.get_absolute_url()
    assert run.state == AFTER[action]


@pytest.mark.parametrize("action", FORM_OF)
def test_with_htmx_a_button_answers_with_the_new_state(action: str, manager: Client, run: Run) -> None:
    put_in(run, FORM_OF[action])
    answer = manager.post(reverse(f"run_{action}", args=[run.pk]), headers={"HX-Request": "true"})
    assert answer.status_code == 200
    assert State(AFTER[action]).label in answer.content.decode()


@pytest.mark.parametrize("action", FORM_OF)
def test_what_cannot_be_done_is_said_and_changes_nothing(action: str, manager: Client, run: Run) -> None:
    put_in(run, State.COMPLETE)
    address = reverse(f"run_{action}", args=[run.pk])
    fragment = manager.post(address, headers={"HX-Request": "true"})
    assert fragment.status_code == 409 and "is complete" in fragment.content.decode()
    assert "is complete" in manager.post(address, follow=True).content.decode()
    run.refresh_from_db()
    assert run.state == State.COMPLETE


def test_a_running_run_is_asked_to_stop_and_says_so(manager: Client, run: Run) -> None:
    put_in(run, State.RUNNING)
    page = manager.post(reverse("run_cancel", args=[run.pk]), follow=True).content.decode()
    run.refresh_from_db()
    assert run.state == State.RUNNING and run.cancel_asked
    assert "saving first" in page
    assert reverse("run_cancel", args=[run.pk]) not in page


@pytest.mark.parametrize("name", ["ann", "zed"])
@pytest.mark.parametrize("action", FORM_OF)
def test_nobody_else_moves_a_run(
    action: str, name: str, client: Client, run: Run, request: pytest.FixtureRequest
) -> None:
    put_in(run, FORM_OF[action])
    client.force_login(request.getfixturevalue(name))
    assert client.post(reverse(f"run_{action}", args=[run.pk])).status_code == 404
    run.refresh_from_db()
    assert run.state == FORM_OF[action]


@pytest.mark.parametrize("action", FORM_OF)
def test_a_run_that_is_not_there_cannot_be_moved(action: str, manager: Client) -> None:
    assert manager.post(reverse(f"run_{action}", args=[999])).status_code == 404


@pytest.mark.parametrize("action", FORM_OF)
def test_looking_at_a_button_moves_nothing(action: str, manager: Client, run: Run) -> None:
    assert manager.get(reverse(f"run_{action}", args=[run.pk])).status_code == 405


# ---- the files of the GPU side


@pytest.mark.training
def test_the_page_reads_what_the_evaluation_writes(manager: Client, project: Project, ann: User) -> None:
    """Both sides by their own code: a name that only one of them knows would leave a gap on the page."""
    figures_of = pytest.importorskip("training.rlhf.measures.figures")
    from training.rlhf.data import Comparison, Element

    elements = [
        Element(
            table="pairs",
            line=n,
            prompt=[{"role": "user", "content": "?"}],
            completions=[
                [{"role": "assistant", "content": "a" * n}],
                [{"role": "assistant", "content": "b"}],
            ],
            comparisons=[Comparison(chosen=0, rejected=1, margin=1.0, weight=1.0, p=1.0)],
            strength=1 + n % 4,
        )
        for n in range(2, 10)
    ]
    figures = figures_of.reward_figures(elements, [0.5, 0.1] * 6 + [0.1, 0.5] * 2)
    run = make_run(project, ann, Run.Method.REWARD_MODEL)
    page = manager.get(put_in(run, State.COMPLETE, evaluation=figures).get_absolute_url())
    shown = page.context["reward_evaluation"]
    assert (shown.accuracy, shown.pairs, shown.length_baseline) == (0.75, 8, 1.0)
    assert [row[0] for row in shown.by_strength.rows] == ["slightly", "somewhat", "clearly", "far"]
    assert sum(int(row[2]) for row in shown.calibration.rows) == 8
