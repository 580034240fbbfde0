"""A sampling run asks a server: a real one on loopback, that is busy, refuses, and is asked nothing twice."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.loopback import serving
from tests.training_rlhf.conftest import run_child, start_child, write_rows
from training.rlhf import chat_server, preflight, sampling
from training.rlhf.config import RunConfig
from training.rlhf.failures import Refused
from training.rlhf.method_settings import ConfigError
from training.rlhf.run_dir import EXIT_REFUSED, ProgressWriter, RunDir, read_jsonl

KEY = "sk-do-not-tell"
PARTS = {"system_prompt": "Be brief."}
Reply = tuple[int, dict[str, str], Any]


class Server(ThreadingHTTPServer):
    """Says the last turn back, unless `reply` has something else to say to a body."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.busiest = self.now = 0
        self.lock = threading.Lock()
        self.reply: Callable[[dict[str, Any], int], Reply | None] = lambda body, number: None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            number = len(server.asked)
            server.asked.append(body)
            server.keys.add(self.headers.get("Authorization"))
            server.now += 1
            server.busiest = max(server.busiest, server.now)
        said = server.reply(body, number) or (200, {}, said_back(body))
        with server.lock:
            server.now -= 1
        status, headers, content = said
        raw = json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def said_back(body: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": f"You said {body['messages'][-1]['content']}"}
    return {
        "model": "org/large-2026",
        "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 5},
    }


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv(chat_server.KEY, KEY)
    monkeypatch.delenv(chat_server.KEYS, raising=False)
    monkeypatch.setattr(chat_server, "FIRST_WAIT", 0.01)
    with serving(Server()) as running:
        yield running


def make_run(folder: Path, server: Server, *, requests: int = 6, **served: Any) -> RunDir:
    run_dir = RunDir(folder)
    rows = [
        {"prompt": [{"role": "user", "content": f"number {n}"}], "policies": ["large"]}
        for n in range(requests)
    ]
    write_rows(run_dir.data / "requests.jsonl", rows)
    recipe = {
        "method": "sample",
        "policies": {"large": server.address},
        "servers": {"large": {"model": "org/large", "retries": 2, **served}},
        "prompt_parts": {"large": PARTS},
        "sampling": {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 12},
    }
    run_dir.config.write_text(json.dumps(recipe), encoding="utf-8")
    return run_dir


def write(run_dir: RunDir) -> list[dict[str, Any]]:
    sampling.run(run_dir, RunConfig.load(run_dir.config), ProgressWriter(run_dir))
    return list(read_jsonl(run_dir.completions))


def test_a_server_writes_to_every_request_and_its_words_are_kept(tmp_path: Path, server: Server) -> None:
    lines = write(make_run(tmp_path, server))
    assert [line["text"] for line in lines] == [f"You said number {n}" for n in range(6)]
    assert {(line["finish"], line["tokens"]) for line in lines} == {("eos", 5)}
    served = lines[0]["served"]
    assert (served["model"], served["reported_model"], served["fingerprint"]) == (
        "org/large",
        "org/large-2026",
        "fp_1",
    )
    body = server.asked[0]
    assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == (
        "org/large",
        0.7,
        0.9,
        12,
    )
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert len({one["seed"] for one in server.asked}) == 6
    assert server.keys == {f"Bearer {KEY}"}


def test_so_many_questions_are_under_way_and_no_more(tmp_path: Path, server: Server) -> None:
    server.reply = lambda body, number: time.sleep(0.03)
    write(make_run(tmp_path, server, requests=24, at_once=3))
    assert server.busiest == 3


def test_a_busy_server_is_asked_again_after_what_it_asks_for(tmp_path: Path, server: Server) -> None:
    busy: dict[int, Reply] = {1: (429, {"Retry-After": "0.3"}, {}), 2: (503, {}, {}), 3: (500, {}, {})}
    heard: list[float] = []

    def reply(body: dict[str, Any], number: int) -> Reply | None:
        heard.append(time.monotonic())
        return busy.get(number)

    server.reply = reply
    assert len(write(make_run(tmp_path, server, requests=2, at_once=1, retries=3))) == 2
    assert heard[2] - heard[1] >= 0.3
    assert len(server.asked) == 5


def test_a_refusal_costs_one_question_and_says_what_the_server_said(tmp_path: Path, server: Server) -> None:
    server.reply = lambda body, number: (404, {}, {"error": f"no model org/large for {KEY}"})
    with pytest.raises(Refused) as caught:
        write(make_run(tmp_path, server))
    said = caught.value
    assert "HTTP 404" in said.what and "no model org/large" in said.what
    assert said.where == server.address and "org/large" in said.do and chat_server.KEY in said.do
    assert KEY not in str(said)
    assert len(server.asked) == 1


def test_preflight_asks_the_longest_question_and_nothing_else(tmp_path: Path, server: Server) -> None:
    run_dir = make_run(tmp_path, server, requests=11)
    config = RunConfig.load(run_dir.config)
    assert preflight.check(run_dir, config)["ok"]
    (asked,) = server.asked
    assert asked["messages"][-1]["content"] == "number 10"
    server.reply = lambda body, number: (401, {}, {"error": "who are you"})
    report = preflight.check(run_dir, config)
    assert not report["ok"] and "who are you" in report["errors"][0]["what"]


def test_a_redirect_is_not_followed_with_the_key(tmp_path: Path, server: Server) -> None:
    server.reply = lambda body, number: (307, {"Location": server.address}, {})
    with pytest.raises(Refused, match="HTTP 307"):
        write(make_run(tmp_path, server))
    assert len(server.asked) == 1


def test_a_server_that_wants_the_newer_name_of_the_length_gets_it(tmp_path: Path, server: Server) -> None:
    def reply(body: dict[str, Any], number: int) -> Reply | None:
        old = "max_tokens" in body
        return (400, {}, {"error": "use max_completion_tokens instead"}) if old else None

    server.reply = reply
    assert len(write(make_run(tmp_path, server, at_once=1))) == 6
    assert [("max_tokens" in body) for body in server.asked] == [True] + [False] * 6


def test_a_killed_run_asks_nothing_twice(tmp_path: Path, server: Server) -> None:
    server.reply = lambda body, number: time.sleep(0.2)
    run_dir = make_run(tmp_path, server, requests=12, at_once=2)
    child = start_child(run_dir)
    answered = run_dir.path / "served.jsonl"
    while not answered.exists() or answered.read_bytes().count(b"\n") < 5:
        assert child.poll() is None, child.communicate()[0]
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    with open(answered, "ab") as file:
        file.write(b'{"place": 11, "comp')  # what a death in the middle of a line leaves
    kept = {json.loads(line)["place"] for line in answered.read_bytes().splitlines()[:-1]}
    server.asked.clear()
    ended = run_child(run_dir)
    assert ended.returncode == 0, ended.stdout
    asked = {body["messages"][-1]["content"] for body in server.asked}
    assert asked.isdisjoint({f"number {place}" for place in kept}) and len(kept) >= 5
    lines = list(read_jsonl(run_dir.completions))
    assert [line["text"] for line in lines] == [f"You said number {n}" for n in range(12)]


def test_a_server_that_is_not_there_ends_the_child_with_words(tmp_path: Path, server: Server) -> None:
    run_dir = make_run(tmp_path, server, retries=0)
    recipe = json.loads(run_dir.config.read_text())
    recipe["policies"]["large"] = "http://127.0.0.1:9/v1"
    run_dir.config.write_text(json.dumps(recipe))
    ended = run_child(run_dir)
    assert ended.returncode == EXIT_REFUSED
    error = json.loads(run_dir.error.read_text())
    assert "does not answer: Connect" in error["what"] and error["where"] == "http://127.0.0.1:9/v1"
    assert "resume" in error["do"] and KEY not in json.dumps(error) + ended.stdout


def test_each_address_may_have_its_own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys.json"
    monkeypatch.setenv(chat_server.KEY, "common")
    monkeypatch.setenv(chat_server.KEYS, str(file))
    with pytest.raises(Refused, match="cannot be read"):
        chat_server.key_for("https://a.example/v1")
    file.write_text(json.dumps({"https://a.example/v1/": "own"}))
    assert chat_server.key_for("https://a.example/v1") == "own"
    assert chat_server.key_for("https://b.example/v1") == "common"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"policies": {"large": "https://me:key@host/v1"}}, "a key does not belong into an address"),
        ({"policies": {"large": "https://host/v1?key=1"}}, "leave out"),
        ({"servers": {"other": {}}}, "no policy of this name has an address"),
        ({"servers": {"large": {"at_once": 0}}}, "at_once"),
        ({"method": "dpo", "model": "https://host/v1", "servers": {}, "policies": {}}, "cannot be trained"),
    ],
)
def test_a_recipe_with_a_wrong_server_is_refused(changes: dict[str, Any], said: str) -> None:
    recipe = {"method": "sample", "policies": {"large": "https://host/v1"}, "servers": {"large": {}}}
    with pytest.raises(ConfigError, match=said):
        RunConfig.from_json(recipe | changes)
