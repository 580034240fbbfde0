"""The run page in a real browser: figures arrive while it is open, and survive a reload and a restart."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import uvicorn
from django.contrib.auth.models import User
from django.utils import timezone
from playwright.sync_api import Page, expect

from labeling.models import Project
from tests.training.stage import make_dataset, make_run, make_starter
from training.models import Metric, Run, Worker

PHONE = {"width": 390, "height": 844}


@pytest.fixture
def run(project: Project, ann: User) -> Run:
    """A run that trains: step 10 of 50."""
    run = make_run(project, ann, start_when_ready=False)
    return put_in(run, "running", step=10, total_steps=50, message="Training")


def put_in(run: Run, state: str, **values: Any) -> Run:

    if state == "running":
        values |= {"worker": "w", "leased_until": timezone.now() + timedelta(minutes=10)}
    Run.objects.filter(pk=run.pk).update(state=state, **values)
    run.refresh_from_db()
    return run


def report(run: Run, seq: int, **values: float) -> None:
    """What the worker stores when the trainer has written a line."""
    Metric.objects.create(run=run, seq=seq, step=seq * 5, values=values)
    Run.objects.filter(pk=run.pk).update(step=seq * 5, last_seq=seq)


def value_of(page: Page, metric: str) -> Any:
    return page.locator(f'#run-values tr[data-metric="{metric}"] td').first


def chart(page: Page, title: str) -> Any:
    return page.locator(".live-chart", has_text=title)


def test_figures_appear_in_charts_and_table_while_the_page_is_open(
    page: Page, sign_in: Callable[..., None], mia: User, run: Run
) -> None:
    sign_in(page, mia)
    page.goto(run.get_absolute_url())
    expect(page.get_by_text("Curves appear here")).to_be_visible()
    report(run, 1, loss=0.6931)
    report(run, 2, loss=0.4, **{"rewards/accuracies": 0.55, "rewards/margins": 0.1})
    report(run, 3, loss=0.3, **{"rewards/accuracies": 0.75, "rewards/margins": 0.4})
    expect(chart(page, "Loss").locator("canvas")).to_be_visible()
    expect(chart(page, "Reward accuracy").locator("canvas")).to_be_visible()
    expect(chart(page, "Reward margin").get_by_role("listitem").first).to_have_text("training 0.4")
    page.get_by_text("Latest values").click()
    expect(value_of(page, "loss")).to_have_text("0.3")
    expect(page.locator("#run-step")).to_have_text("Step 15 of 50")
    page.reload()
    expect(chart(page, "Loss").locator("canvas")).to_be_visible()
    report(run, 4, loss=0.2)
    page.get_by_text("Latest values").click()
    expect(value_of(page, "loss")).to_have_text("0.2")


def test_four_charts_stand_two_by_two_on_a_desk(
    page: Page, sign_in: Callable[..., None], mia: User, run: Run
) -> None:
    page.set_viewport_size({"width": 1440, "height": 900})
    sign_in(page, mia)
    values = {"rewards/accuracies": 0.5, "rewards/margins": 0.1, "logps/chosen": -9, "logps/rejected": -8}
    for seq in (1, 2):
        report(run, seq, loss=0.6, eval_loss=0.7, **values)
    page.goto(run.get_absolute_url())
    expect(page.locator(".live-chart")).to_have_count(4)
    boxes = [found.bounding_box() for found in page.locator(".live-chart").all()]
    assert len({box["x"] for box in boxes if box}) == len({box["y"] for box in boxes if box}) == 2


def test_a_bar_moves_without_a_number_until_the_steps_are_counted(
    page: Page, sign_in: Callable[..., None], mia: User, run: Run
) -> None:
    put_in(run, "running", step=0, total_steps=0, message="Computing the reference's log-probabilities")
    sign_in(page, mia)
    page.goto(run.get_absolute_url())
    expect(page.get_by_text("Computing the reference's log-probabilities")).to_be_visible()
    expect(page.locator("#run-progress:indeterminate")).to_be_visible()
    put_in(run, "running", step=5, total_steps=40, message="Training")
    expect(page.locator("#run-step")).to_have_text("Step 5 of 40")
    expect(page.locator("#run-progress:not(:indeterminate)")).to_have_attribute("value", "5")


def test_a_run_that_ends_without_figures_promises_none_any_more(
    page: Page, sign_in: Callable[..., None], mia: User, run: Run
) -> None:
    sign_in(page, mia)
    page.goto(run.get_absolute_url())
    expect(page.get_by_text("Curves appear here")).to_be_visible()
    put_in(run, "failed", message="The disk is full.")
    expect(page.get_by_text("Curves appear here")).to_be_hidden()


def test_the_page_shows_a_new_state_with_its_buttons_by_itself(
    page: Page, sign_in: Callable[..., None], mia: User, run: Run
) -> None:
    sign_in(page, mia)
    page.goto(run.get_absolute_url())
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    put_in(run, "failed", message="The disk is full.")
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    expect(page.get_by_text("The disk is full.")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)


def test_a_click_cancels_and_two_browsers_see_it(
    page: Page, new_page: Callable[..., Page], sign_in: Callable[..., None], mia: User, run: Run
) -> None:
    put_in(run, "queued", worker="", leased_until=None)
    other = new_page()
    for browser in (page, other):
        sign_in(browser, mia)
        browser.goto(run.get_absolute_url())
        expect(browser.get_by_role("button", name="Cancel")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    for browser in (page, other):
        expect(browser.get_by_text("Cancelled before it started.")).to_be_visible()


def test_a_queued_run_follows_the_queue_while_the_page_is_open(
    page: Page, sign_in: Callable[..., None], mia: User, run: Run, project: Project, ann: User
) -> None:
    waiting = put_in(make_run(project, ann), "queued")
    sign_in(page, mia)
    page.goto(waiting.get_absolute_url())
    expect(page.get_by_text(f"Run {run.pk} is on the device; it is next.")).to_be_visible()
    put_in(run, "complete", worker="", leased_until=None)
    expect(page.get_by_text("The device is free; it is next.")).to_be_visible(timeout=15_000)


def test_hostile_names_of_metrics_and_messages_stay_text(
    page: Page, sign_in: Callable[..., None], mia: User, run: Run
) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    sign_in(page, mia)
    page.goto(run.get_absolute_url())
    report(run, 1, **{hostile: 1.0})
    Run.objects.filter(pk=run.pk).update(message=hostile)
    page.get_by_text("Latest values").click()
    expect(page.get_by_role("rowheader", name=hostile)).to_be_visible()
    expect(page.locator("#run-message")).to_have_text(hostile)
    expect(page.locator("main img")).to_have_count(0)


def test_a_rater_hears_nothing_on_the_socket(
    page: Page, sign_in: Callable[..., None], ann: User, run: Run
) -> None:
    report(run, 1, loss=0.5)
    sign_in(page, ann)
    page.goto("/")
    code = page.evaluate(
        """id => new Promise(done => {
            const socket = new WebSocket(`ws://${location.host}/ws/runs/${id}/`);
            socket.onmessage = event => done(event.data);
            socket.onclose = event => done(event.code);
        })""",
        run.pk,
    )
    assert code == 4404


class OwnServer:
    """A server that a test may stop and start again at the same address."""

    def __init__(self, application: Any) -> None:
        self.application = application
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def start(self) -> None:
        config = uvicorn.Config(
            self.application,
            host="127.0.0.1",
            port=self.port,
            log_level="error",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        end = time.monotonic() + 15
        while not self.server.started:
            assert time.monotonic() < end, "the server did not start within 15 s"
            time.sleep(0.02)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(15)


@pytest.fixture
def own_server(server: str) -> Iterator[OwnServer]:
    from rlhf_site.asgi import application

    own = OwnServer(application)
    own.start()
    yield own
    own.stop()


def test_after_a_restart_of_the_server_the_page_goes_on_where_it_was(
    new_page: Callable[..., Page],
    sign_in: Callable[..., None],
    mia: User,
    run: Run,
    own_server: OwnServer,
) -> None:
    page = new_page()
    sign_in(page, mia)  # cookies know no port
    report(run, 1, loss=0.6)
    report(run, 2, loss=0.5)
    asked: list[str] = []
    page.on("websocket", lambda opened: asked.append(opened.url))
    page.goto(f"http://127.0.0.1:{own_server.port}{run.get_absolute_url()}")
    expect(chart(page, "Loss").get_by_role("listitem").first).to_have_text("training 0.5")
    own_server.stop()
    expect(page.locator("#run-connection")).to_have_text("Connection lost; trying again.")
    report(run, 3, loss=0.1)
    own_server.start()
    expect(chart(page, "Loss").get_by_role("listitem").first).to_have_text("training 0.1", timeout=20_000)
    expect(page.locator("#run-connection")).to_have_text("")
    assert asked[0].endswith("?after=0") and asked[-1].endswith("?after=2")


def test_without_javascript_the_last_values_are_in_the_table(
    new_page: Callable[..., Page], sign_in: Callable[..., None], mia: User, run: Run
) -> None:
    report(run, 1, loss=0.6)
    page = new_page(java_script_enabled=False)
    sign_in(page, mia)
    page.goto(run.get_absolute_url())
    page.get_by_text("Latest values").click()
    expect(value_of(page, "loss")).to_have_text("0.6")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("saving first")).to_be_visible()


def test_the_notice_goes_when_a_worker_comes(
    page: Page, sign_in: Callable[..., None], mia: User, run: Run
) -> None:

    sign_in(page, mia)
    page.goto(run.get_absolute_url())
    expect(page.get_by_text("No training worker is alive")).to_be_visible()
    Worker.objects.create(name="w", device="cpu", seen_at=timezone.now() + timedelta(hours=1))
    expect(page.get_by_text("No training worker is alive")).to_be_hidden(timeout=15_000)


@pytest.mark.parametrize("viewport", [PHONE, {"width": 1440, "height": 900}], ids=["phone", "desk"])
def test_no_page_of_training_is_wider_than_its_window(
    viewport: dict[str, int],
    new_page: Callable[..., Page],
    sign_in: Callable[..., None],
    mia: User,
    project: Project,
    run: Run,
) -> None:
    report(run, 1, loss=0.6)
    report(run, 2, loss=0.5)
    page = new_page(viewport=viewport)
    sign_in(page, mia)
    assert run.policy is not None
    addresses = [project.get_absolute_url(), run.get_absolute_url(), run.policy.get_absolute_url()]
    new = f"{project.get_absolute_url()}runs/new/"
    for address in [*addresses, new, f"{new}?method=dpo", f"{new}?method=ppo"]:
        page.goto(address)
        page.evaluate("document.querySelectorAll('main details').forEach(each => each.open = true)")
        width = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert width <= 0, address


def test_all_that_a_run_found_fits_a_phone(
    new_page: Callable[..., Page], sign_in: Callable[..., None], mia: User, project: Project, ann: User
) -> None:
    preflight = {"rows": {"pairs": {"train": {"kept": 4120, "dropped": 1417, "longest": 3000, "ties": 400}}}}
    bins = [{"low": 0.5, "high": 0.6, "predicted": 0.56, "observed": 0.52, "count": 30}]
    found: dict[str, dict[str, Any]] = {
        "reward_model": {"accuracy": 0.7, "calibration": bins, "by_strength": {"1": {"accuracy": 0.5}}},
        "dpo": {"prompts": 256, "kl": 7.8, "length_new": 48.2, "length_old": 41.7, "eos_rate_new": 0.9},
    }
    page = new_page(viewport=PHONE)
    sign_in(page, mia)
    for method, evaluation in found.items():
        run = make_run(project, ann, method)
        put_in(run, "complete", evaluation=evaluation, preflight={"ok": True, **preflight})
        page.goto(run.get_absolute_url())
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        too_wide = page.evaluate(
            """[...document.querySelectorAll(".table-wrap, html")]
                .filter(each => each.scrollWidth > each.clientWidth).map(each => each.textContent)"""
        )
        assert too_wide == [], method


def test_a_manager_sends_a_run_from_the_form_to_its_check(
    page: Page, sign_in: Callable[..., None], mia: User, project: Project, ann: User
) -> None:
    make_starter(project)
    make_dataset(project, ann)
    sign_in(page, mia)
    page.goto(f"{project.get_absolute_url()}runs/new/")
    page.get_by_role("link", name="DPO Learns").press("Enter")
    page.get_by_label("Beta").fill("0.2")
    page.get_by_role("button", name="Check the run").click()
    expect(page.get_by_role("heading", name="DPO")).to_be_visible()
    expect(page.get_by_text("Checking", exact=True)).to_be_visible()
    assert Run.objects.get().config["dpo"]["beta"] == 0.2


def test_settings_of_another_kind_of_tuning_are_out_of_sight_until_something_is_wrong_with_them(
    page: Page, sign_in: Callable[..., None], mia: User, project: Project, ann: User
) -> None:
    make_starter(project)
    make_dataset(project, ann)
    sign_in(page, mia)
    page.goto(f"{project.get_absolute_url()}runs/new/?method=dpo")
    page.get_by_text("More settings").click()
    page.get_by_label("Tuning").select_option("lora")
    expect(page.get_by_label("LoRA rank")).to_be_visible()
    page.get_by_label("LoRA rank").fill("0")
    page.get_by_label("Tuning").select_option("full")
    expect(page.get_by_label("LoRA rank")).to_be_hidden()
    page.get_by_role("button", name="Check the run").click()
    expect(page.get_by_label("LoRA rank")).to_be_visible()
