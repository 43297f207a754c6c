"""A server that takes W&B runs, enough for a real `wandb` to be online; started as a process.

It says its port on the first line, and then, one line each, what it has got: JSON of
``[operation, variables]`` or ``[path, body]``. With the argument ``refuse`` it refuses every key;
with ``hang`` it takes connections and never answers.
"""

import json
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PROJECT = {"id": "p", "name": "dlblocks", "entity": {"id": "e", "name": "me"}}
ANSWERS = {
    "Viewer": {"viewer": {"id": "u", "entity": "me", "flags": "{}", "teams": {"edges": []}}},
    "CreateRunFiles": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}},
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kind = ""

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.kind == "hang":
            time.sleep(600)
        answer = {}
        if self.path.endswith("/graphql"):
            request = json.loads(body)
            name, variables = request["operationName"], request.get("variables") or {}
            print(json.dumps([name, variables]), flush=True)
            answer = {"data": ANSWERS.get(name, {})}
            if name == "UpsertBucket":
                bucket = {"id": "b", "name": variables["name"], "project": PROJECT}
                bucket |= {"displayName": variables.get("displayName") or "run"}
                answer["data"] = {"upsertBucket": {"bucket": bucket, "inserted": True}}
        elif self.path.endswith("/file_stream"):
            print(json.dumps([self.path, json.loads(body)]), flush=True)
        text = json.dumps(answer).encode()
        self.send_response(401 if self.kind == "refuse" else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_PUT = do_POST


class Server:
    """The server as a process of its own, which can be killed."""

    def __init__(self, folder: Path, kind: str = "") -> None:
        self.log = folder / "server.log"
        with self.log.open("w") as file:
            self.process = subprocess.Popen([sys.executable, __file__, kind], stdout=file)
        while not (said := self.log.read_text()).endswith("\n"):
            time.sleep(0.05)
        self.url = f"http://127.0.0.1:{int(said)}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def got(self) -> list:
        return [json.loads(line) for line in self.log.read_text().splitlines()[1:]]


if __name__ == "__main__":
    Handler.kind = sys.argv[1]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
