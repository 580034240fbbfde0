"""Enough of a hub to push to: repositories, the upload mode of files, LFS, commits. Real, on loopback."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_only_for_tests"


class FakeHub:
    """`files`: repository -> path -> bytes, as of its last commit. `refuse`: what commits are met with."""

    def __init__(self) -> None:
        self.address = ""
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.messages: list[str] = []
        self.blobs: dict[str, bytes] = {}
        self.refuse = 0


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def answer(self, status: int, value: Any = None) -> None:
            body = b"" if value is None else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def body(self) -> bytes:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def do_GET(self) -> None:
            repo = self.path.partition("?")[0].removeprefix("/api/models/")
            if repo in hub.private:
                self.answer(200, {"id": repo, "private": hub.private[repo]})
            else:
                self.answer(404, {"error": "Repository not found"})

        def do_PUT(self) -> None:
            oid, content = self.path.rpartition("/")[2], self.body()
            assert hashlib.sha256(content).hexdigest() == oid
            hub.blobs[oid] = content
            self.answer(200)

        def do_POST(self) -> None:
            content = self.body()
            path = self.path.partition("?")[0]
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(401, {"error": "Invalid credentials."})
            elif path == "/api/validate-yaml":
                self.answer(200, {"errors": [], "warnings": []})
            elif path == "/api/repos/create":
                asked = json.loads(content)
                repo = (
                    f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
                )
                hub.private.setdefault(repo, asked.get("visibility") == "private")
                self.answer(200, {"url": f"{hub.address}/{repo}", "name": repo})
            elif path.endswith("/preupload/main"):
                modes = [self.mode(file["path"]) for file in json.loads(content)["files"]]
                self.answer(200, {"files": modes})
            elif path.endswith("/info/lfs/objects/batch"):
                self.answer(200, {"transfer": "basic", "objects": [
                    {"oid": one["oid"], "size": one["size"],
                     "actions": {"upload": {"href": f"{hub.address}/lfs/{one['oid']}"}}}
                    for one in json.loads(content)["objects"]]})  # fmt: skip
            elif path.endswith("/commit/main"):
                self.commit(path.removeprefix("/api/models/").removesuffix("/commit/main"), content)
            else:
                self.answer(404, {"error": f"nothing at {path}"})

        @staticmethod
        def mode(path: str) -> dict[str, Any]:
            kind = "lfs" if path.endswith(".safetensors") else "regular"
            return {"path": path, "uploadMode": kind, "shouldIgnore": False, "oid": None}

        def commit(self, repo: str, content: bytes) -> None:
            if hub.refuse:
                self.answer(hub.refuse, {"error": "You may not write here."})
                return
            files: dict[str, bytes] = {}
            for line in content.splitlines():
                said = json.loads(line)
                value = said["value"]
                if said["key"] == "header":
                    hub.messages.append(value["summary"])
                elif said["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif said["key"] == "lfsFile":
                    files[value["path"]] = hub.blobs[value["oid"]]
            hub.files[repo] = files
            oid = hashlib.sha1(content, usedforsecurity=False).hexdigest()
            url = f"{hub.address}/{repo}/commit/{oid}"
            self.answer(200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
