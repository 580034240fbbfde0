"""What a model was made from: enough to know what it is, and to make it again."""

import hashlib
import json
import platform
from typing import Any

from transformers import PreTrainedTokenizerBase

from training.rlhf import rendering
from training.rlhf.config import FORMAT, RunConfig
from training.rlhf.run_dir import RunDir


def of(
    run_dir: RunDir, config: RunConfig, tokenizer: PreTrainedTokenizerBase, *, packages: dict[str, str]
) -> dict[str, Any]:
    """Lineage of what this run trained: its data, parent, recipe, seed, versions and template."""
    manifest = run_dir.data / "manifest.json"
    return {
        "format": FORMAT,
        "method": config.method,
        "parent": config.model,
        "reward_model": config.reward_model,
        "prompt_version": config.parts_of().version,  # trained under these parts, and writes under them
        "seed": config.seed,
        "config": config.to_json(),
        "dataset": json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else None,
        "files": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(run_dir.data.glob("*.jsonl"))
        },
        "template_hash": rendering.template_hash(tokenizer),
        "versions": {"python": platform.python_version(), **packages},
    }
