"""Files -> prompts, completions, labels. `import_file` is the way in; the forms are in `Form`.

lines (bytes to text) -> rows (TXT, CSV, JSONL) -> trl, open_assistant (rows to items) -> spool -> store.
"""

from labeling.imports.items import UnreadableFile
from labeling.imports.recognise import Form
from labeling.imports.report import ImportReport, Progress, Refusal
from labeling.imports.run import import_file

__all__ = ["Form", "ImportReport", "Progress", "Refusal", "UnreadableFile", "import_file"]
