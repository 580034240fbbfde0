"""The starter policy and what was trained from it. Where a policy may lie is labeling.policies' business."""

from labeling.models import Policy
from labeling.policies import starter_folder


def comes_from_starter(policy: Policy) -> bool:
    """Whether the policy is the starter or was trained from it. One query for each ancestor."""
    ancestor = policy
    while ancestor.parent is not None:
        ancestor = ancestor.parent
    return ancestor.location == str(starter_folder())
