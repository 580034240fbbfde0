"""OpenAI's own client speaks to the command: chat and completions, whole and as a stream, and its errors."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.training_rlhf.conftest import ROOT, environment
from training.rlhf import serve
from training.rlhf.failures import Refused

HELLO = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def openai() -> Any:
    return pytest.importorskip("openai")


@pytest.fixture(scope="module")
def client(openai: Any, tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Of a real process, as a worker starts it: a free port, an announcement, a key."""
    announced = tmp_path_factory.mktemp("serve") / "address.json"
    child = subprocess.Popen(
        [sys.executable, "-m", "training.rlhf.serve", "--engine", "own", "--port", "0", "--name", "tiny",
         "--announce", str(announced), "--", str(tiny_policy)],
        cwd=ROOT, env=environment() | {"RATCHET_SERVE_KEY": "secret"}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert child.stdout is not None
        address = re.search(r"http://\S+", child.stdout.readline())
        assert address
        said = json.loads(announced.read_text())
        assert address[0] == f"http://127.0.0.1:{said['port']}/v1"
        yield openai.OpenAI(base_url=address[0], api_key="secret", max_retries=0)
    finally:
        child.terminate()
        assert child.wait(20) in (0, -15)


def test_a_chat_whole_and_as_a_stream(client: Any) -> None:
    how = {"model": "tiny", "messages": HELLO, "seed": 3, "max_tokens": 12}
    whole = client.chat.completions.create(**how)
    assert whole.choices[0].finish_reason in ("stop", "length")
    events = list(client.chat.completions.create(**how, stream=True, stream_options={"include_usage": True}))
    text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert text == whole.choices[0].message.content
    assert events[-1].choices == [] and events[-1].usage == whole.usage


def test_completions_whole_and_as_a_stream(client: Any) -> None:
    how = {"model": "tiny", "prompt": "Hello", "seed": 5, "max_tokens": 9}
    whole = client.completions.create(**how)
    pieces = client.completions.create(**how, stream=True)
    assert "".join(event.choices[0].text for event in pieces) == whole.choices[0].text
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_errors_are_the_clients_own(openai: Any, client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="tiny", messages=HELLO, temperature=9)
    with pytest.raises(openai.NotFoundError, match="one model, tiny"):
        client.chat.completions.create(model="gpt", messages=HELLO)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.BadRequestError, match="stream_options"):
        client.chat.completions.create(model="tiny", messages=HELLO, stream_options={"include_usage": True})


def test_the_engine_is_said_and_vllm_is_never_given_what_it_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path)
    assert serve.chosen_engine("auto", folder) == (
        "embedded",
        "because vLLM is not installed here; it writes for one request at a time",
    )
    with pytest.raises(Refused, match="vLLM is not installed here"):
        serve.chosen_engine("vllm", folder)
    (tmp_path / "vllm.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert serve.chosen_engine("auto", folder)[0] == serve.chosen_engine("vllm", folder)[0] == "vllm"
    (tmp_path / "adapter.json").write_text("{}")
    assert serve.chosen_engine("auto", folder)[0] == "embedded"
    with pytest.raises(Refused, match="beside its weights"):
        serve.chosen_engine("vllm", folder)
    assert serve.chosen_engine("own", folder) == ("embedded", "as asked")


def test_vllm_is_started_only_with_the_template_that_it_was_trained_with(
    tiny_policy: Path, tmp_path: Path
) -> None:
    """Another template is refused before; else a stand-in by vLLM's name hears our command, and our key."""
    package = tmp_path / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for folder in (package, *package.parents[:2]):
        (folder / "__init__.py").write_text("")
    (package / "api_server.py").write_text(
        "import os, sys, json\nprint(json.dumps([sys.argv[1:], os.environ.get('VLLM_API_KEY')]))\n"
    )
    model = tmp_path / "model"
    model.mkdir()
    for path in tiny_policy.iterdir():
        (model / path.name).symlink_to(path)
    found_first = f"{tmp_path}{os.pathsep}{ROOT}"
    env = environment() | {"PYTHONPATH": found_first, "RATCHET_SERVE_KEY": "secret"}
    command = [sys.executable, "-m", "training.rlhf.serve", str(model), "--name", "tiny", "--port", "8123"]

    def run() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)

    done = run()
    assert "engine: vllm, which is installed here" in done.stderr
    arguments, key = json.loads(done.stdout.splitlines()[-1])
    assert arguments[:4] == ["--model", str(model), "--served-model-name", "tiny"]
    assert key == "secret" and "secret" not in arguments
    (model / "lineage.json").write_text('{"template_hash": "of another"}')
    refused = run()
    assert refused.returncode == 4
    assert "The chat template is not the one" in refused.stderr
