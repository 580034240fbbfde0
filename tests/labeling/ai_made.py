"""A dataset of pairs that an AI judged, as a run leaves it."""

from labeling import constitutions, datasets
from labeling.datasets.manifest import Made
from labeling.datasets.rows import PairRow, PromptRow, Row
from labeling.models import PreferenceDataset, Project
from labeling.prompts import add_prompts
from tests import factories


def make_ai_pairs(project: Project, name: str = "AI preferences", *, pairs: int = 8) -> PreferenceDataset:
    """Text "good N" is preferred to "bad N"; a quarter of the pairs is on held-out prompts."""
    if not project.policies.exists():
        factories.make_policy(project)
    constitution = constitutions.save(project=project, principles=[{"text": "Be good."}])
    asked = [[{"role": "user", "content": f"Tell me {number}."}] for number in range(pairs)]
    stored = add_prompts(project=project, conversations=asked)  # type: ignore[arg-type]
    rows: list[tuple[str, str, Row]] = []
    for number, prompt in enumerate(stored):
        split = "test" if number % 4 == 0 else "train"
        prompt.split = split
        prompt.save(update_fields=["split"])
        messages = asked[number]
        rows.append(("prompts", split, PromptRow(prompt=messages)))  # type: ignore[typeddict-item]
        rows.append(
            (
                "pairs",
                split,
                PairRow(
                    prompt=messages,  # type: ignore[typeddict-item]
                    chosen=[{"role": "assistant", "content": f"good {number}"}],
                    rejected=[{"role": "assistant", "content": f"bad {number}"}],
                    margin=0.0,
                    weight=1.0,
                    p=1.0,
                    strength=1,
                ),
            )
        )
    made = Made(
        method="ai_preferences",
        run=7,
        policy="starter",
        judge="a judge",
        seed=0,
        sampling={"temperature": 1.0},
        constitution={"version": 1, "principles": [dict(constitutions.in_full({"text": "Be good."}))]},
    )
    with datasets.drafted(
        project=project, rows=rows, lineage=[{"row": 1}], made=made, left_out={"undecided": 3}
    ) as draft:
        return draft.publish(name=name, constitution=constitution)
