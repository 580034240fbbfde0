"""Stands in for `python -m training.rlhf.serve` where the test is about the worker: says who it is, slowly.

    stub_policy.py BEHAVIOUR [what the launcher gives it]

BEHAVIOUR: "answers", "refuses".
"""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

arguments = sys.argv[2:]
given = dict(zip(arguments[:-2:2], arguments[1:-2:2], strict=True))
if sys.argv[1] == "refuses":
    sys.stderr.write("The weights are torn. (/models/x)\nCopy the model again.\n")
    sys.exit(4)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        right = self.headers["Authorization"] == f"Bearer {os.environ['RATCHET_SERVE_KEY']}"
        if not right:
            self.send_response(401)
            self.end_headers()
            return
        parts = json.loads(Path(given["--prompt-parts"]).read_text())
        said = f"{parts['system_prompt']}{given['--name']} <script>heard</script> {len(asked['messages'])}"
        self.send_response(200)
        self.end_headers()
        if not asked["stream"]:
            choice = {"message": {"content": said}, "finish_reason": "stop"}
            self.wfile.write(json.dumps({"choices": [choice], "usage": {"completion_tokens": 3}}).encode())
            return
        for word in said.split(" "):
            self.event({"choices": [{"delta": {"content": f"{word} "}, "finish_reason": None}]})
            time.sleep(0.01)
        self.event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        self.event({"choices": [], "usage": {"completion_tokens": 3}})

    def event(self, value: object) -> None:
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
        self.wfile.flush()


server = ThreadingHTTPServer((given["--host"], 0), Handler)
Path(given["--announce"]).write_text(json.dumps({"host": given["--host"], "port": server.server_port}))
server.serve_forever()
