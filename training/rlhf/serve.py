"""Serve a policy: `python -m training.rlhf.serve FOLDER` answers OpenAI's clients on this machine.

vLLM does it where it is installed (`--engine vllm`, or by itself); the embedded server needs nothing more
than training does. Either way the folder's chat template has to be the one that the policy was trained with.
The API key comes from RATCHET_SERVE_KEY; without one anybody who reaches the address may ask.

A worker starts it for the playground: `--port 0` takes a free port, and `--announce FILE` says which.
"""

import argparse
import importlib.util
import json
import os
import socket
import sys
from pathlib import Path

from training.rlhf.__main__ import ENVIRONMENT, die_with_parent, see_one_device, without_bitsandbytes
from training.rlhf.failures import Refused
from training.rlhf.run_dir import write_json

KEY = "RATCHET_SERVE_KEY"
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
# The settings by which vLLM's server draws what the embedded one does, and what training does.
_GENERATION = ["--generation-config", "vllm"]
STOP_SECONDS = 10  # for the answers under way when it is told to stop


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.rlhf.serve", description=__doc__)
    parser.add_argument("folder", help="a policy's folder or hub id")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--name", default="", help="what clients call the model; the folder's name")
    parser.add_argument(
        "--engine", choices=("auto", "embedded", "own", "vllm"), default="auto",
        help="vllm where it is installed, else our own (embedded)",
    )  # fmt: skip
    parser.add_argument("--announce", type=Path, help="a file that is told where the server listens")
    options = parser.parse_args(arguments)
    die_with_parent()
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    key = os.environ.get(KEY, "")
    try:
        check_address(options.host, key)
        name = options.name or name_of(options.folder)
        engine, why = chosen_engine(options.engine, options.folder)
        check_template(options.folder)
        sys.stderr.write(f"engine: {engine}, {why}\n")
        if engine == "vllm":
            command = vllm_command(options.folder, name, options.host, options.port)
            if key:
                os.environ["VLLM_API_KEY"] = key  # not on a command line, which everybody here can read
            os.execvp(command[0], command)  # noqa: S606  the command is ours, its arguments are no shell's
        serve(options.folder, name, options.host, options.port, key, announce=options.announce)
    except Refused as refused:
        sys.stderr.write(f"{refused.what} ({refused.where})\n{refused.do}\n")
        return 4
    return 0


def check_address(host: str, key: str) -> None:
    """Raise Refused where a stranger could ask."""
    if host not in LOOPBACK and not key:
        raise Refused(
            "Other machines reach this address, and there is no API key.",
            host,
            f"Set {KEY}, or use 127.0.0.1.",
        )


def name_of(folder: str) -> str:
    """Of `runs/7/model` it is run-7; of any other folder or id its last part."""
    path = Path(folder).resolve()
    return f"run-{path.parent.name}" if path.name == "model" else Path(folder).name


def chosen_engine(asked: str, folder: str) -> tuple[str, str]:
    """vllm or embedded, and why. Raises Refused where vLLM was asked for and cannot do it."""
    installed = importlib.util.find_spec("vllm") is not None
    beside = (Path(folder) / "adapter.json").is_file()
    if asked == "vllm" and not installed:
        raise Refused("vLLM is not installed here.", "--engine vllm", "Install it, or use --engine own.")
    if asked == "vllm" and beside:
        raise Refused(
            "What this policy learnt lies beside its weights, where vLLM would leave it out.",
            folder,
            "Use --engine own.",
        )
    if asked == "vllm":
        return "vllm", "as asked"
    if asked in ("own", "embedded"):
        return "embedded", "as asked"
    if not installed:
        return "embedded", "because vLLM is not installed here; it writes for one request at a time"
    if beside:
        return "embedded", "because what this policy learnt lies beside its weights, which vLLM cannot read"
    return "vllm", "which is installed here"


def vllm_command(folder: str, name: str, host: str, port: int) -> list[str]:
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder,
               "--served-model-name", name, "--host", host, "--port", str(port), *_GENERATION]  # fmt: skip


def check_template(folder: str) -> None:
    """Raise Refused when the chat template is not the one that the policy was trained with."""
    lineage = Path(folder) / "lineage.json"
    if not lineage.exists():
        return
    from training.rlhf import loading, rendering

    trained = json.loads(lineage.read_text(encoding="utf-8")).get("template_hash")
    if trained and trained != rendering.template_hash(loading.load_tokenizer(folder)):
        raise Refused(
            "The chat template is not the one that this policy was trained with.",
            folder,
            "Put back the tokenizer files that came with the model.",
        )


def serve(folder: str, name: str, host: str, port: int, key: str, *, announce: Path | None = None) -> None:
    see_one_device()
    without_bitsandbytes()
    import uvicorn

    from training.rlhf import loading
    from training.rlhf.server.serving import Server

    tokenizer = loading.load_tokenizer(folder)
    model = loading.load_policy(folder, dtype=loading.serving_dtype(folder))
    loading.fit(model, tokenizer, where=folder)
    loading.use_device(model)
    application = Server(model, tokenizer, name=name, key=key)
    config = uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=STOP_SECONDS)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise Refused(
            f"The address cannot be had: {error.strerror}.",
            f"{host}:{port}",
            "Choose another --port or --host.",
        ) from error
    port = listening.getsockname()[1]
    if announce is not None:
        write_json(announce, {"host": host, "port": port})
    sys.stdout.write(f"{name} answers at http://{host}:{port}/v1\n")
    sys.stdout.flush()
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    sys.exit(main())
