"""Push a folder to a hub as one commit: what arrives is all of it, or nothing that anybody sees.

huggingface_hub speaks for us: HF_TOKEN says who we are, HF_ENDPOINT which hub. Large files go up one at a
time, so that there is something to tell, and the commit names them all.
"""

import os
from collections.abc import Callable
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from training.rlhf.failures import Refused

Tell = Callable[[float, str], None]


def push(folder: Path, *, repo: str, private: bool, message: str, tell: Tell) -> str:
    """The address of the commit. Raises Refused, in words."""
    token = os.environ.get("HF_TOKEN", "")
    endpoint = constants.ENDPOINT
    if not token:
        raise Refused(
            "There is no token for the hub.",
            endpoint,
            "Set RATCHET_HUB_TOKEN or RATCHET_HUB_TOKEN_FILE for the worker, and start it again.",
        )
    api = HfApi(endpoint=endpoint, token=token)
    try:
        tell(0.0, f"Making {repo}")
        api.create_repo(repo, private=private, exist_ok=True)
        if private and api.model_info(repo).private is False:  # one that was there stays as it was
            raise Refused(
                f"{repo} is there already, and anybody may see it.",
                f"{endpoint}/{repo}",
                "Make it private there, take another name, or say that anybody may see this model.",
            )
        additions = [
            CommitOperationAdd(path_in_repo=str(path.relative_to(folder)), path_or_fileobj=path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
        sizes = [max(one.upload_info.size, 1) for one in additions]
        for number, addition in enumerate(additions):
            done = sum(sizes[:number]) / sum(sizes)
            tell(0.95 * done, f"Uploading {addition.path_in_repo}, {_megabytes(sizes[number])}")
            api.preupload_lfs_files(repo, additions=[addition])
        tell(0.95, "Committing")
        commit = api.create_commit(repo, operations=additions, commit_message=message)
    except HFValidationError as error:
        raise Refused(
            f"{repo!r} is no name of a repository: {error}", endpoint, "Write OWNER/NAME."
        ) from error
    except OfflineModeIsEnabled as error:
        raise Refused(
            "This machine is told to stay offline (HF_HUB_OFFLINE).", endpoint, "Start the worker without it."
        ) from error
    except HfHubHTTPError as error:
        raise _refused_by_hub(error, repo, endpoint) from error
    except (httpx2.HTTPError, OSError, RuntimeError) as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0][:300] or type(error).__name__
        raise Refused(
            f"The hub cannot be reached, or the upload broke off: {reason}",
            endpoint,
            "Check the network, HF_ENDPOINT and a proxy's settings, then push again.",
        ) from error
    return str(commit.commit_url)


def _refused_by_hub(error: HfHubHTTPError, repo: str, endpoint: str) -> Refused:
    status = error.response.status_code
    said = (error.server_message or str(error)).strip().split("\n")[0][:300]
    todo = {
        401: "The token is wrong or has expired: set another one in the worker's environment.",
        403: f"The token may not write to {repo}: use one with write access, or another owner's name.",
        404: f"Check the owner in {repo}, and that the token's account may see it.",
        409: "Somebody else is writing there: push again in a moment.",
        429: "The hub asks to wait: push again in a while.",
    }.get(status, "Push again in a moment; what was uploaded need not be uploaded again.")
    return Refused(f"The hub refused ({status}): {said}", f"{endpoint}/{repo}", todo)


def _megabytes(size: int) -> str:
    """
    >>> _megabytes(2_500_000_000), _megabytes(300)
    ('2,500 MB', '1 MB')
    """
    return f"{max(1, round(size / 1e6)):,} MB"
