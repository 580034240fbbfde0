"""A policy behind OpenAI's interface: a real server on loopback, asked over HTTP."""

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import httpx2
import uvicorn

from tests.training_rlhf.conftest import ROOT
from training.rlhf import loading, rendering, sampling, serve
from training.rlhf.config import Sampling
from training.rlhf.failures import Refused
from training.rlhf.server.serving import Server

HELLO = [{"role": "user", "content": "Say hello."}]
CHAT = "/v1/chat/completions"
DRAWN: dict[str, Any] = {"messages": HELLO, "seed": 3, "max_tokens": 12}


@pytest.fixture(scope="module")
def server(tiny_policy: Path) -> Iterator[Server]:
    model, tokenizer = loading.load_policy(str(tiny_policy)), loading.load_tokenizer(str(tiny_policy))
    loading.fit(model, tokenizer, where=str(tiny_policy))
    yield Server(model, tokenizer, name="tiny", key="secret")


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx2.Client]:
    listening = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(server, log_level="warning"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with httpx2.Client(base_url=address, headers={"Authorization": "Bearer secret"}, timeout=30) as made:
        yield made
    running.should_exit = True
    thread.join(10)


def expected(server: Server) -> str:
    """What the sampler draws with the same seed."""
    (drawn,) = sampling.generate(
        server.model,
        server.tokenizer,
        [HELLO],
        sampling=Sampling(max_new_tokens=12),
        seed=sampling.policy_seed(DRAWN["seed"], 0),
    )
    assert len(drawn.text) > 6
    return drawn.text


def events(client: httpx2.Client, path: str = CHAT, **body: Any) -> list[dict[str, Any]]:
    with client.stream("POST", path, json={"stream": True, **body}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_an_answer_is_what_the_sampler_writes(client: httpx2.Client, server: Server) -> None:
    answer = client.post(CHAT, json=DRAWN).json()
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected(server)}
    assert choice["finish_reason"] in ("stop", "length")
    assert (answer["object"], answer["model"]) == ("chat.completion", "tiny")
    prompt = len(rendering.prompt_ids(server.tokenizer, HELLO))
    assert answer["usage"]["prompt_tokens"] == prompt
    assert 1 <= answer["usage"]["completion_tokens"] <= 12


def test_a_stream_brings_the_same_text_in_pieces(client: httpx2.Client, server: Server) -> None:
    chunks = events(client, **DRAWN)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == expected(server)
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons[:-1] == [None] * (len(chunks) - 1)
    assert reasons[-1] in ("stop", "length")


def test_raw_completions_go_on_from_the_text_itself(client: httpx2.Client) -> None:
    body: dict[str, Any] = {"prompt": "Hello", "seed": 5, "max_tokens": 9}
    whole = client.post("/v1/completions", json=body).json()
    assert whole["object"] == "text_completion"
    assert whole["choices"][0]["text"]
    pieces = events(client, "/v1/completions", **body)
    assert "".join(chunk["choices"][0]["text"] for chunk in pieces) == whole["choices"][0]["text"]


def test_a_seed_repeats_a_draw_and_choices_differ(client: httpx2.Client) -> None:
    body = {"messages": HELLO, "max_tokens": 12, "seed": 3, "n": 3}
    once, again = (
        [choice["message"]["content"] for choice in client.post(CHAT, json=body).json()["choices"]]
        for _ in range(2)
    )
    assert once == again
    assert len(set(once)) > 1


def test_a_stop_text_ends_it_and_is_left_out(client: httpx2.Client, server: Server) -> None:
    text = expected(server)
    stop = text[3:5]
    for answer in (
        client.post(CHAT, json={**DRAWN, "stop": stop}).json()["choices"][0]["message"]["content"],
        "".join(c["choices"][0]["delta"].get("content", "") for c in events(client, **DRAWN, stop=[stop])),
    ):
        assert answer == text[: text.index(stop)]


def test_several_clients_are_answered_one_after_the_other(client: httpx2.Client, server: Server) -> None:
    found: list[str] = []

    def ask() -> None:
        answer = client.post(CHAT, json=DRAWN).json()
        found.append(answer["choices"][0]["message"]["content"])

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected(server)] * 6


def test_a_client_that_leaves_frees_the_model_for_the_next(client: httpx2.Client) -> None:
    with client.stream("POST", CHAT, json={"messages": HELLO, "stream": True, "max_tokens": 200}) as answer:
        next(answer.iter_lines())
    assert client.post(CHAT, json=DRAWN).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "messages: a list"),
        ({"messages": [{"role": "user"}]}, 400, "each has a role and a content"),
        ({"messages": HELLO, "temperature": "hot"}, 400, "temperature is 'hot': a number from 0 to 5"),
        ({"messages": HELLO, "max_tokens": 0}, 400, "max tokens is 0"),
        ({"messages": HELLO, "tools": [{"type": "function"}]}, 400, "tools is not supported here"),
        ({"messages": HELLO, "n": 99}, 400, "n is 99"),
        ({"messages": HELLO, "top_q": 1}, 400, "top_q is no setting"),
        ({"messages": HELLO, "model": "gpt"}, 404, "one model, tiny"),
        ({"messages": [{"role": "user", "content": "x" * 400}]}, 400, "the model reads no more"),
    ],
)
def test_a_bad_request_is_told_in_openais_form(
    client: httpx2.Client, body: dict[str, Any], status: int, words: str
) -> None:
    answer = client.post(CHAT, json=body)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


def test_nonsense_and_strangers_are_turned_away(client: httpx2.Client) -> None:
    assert client.post(CHAT, content=b"{").status_code == 400
    assert client.get("/v1/nothing").status_code == 404
    assert client.get("/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert client.get("/health", headers={"Authorization": ""}).json() == {"status": "ok"}


def test_an_address_that_others_reach_needs_a_key() -> None:
    with pytest.raises(Refused, match="no API key"):
        serve.check_address("0.0.0.0", "")
    serve.check_address("0.0.0.0", "secret")
    serve.check_address("127.0.0.1", "")


def test_a_policy_with_another_template_is_not_served(tiny_policy: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_policy, tmp_path / "model")
    hash_now = rendering.template_hash(loading.load_tokenizer(str(tiny_policy)))
    lineage = tmp_path / "model" / "lineage.json"
    lineage.write_text(json.dumps({"template_hash": hash_now}))
    serve.check_template(str(tmp_path / "model"))
    lineage.write_text(json.dumps({"template_hash": "another"}))
    with pytest.raises(Refused, match="not the one that this policy was trained with"):
        serve.check_template(str(tmp_path / "model"))


def test_the_command_serves_a_folder(tiny_policy: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "training.rlhf.serve", str(tiny_policy), "--port", str(port)]
    child = subprocess.Popen(
        [*command, "--name", "tiny", "--engine", "embedded"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        address = re.search(r"http://\S+", child.stdout.readline())
        assert address
        with httpx2.Client(transport=httpx2.HTTPTransport(retries=20), timeout=30) as asking:
            answer = asking.post(f"{address[0]}/chat/completions", json=DRAWN)
        assert answer.json()["choices"][0]["message"]["role"] == "assistant"
    finally:
        child.terminate()
        child.wait(20)
