"""The secret key of an installation: made once, readable by its owner only."""

import os
import secrets
from pathlib import Path


def read_or_create(path: Path) -> str:
    """Return the key stored at `path`; on the first start write a new one with mode 0600.

    Two processes that start at the same moment agree: the file appears complete, by link,
    and whoever comes second reads the first one's key.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(50))
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text().strip()
