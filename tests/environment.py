"""Loaded by pytest before anything reads the settings (`-p tests.environment`): tests never touch an
installation's own files, reach for no model hub, and use one core for each process."""

import atexit
import os
import shutil
import tempfile

_var = tempfile.mkdtemp(prefix="ratchet-tests-")
atexit.register(shutil.rmtree, _var, ignore_errors=True)
os.makedirs(os.path.join(_var, "static"))
os.environ.update(
    RATCHET_VAR=_var,
    RATCHET_SECRET_KEY="only-for-tests-" + "x" * 50,
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
)
