"""What a model was made from: enough to know what it is, and to make it again."""

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from training.rlhf import rendering
from training.rlhf.config import FORMAT, RunConfig
from training.rlhf.run_dir import RunDir


def of(
    run_dir: RunDir, config: RunConfig, tokenizer: PreTrainedTokenizerBase, *, packages: dict[str, str]
) -> dict[str, Any]:
    """Lineage of what this run trained: its data, parent, recipe, seed, versions and template."""
    return {
        "format": FORMAT,
        "method": config.method,
        "parent": config.model,
        "reward_model": config.reward_model,
        "seed": config.seed,
        "config": config.to_json(),
        "dataset": _manifest(run_dir.data),
        "files": _hashes(run_dir.data),
        **({"mixture": _mixture(run_dir, config)} if config.mixture else {}),
        "template_hash": rendering.template_hash(tokenizer),
        "versions": {"python": platform.python_version(), **packages},
    }


def _mixture(run_dir: RunDir, config: RunConfig) -> dict[str, Any]:
    """Of each further dataset: its weight, what it was made of, and its files."""
    return {
        mixed.name: {
            "weight": mixed.weight,
            "source": mixed.source,
            "dataset": _manifest(run_dir.mixed_data(mixed.name)),
            "files": _hashes(run_dir.mixed_data(mixed.name)),
        }
        for mixed in config.mixture
    }


def _manifest(data: Path) -> Any:
    path = data / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _hashes(data: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(data.glob("*.jsonl"))}
