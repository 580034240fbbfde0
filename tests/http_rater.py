"""A rater without a browser: real pages over HTTP, as htmx asks for them, with next to no cost of its own.

Tests of many raters at once and benchmarks share two cores with the server, so this speaks HTTP by hand
over one connection that stays open, and finds what it needs in the page by three regular expressions.
"""

import re
import socket
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlencode

ASSIGNMENT = re.compile(r'id="answer" method="post" action="/assignments/(\d+)/label/"')
KEY = re.compile(r'name="key" value="([0-9a-f-]{36})"')
CHOICES = re.compile(r'name="choice" value="([^"]+)"')
TIMEOUT = 60.0


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, list[str]]
    body: str


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A task on the rater's screen."""

    assignment: int
    key: str
    choices: list[str]


class Unexpected(Exception):
    """The server answered something that no rater should see."""


class Closed(Unexpected):
    """The server closed the connection."""


class Refused(Exception):
    """The server said no, with a reason for the rater on the page."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.status}: {answer.body[:2000]}")
        self.status, self.body = answer.status, answer.body


@dataclass
class HttpRater:
    port: int
    cookies: dict[str, str] = field(default_factory=dict)
    _socket: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()

    def log_in(self, name: str, password: str) -> None:
        """Through the form, as people do."""
        self.request("GET", "/login/")
        token = self.cookies["csrftoken"]
        fields = {"username": name, "password": password, "csrfmiddlewaretoken": token}
        if (answer := self.request("POST", "/login/", fields)).status != 302:
            raise Unexpected(f"log-in of {name}: {answer.status}")

    def judge(self, round_id: int) -> Shown | None:
        """Open the round's page; None: nothing is left."""
        return _shown(self.request("GET", f"/rounds/{round_id}/judge/"))

    def save(self, shown: Shown, choice: str) -> Shown | None:
        """Answer a task; the next one comes in the same response."""
        fields = {"key": shown.key, "seconds": "1.5", "choice": choice}
        return _shown(self.request("POST", f"/assignments/{shown.assignment}/label/", fields))

    def request(self, method: str, path: str, fields: dict[str, str] | None = None) -> Answer:
        body = urlencode(fields).encode() if fields is not None else b""
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", "HX-Request: true"]
        lines.append("Cookie: " + "; ".join(f"{name}={value}" for name, value in self.cookies.items()))
        if fields is not None:
            lines.append("Content-Type: application/x-www-form-urlencoded")
            lines.append(f"Content-Length: {len(body)}")
            lines.append(f"X-CSRFToken: {self.cookies.get('csrftoken', '')}")
        answer = self._exchange("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        for cookie in answer.headers.get("set-cookie", []):
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        return answer

    def _exchange(self, message: bytes) -> Answer:
        """Send on the open connection; when the server closed it as idle, on a new one, as browsers do."""
        if self._socket is not None:
            try:
                self._socket.sendall(message)
                return _read(self._socket)
            except (Closed, ConnectionResetError, BrokenPipeError):
                self._socket.close()
        self._socket = socket.create_connection(("127.0.0.1", self.port), TIMEOUT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(message)
        return _read(self._socket)


def _read(connection: socket.socket) -> Answer:
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += _some(connection)
    first, *lines = data[:end].decode("latin-1").split("\r\n")
    headers: dict[str, list[str]] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers.setdefault(name.lower(), []).append(value.strip())
    length = int(headers["content-length"][0])  # the pages are never streamed
    body = data[end + 4 :]
    while len(body) < length:
        body += _some(connection)
    return Answer(int(first.split()[1]), headers, body.decode())


def _some(connection: socket.socket) -> bytes:
    received = connection.recv(65_536)
    if not received:
        raise Closed
    return received


def _shown(answer: Answer) -> Shown | None:
    if answer.status in (409, 422):
        raise Refused(answer)
    if answer.status != 200:
        raise Unexpected(f"{answer.status}: {answer.body[:2000]}")
    assignment = ASSIGNMENT.search(answer.body)
    if assignment is None:
        if "Nothing is left" in answer.body:
            return None
        raise Unexpected(f"neither a task nor the end: {answer.body[:2000]}")
    key = KEY.search(answer.body)
    assert key is not None
    return Shown(assignment=int(assignment[1]), key=key[1], choices=CHOICES.findall(answer.body))
