"""Make the README's pictures: `python -m tests.pictures FOLDER`, kept from `demo --headless --keep FOLDER`.

A real server, a real browser, the figures of the loop that ran there.
"""

import os
import sys
from pathlib import Path

OUT = Path(__file__).resolve().parent.parent / "docs" / "pictures"
WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


def main() -> None:
    os.environ["RATCHET_VAR"] = str(Path(sys.argv[1]).resolve())
    os.environ["DJANGO_SETTINGS_MODULE"] = "rlhf_site.settings"
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
    import django

    django.setup()
    from django.conf import settings

    from rlhf_site.demo.processes import Processes

    cookies, judge, story = _prepare()
    processes = Processes(host="127.0.0.1", port=8700, log_dir=settings.VAR_DIR / "log")
    try:
        processes.start()
        _photograph(processes.address, cookies, {"judge": judge, "story": story})
    finally:
        processes.stop()


def _prepare() -> tuple[dict[str, str], str, str]:
    """Session keys of a rater and a manager, and the addresses of the two pages."""
    from django.contrib.auth.models import User

    from labeling import rounds
    from labeling.models import Project

    project = Project.objects.get()
    last = project.rounds.latest("number")
    if last.state != last.State.OPEN:
        plan = rounds.RoundPlan(source="existing", train_prompts=40)
        last = rounds.create_round(project=project, protocol=last.protocol, plan=plan)
    keys = {name: _session(User.objects.get(username=user)) for name, user in PEOPLE.items()}
    return keys, f"/rounds/{last.pk}/judge/", project.get_absolute_url()


PEOPLE = {"judge": "ann", "story": "mia"}


def _session(user: object) -> str:
    from django.test import Client

    client = Client()
    client.force_login(user)  # type: ignore[arg-type]
    return client.cookies["sessionid"].value


def _photograph(address: str, sessions: dict[str, str], pages: dict[str, str]) -> None:
    from playwright.sync_api import sync_playwright

    OUT.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        for name, path in pages.items():
            for size, view in (("", WIDE), ("-phone", PHONE)):
                context = browser.new_context(viewport=view)  # type: ignore[arg-type]
                context.add_cookies([{"name": "sessionid", "value": sessions[name], "url": address}])
                page = context.new_page()
                page.goto(address + path)
                page.screenshot(path=OUT / f"{name}{size}.png")
                context.close()
        browser.close()


if __name__ == "__main__":
    main()
