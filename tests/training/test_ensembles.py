"""Reward models that differ by seed: made by one click, measured together, shown and used together."""

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from labeling.models import PreferenceDataset, Project
from tests.training.run_pages import manager, put_in
from tests.training.test_methods import judged, post
from training import ensembles
from training.models import Artifact, Run

__all__ = ["judged", "manager"]  # fixtures
State = Run.State


@pytest.fixture
def three(manager: Client, project: Project, judged: PreferenceDataset) -> list[Run]:
    post(manager, project, "reward_model", seed=5, ensemble_size=3)
    return list(Run.objects.order_by("pk"))


def scores(*rows: list[float], p: float = 1.0) -> list[dict[str, Any]]:
    """Rows of pairs; people prefer the first."""
    return [
        {"table": "pairs", "line": n + 1, "prompt": n, "scores": row, "comparisons": [[0, 1, p]]}
        for n, row in enumerate(rows)
    ]


def test_one_click_makes_runs_that_differ_by_seed_alone(three: list[Run]) -> None:
    assert [run.config["seed"] for run in three] == [5, 6, 7]
    recipes = [{**run.config, "seed": 0} for run in three]
    assert recipes[0] == recipes[1] == recipes[2]
    assert {run.ensemble_id for run in three} == {three[0].pk}
    assert {run.state for run in three} == {State.CHECKING}


def test_one_alone_is_an_ordinary_run(manager: Client, project: Project, judged: PreferenceDataset) -> None:
    post(manager, project, "reward_model")
    assert Run.objects.get().ensemble_id is None
    assert post(manager, project, "reward_model", ensemble_size=9).status_code == 422


def test_disagreement_is_of_scores_on_one_scale_and_pairs_in_doubt_are_right_less_often() -> None:
    """The second model says the same ten times as loud: they agree. Two others turn the last rows round."""
    plain = [[float(n), 0.0] for n in range(9)]
    loud = [[10 * a + 100, 10 * b + 100] for a, b in plain]
    rows = ensembles.combined([scores(*plain), scores(*loud)])
    assert max(value for row in rows for value in row.disagreement) < 1e-9
    turned = [[a, b] if n < 6 else [-a, b] for n, (a, b) in enumerate(plain)]
    found = ensembles.figures(
        ensembles.combined([scores(*plain), scores(*turned), scores(*turned)]), [1, 2, 3]
    )
    assert found["alone"][0]["rate"] == pytest.approx(8.5 / 9)  # the first row is a tie
    assert found["alone"][1]["rate"] == pytest.approx(5.5 / 9)
    assert found["by_doubt"]["disagree"]["rate"] < found["by_doubt"]["between"]["rate"]
    assert found["disagreement"] > 0.1
    ties = ensembles.figures(ensembles.combined([scores(*plain, p=0.5)] * 2), [1, 2])
    assert ties["together"] is None and ties["by_doubt"] == {}


def test_they_are_measured_when_the_last_is_complete_and_shown_on_each_page(
    manager: Client, project: Project, three: list[Run]
) -> None:
    for number, run in enumerate(three):
        run.folder.mkdir(parents=True)
        rows = scores(*[[n + 0.1 * number * (n % 3), 1.0] for n in range(12)])
        (run.folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        put_in(run, State.COMPLETE, evaluation={"accuracy": 0.7})
        Artifact.objects.create(run=run, kind="reward_model", folder=f"/runs/{run.pk}/model")
        ensembles.measure(run)
        three[0].refresh_from_db()
        assert ("ensemble" in three[0].evaluation) == (number == 2)
    assert three[0].evaluation["accuracy"] == 0.7
    kept = [json.loads(line) for line in (three[0].folder / ensembles.FILE).read_text().splitlines()]
    assert len(kept) == 12 and set(kept[0]) == {"table", "line", "mean", "disagreement"}
    for run in three:
        page = manager.get(run.get_absolute_url()).content.decode()
        assert "One of 3 that differ by seed" in page
        assert "standard deviations apart on a held-out completion" in page
    address = reverse("run_new", args=[project.slug])
    form = manager.get(f"{address}?method=ppo&ensemble={three[0].pk}").context["form"]
    assert sorted(form["ensemble_models"].value()) == [str(run.pk) for run in three]
    assert form.ensemble_open()


def test_a_lost_file_leaves_the_models_as_they_are(three: list[Run]) -> None:
    for run in three:
        put_in(run, State.COMPLETE)
    ensembles.measure(three[2])
    three[0].refresh_from_db()
    assert three[0].evaluation == {}


def test_a_program_may_make_one_too_but_of_nothing_else(
    manager: Client, project: Project, judged: PreferenceDataset
) -> None:
    given = {"dataset": judged.pk, "policy": project.current_policy_id, "ensemble_size": 2}
    address = f"/api/v1/projects/{project.slug}/runs/"
    answer = manager.post(address, given | {"method": "reward_model"}, content_type="application/json")
    assert answer.status_code == 201, answer.content
    assert answer.json()["ensemble"] == answer.json()["id"] and Run.objects.count() == 2
    answer = manager.post(address, given | {"method": "dpo"}, content_type="application/json")
    assert answer.status_code == 400 and Run.objects.count() == 2


def test_strangers_do_not_see_an_ensemble(client: Client, zed: User, three: list[Run]) -> None:
    client.force_login(zed)
    assert client.get(three[1].get_absolute_url()).status_code == 404
