"""The whole path with the real worker: a server judges by the constitution, DPO learns, people audit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User

pytest.importorskip("torch")
pytestmark = pytest.mark.training

from labeling import audits, constitutions  # noqa: E402
from labeling.models import Project, Task  # noqa: E402
from tests.labeling.judged import make_prompt, vote  # noqa: E402
from tests.loopback import serving  # noqa: E402
from tests.training import stage  # noqa: E402
from tests.training.test_real_trainer import SECONDS, TINY  # noqa: E402
from tests.training_rlhf.constitutional import prefers_longer  # noqa: E402
from tests.training_rlhf.test_judge import Server  # noqa: E402
from training import runs  # noqa: E402
from training.constitutional import create_run  # noqa: E402
from training.models import Run  # noqa: E402
from training.worker import TrainingWorker  # noqa: E402


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as running:
        yield running


def come_home(worker: TrainingWorker, run: Run) -> Run:
    stage.work_through(worker, run, SECONDS)
    assert run.state == Run.State.COMPLETE, f"{run.message}\n{run.stderr_tail}"
    return run


def test_a_constitution_leads_to_examples_preferences_a_policy_and_an_audit(
    project: Project, ann: User, server: Server, settings: Any, tmp_path: Path
) -> None:
    server.answer = prefers_longer
    settings.JUDGES = [server.address]
    settings.RUN_LEASE_SECONDS = 30
    policy = stage.make_tiny_starter(project, tmp_path / "models")
    for number in range(12):
        make_prompt(project, f"Say {number}.", "test" if number > 9 else "train")
    constitution = constitutions.save(
        project=project, principles=[{"text": "Say more."}, {"text": "Be kind."}]
    )
    worker = stage.make_worker()
    short = {"sampling": {"max_new_tokens": 32}}

    def write(method: str, **config: Any) -> Run:
        run = create_run(
            project=project,
            method=method,
            policy=policy,
            constitution=constitution,
            config={**short, **config},
            start_when_ready=True,
        )
        return come_home(worker, run)

    revised = write("critique_revision")
    assert sum(revised.evaluation["made"]["outcomes"].values()) == 12

    judged = write("ai_preferences", ai_preferences={"judge": server.address})
    assert len(server.asked) >= 24
    pairs = judged.made_dataset
    assert pairs is not None and pairs.manifest["made"]["judge"] == server.address
    assert judged.evaluation["made"]["verdicts"]["nonsense"] == 0

    dpo = runs.create_run(
        project=project, method="dpo", dataset=pairs, policy=policy, config=TINY, start_when_ready=True,
        then_next_round=False,
    )  # fmt: skip
    assert come_home(worker, dpo).artifact.policy is not None

    round = audits.open_audit(dataset=pairs, pairs=5)
    for task in Task.objects.filter(round=round):
        vote(task, ann, 1)
    report = audits.report(pairs)
    assert report is not None and report.agreement.labels == 5
