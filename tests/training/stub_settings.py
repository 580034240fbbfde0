"""Settings of worker processes in tests: the site's own, with the stub in place of the trainer."""

import os
import sys
from pathlib import Path

from rlhf_site.settings import *  # noqa: F403

if os.environ.get("STUB_BEHAVIOUR"):
    TRAINER_COMMAND = [
        sys.executable,
        str(Path(__file__).with_name("stub_trainer.py")),
        os.environ["STUB_BEHAVIOUR"],
    ]
    TRAINER_STANDBY = False  # the stub has nothing to import
