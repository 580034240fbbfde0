"""Serve a policy: `python -m training.rlhf.serve FOLDER` answers OpenAI's clients on this machine.

vLLM does it where it is installed (`--engine vllm`, or by itself); the embedded server needs nothing more
than training does. Either way the folder's chat template has to be the one that the policy was trained with.
The API key comes from RATCHET_SERVE_KEY; without one anybody who reaches the address may ask.
"""

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path

from training.rlhf.failures import Refused

KEY = "RATCHET_SERVE_KEY"
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.rlhf.serve", description=__doc__)
    parser.add_argument("folder", help="a policy's folder or hub id")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--name", default="", help="what clients call the model; the folder's name")
    parser.add_argument("--engine", choices=("auto", "embedded", "vllm"), default="auto")
    options = parser.parse_args(arguments)
    key = os.environ.get(KEY, "")
    try:
        check_address(options.host, key)
        name = options.name or name_of(options.folder)
        engine = chosen_engine(options.engine)
        check_template(options.folder)
        if engine == "vllm":
            command = vllm_command(options.folder, name, options.host, options.port)
            os.environ["VLLM_API_KEY"] = key  # not on a command line, which everybody here can read
            os.execvp(command[0], command)  # noqa: S606  the command is ours, its arguments are no shell's
        serve(options.folder, name, options.host, options.port, key)
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


def chosen_engine(asked: str) -> str:
    there = importlib.util.find_spec("vllm") is not None
    if asked == "vllm" and not there:
        raise Refused("vLLM is not installed here.", "--engine vllm", "Install it, or use --engine embedded.")
    return "vllm" if asked == "vllm" or (asked == "auto" and there) else "embedded"


def vllm_command(folder: str, name: str, host: str, port: int) -> list[str]:
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder,
               "--served-model-name", name, "--host", host, "--port", str(port)]  # fmt: skip


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


def serve(folder: str, name: str, host: str, port: int, key: str) -> None:
    import uvicorn

    from training.rlhf import loading
    from training.rlhf.server.serving import Server

    tokenizer = loading.load_tokenizer(folder)
    model = loading.load_policy(folder, dtype=loading.serving_dtype(folder))
    loading.fit(model, tokenizer, where=folder)
    loading.use_device(model)
    sys.stdout.write(f"{name} answers at http://{host}:{port}/v1\n")
    sys.stdout.flush()
    uvicorn.run(Server(model, tokenizer, name=name, key=key), host=host, port=port, log_level="warning")


if __name__ == "__main__":
    sys.exit(main())
