"""A trained model leaves the house: its files as transformers, PEFT and vLLM read them, with a model card.

The weights go as they lie in the run's folder: merged, in the numbers of the model that the run started from.
The adapter of a LoRA run lies beside them and is offered as well.
"""

import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.utils.text import slugify

from labeling.archives import zipped
from labeling.models import Policy
from training.models import Artifact, GateDecision, Run
from training.prompted import parts_of as parts_of_policy
from training.results import number_in
from training.rlhf.prompt_parts import FILE as PARTS_FILE

CARD = "README.md"
LICENCE = (
    "That of the model it comes from and of its data, which is not known here: add it before you publish."
)
# What a run folder holds for us alone, and where it lay on this machine.
NOT_FOR_OTHERS = {"README.md", "lineage.json", "canaries.json"}


class NothingToExport(Exception):
    """There are no such files; the message says why."""


@dataclass(frozen=True)
class Export:
    """One archive: its name without the ending, what is in it, and its bytes as they are made."""

    name: str
    files: list[str]
    content: Iterator[bytes]


def parts_of(artifact: Artifact) -> list[str]:
    """What can be exported: "model", and "adapter" when the run trained one."""
    folders = {part: folder_of(artifact, part) for part in ("model", "adapter")}
    return [part for part, folder in folders.items() if any(folder.glob("*.safetensors"))]


def export(artifact: Artifact, part: str = "model", *, policy: Policy | None = None) -> Export:
    """The archive of a part. Raises NothingToExport.

    `policy` is the one that leaves, where it is a prompted variant of the artifact's: its system prompt and
    examples go along.
    """
    if part not in parts_of(artifact):
        raise NothingToExport(f"Run {artifact.run_id} left no {part} on this machine.")
    folder = folder_of(artifact, part)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    files = [str(path.relative_to(folder)) for path in paths if path.name not in NOT_FOR_OTHERS]
    leaving = policy or artifact.policy
    title = slugify(title_of(artifact, leaving)) or f"run-{artifact.run_id}"
    name = title if part == "model" else f"{title}-adapter"
    card = model_card(artifact, part, policy=leaving)
    texts = {CARD: card, "lineage.json": json.dumps(shared_lineage(artifact), indent=1)}
    if leaving is not None:
        files = [name for name in files if name != PARTS_FILE]  # perhaps of another policy
        if leaving.is_prompted:
            parts = parts_of_policy(leaving).to_json()
            texts[PARTS_FILE] = json.dumps(parts, ensure_ascii=False, indent=1)
    for settings in [name for name in files if posixpath.basename(name) == "adapter_config.json"]:
        texts[settings] = _onto(folder / settings, base_name(artifact))
        files.remove(settings)
    return Export(
        name=name,
        files=[*texts, *files],
        content=zipped(folder, files, within=name, texts=texts, compress=False),
    )


def shared_lineage(artifact: Artifact) -> dict[str, Any]:
    """The lineage without places on this machine: folders become the names of their last parts."""
    return {name: _without_places(value) for name, value in artifact.lineage.items()}


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_places(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    if isinstance(value, str) and posixpath.isabs(value):
        return "/".join(value.rstrip("/").split("/")[-2:])
    return value


def title_of(artifact: Artifact, policy: Policy | None = None) -> str:
    leaving = policy or artifact.policy
    return leaving.name if leaving else f"reward model, run {artifact.run_id}"


def base_name(artifact: Artifact) -> str:
    """What an adapter of it goes onto: the hub id of the model that the run began from, or its name."""
    base = str(artifact.run.config.get("model") or "")
    parent = artifact.run.policy
    return str(_without_places(base)) if base else parent.name if parent else ""


def _onto(path: Path, base: str) -> str:
    """adapter_config.json without the place on this machine where its base model lay."""
    config = json.loads(path.read_text(encoding="utf-8"))
    return json.dumps({**config, "base_model_name_or_path": base}, indent=2)


def folder_of(artifact: Artifact, part: str) -> Path:
    model = Path(artifact.folder)
    return model if part == "model" else model.parent / part


def model_card(
    artifact: Artifact,
    part: str = "model",
    *,
    policy: Policy | None = None,
    base: str = "",
    licence: str = "",
    repo: str = "",
    form: str = "",
) -> str:
    """Markdown with the front matter that a hub reads: data, lineage, licence, figures, how to load it.

    `policy`: the one that leaves, where it is a prompted variant; `base`: the hub id of what an adapter goes
    onto; `repo`: where the files lie; `form`: as written.
    """
    run = artifact.run
    leaving = policy or artifact.policy
    title = leaving.name if leaving else f"Reward model of run {run.pk}"
    writes = artifact.kind == Artifact.Kind.POLICY
    front = {
        "library_name": "transformers" if part == "model" else "peft",
        "pipeline_tag": "text-generation" if writes else "text-classification",
        "tags": ["ratchet", "rlhf", run.method.replace("_", "-")],
        **({"license": licence} if licence else {}),
        **({"base_model": base} if base else {}),
    }
    lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in front.items()), "---", ""]
    lines += [f"# {_plain(title)}", "", f"Trained by Ratchet: {run.get_method_display()}, run {run.pk}.", ""]
    lines += _numbers(form)
    if leaving is not None and leaving.is_prompted:
        lines += ["## Prompt", "", *_prompt(leaving), ""]
    lines += ["## Data", "", *_data(artifact), ""]
    lines += ["## Where it comes from", "", *_ancestors(artifact), ""]
    lines += ["## Figures", "", *(_figures(artifact) or ["None were measured."]), ""]
    lines += ["## Licence", "", f"`{licence}`" if licence else LICENCE, ""]
    lines += ["## How to load it", "", *_loading(artifact, part, base=base, repo=repo), ""]
    return "\n".join(lines)


def _prompt(policy: Policy) -> list[str]:
    parts = parts_of_policy(policy)
    return [
        f"This policy is the weights and what it reads before every prompt, in `{PARTS_FILE}` (version "
        f"`{parts.version}`): a system prompt of {len(parts.system_prompt):,} characters and "
        f"{len(parts.examples) // 2} examples. Without them it is another policy.",
        "",
        "`python -m training.rlhf.serve .` puts them before every conversation; elsewhere send them as the "
        "first messages.",
    ]


def _numbers(form: str) -> list[str]:
    said = {
        "bf16": "The weights are those that were judged, rounded to bf16, to the nearest even.",
        "fp32": "The weights are those that were judged, written as fp32, which changes none of them.",
    }.get(form)
    return [said, ""] if said else []


def _plain(text: str) -> str:
    """A name that people gave, on one line and without Markdown."""
    return " ".join("".join(c if c not in "`*_<>[]|#\\" else " " for c in text).split())


def _data(artifact: Artifact) -> list[str]:
    dataset = artifact.run.dataset
    if dataset is None:
        return ["None."]
    tables = dataset.manifest.get("tables", {})
    counts = [f"{name}: {split.get('train', 0)} to learn from, {split.get('test', 0)} held out"
              for name, split in tables.items()]  # fmt: skip
    return [
        f"Preference dataset {_plain(dataset.name)}, sha256 `{dataset.digest}`, "
        f"rule: {dataset.get_rule_display()}.",
        "",
        *(f"- {count}" for count in counts),
        *_further(artifact.run),
    ]


def _further(run: Run) -> list[str]:
    """The other datasets of a mixture."""
    return [
        f"- and {_plain(mixed.dataset.name)}, weight {mixed.weight:g}, "
        f"by: {mixed.dataset.get_source_display()}, sha256 `{mixed.dataset.digest}`"
        for mixed in run.mixture.select_related("dataset")
    ]


def _ancestors(artifact: Artifact) -> list[str]:
    """From the model itself back to the first policy of the project."""
    lines, policy, seen = [], artifact.policy or artifact.run.policy, set()
    while policy is not None and policy.pk not in seen:
        seen.add(policy.pk)
        made = Artifact.objects.filter(policy=policy).select_related("run").first()
        how = f", by {made.run.get_method_display()} in run {made.run_id}" if made else ""
        lines.append(f"- {_plain(policy.name)}{how}")
        policy = policy.parent
    versions = artifact.lineage.get("versions", {})
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [*lines, "", f"Seed {artifact.run.config.get('seed', 0)}. {listed}", "", "Recipe:", "", "```json",
            json.dumps(_without_places(artifact.run.config), indent=1), "```"]  # fmt: skip


def _figures(artifact: Artifact) -> list[str]:
    found = artifact.run.evaluation
    named = (
        ("accuracy", "Accuracy on held-out comparisons", "{:.3f}"),
        ("ece", "Calibration error (ECE)", "{:.3f}"),
        ("win_rate_reward_model", "Win rate over its parent, by reward model", "{:.3f}"),
        ("kl", "KL from its parent, nats a completion", "{:.2f}"),
        ("eos_rate_new", "Share of completions that end by themselves", "{:.3f}"),
        ("length_new", "Mean length of a completion, tokens", "{:.1f}"),
    )
    lines = [
        f"- {label}: {shape.format(value)}"
        for key, label, shape in named
        if (value := number_in(found, key)) is not None
    ]
    decisions = GateDecision.objects.filter(policy=artifact.policy_id, win_rate__isnull=False)
    for decision in decisions.select_related("against") if artifact.policy_id else []:
        over = f" over {_plain(decision.against.name)}" if decision.against else ""
        lines.append(
            f"- Win rate{over}, by people: {decision.win_rate:.3f} "
            f"(95 %: {decision.low:.3f} to {decision.high:.3f}; {decision.labels} labels)"
        )
    return lines


def _loading(artifact: Artifact, part: str, *, base: str = "", repo: str = "") -> list[str]:
    kind = "CausalLM" if artifact.kind == Artifact.Kind.POLICY else "SequenceClassification"
    here, from_base = json.dumps(repo or "."), json.dumps(base or "...")
    parent = _plain(artifact.run.policy.name) if artifact.run.policy else "its parent"
    code = [f"from transformers import AutoModelFor{kind}, AutoTokenizer", ""]
    served = []
    beside = kind_beside(artifact)
    if part == "adapter":
        code = [
            "from peft import PeftModel",
            *code,
            f"tokenizer = AutoTokenizer.from_pretrained({here})",
            f"base = AutoModelFor{kind}.from_pretrained({from_base})  # {parent}",
            f"model = PeftModel.from_pretrained(base, {here})",
        ]
        if base and kind == "CausalLM":
            lora = f"ratchet={repo or '.'}"
            served = ["", f"`vllm serve {base} --enable-lora --lora-modules {lora}` serves it too (LoRA)."]
    else:
        code += [
            f"tokenizer = AutoTokenizer.from_pretrained({here})",
            f"model = AutoModelFor{kind}.from_pretrained({here})",
        ]
        if beside:
            code, served = _loading_beside(code, beside, here)
        elif kind == "CausalLM":
            served = ["", f"`vllm serve {repo or '.'}` serves it too."]
    rendered = "The chat template comes with the tokenizer; text has to be rendered with it."
    return [rendered, "", "```python", *code, "```", *served]


def kind_beside(artifact: Artifact) -> str:
    """The kind of adapters that lie beside a model's weights and hold what it learnt; empty without any."""
    try:
        said = json.loads((Path(artifact.folder) / "adapter.json").read_text(encoding="utf-8"))
        return str(said["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _loading_beside(code: list[str], kind: str, here: str) -> tuple[list[str], list[str]]:
    """**What it learnt is not in the weights**: whoever loads those alone has the model from before."""
    said = [
        "",
        f"What it learnt ({kind}) lies in `adapter/`, not in the weights: without it this is its parent.",
    ]
    if kind == "bottleneck":
        return code, [*said, "Bottleneck adapters are Ratchet's own: `training.rlhf.loading` reads them."]
    adapter = f'model = PeftModel.from_pretrained(model, {here}, subfolder="adapter")'
    return ["from peft import PeftModel", *code, adapter], said
