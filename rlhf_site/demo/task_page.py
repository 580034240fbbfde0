"""Reads a task off the raters' page as a browser would: what is asked, what was written, how to answer."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"input", "br", "hr", "img", "meta", "link", "wbr"}


@dataclass
class TaskPage:
    """A task as it stands on the screen; completions and choices from left to right."""

    kind: str = ""  # of the protocol; "nothing" when no task is left
    action: str = ""  # address that the answer goes to
    prompt: str = ""  # the last turn
    completions: list[str] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)  # hidden ones, with their values
    inputs: list[str] = field(default_factory=list)  # names to fill in: score-..., rank-...
    choices: list[str] = field(default_factory=list)  # values of the buttons named `choice`


def read_task(html: str) -> TaskPage:
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.page


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = TaskPage()
        self._open: list[tuple[str, str]] = []  # tag, what its text belongs to
        self._in_answer = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        classes = given.get("class", "").split()
        if given.get("id") == "task":
            self.page.kind = given.get("data-kind", "")
        if tag == "form" and given.get("id") == "answer":
            self._in_answer = True
            self.page.action = given["action"]
        if self._in_answer:
            self._read_control(tag, given)
        if "turn" in classes:
            self.page.prompt = ""
        if "completion" in classes:
            self.page.completions.append("")
        if tag not in VOID:
            self._open.append((tag, self._owner(classes)))

    def handle_endtag(self, tag: str) -> None:
        while self._open:
            closed, _ = self._open.pop()
            if closed == tag:
                break
        if tag == "form":
            self._in_answer = False

    def handle_data(self, data: str) -> None:
        owner = self._open[-1][1] if self._open else ""
        if owner == "turn prose":
            self.page.prompt = f"{self.page.prompt} {data}".strip()
        elif owner == "completion prose":
            self.page.completions[-1] = f"{self.page.completions[-1]} {data}".strip()

    def _owner(self, classes: list[str]) -> str:
        inherited = self._open[-1][1] if self._open else ""
        for name in ("turn", "completion"):
            if name in classes:
                return name
        if "prose" in classes and inherited in ("turn", "completion"):
            return f"{inherited} prose"
        return inherited

    def _read_control(self, tag: str, given: dict[str, str]) -> None:
        name = given.get("name", "")
        if tag == "button" and name == "choice":
            self.page.choices.append(given["value"])
        elif tag == "input" and given.get("type") == "hidden":
            self.page.fields[name] = given.get("value", "")
        elif tag == "input" and name not in self.page.inputs:
            self.page.inputs.append(name)
