"""A chat endpoint in this process: answers as a judge does, or first what a script says."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DRIP = "a byte at a time"
_running = []


class Server(ThreadingHTTPServer):
    """Prefers the answer that says good; does first what `script` says: status, headers, body."""

    def __init__(self, script=()):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.requests, self.lock = list(script), [], threading.Lock()
        self.verdict = None
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, self.headers.get("Authorization"), body))
            status, headers, text = self.server.script.pop(0) if self.server.script else (200, {}, None)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if text == DRIP:
            with contextlib.suppress(OSError):  # the client hangs up
                for _ in range(100):
                    self.wfile.write(b" ")
                    time.sleep(0.05)
            return
        self.wfile.write(text if isinstance(text, bytes) else (self.reply(body) if text is None else text).encode())

    def reply(self, body):
        a = body["messages"][0]["content"].split("<answer_a>")[1].split("</answer_a>")[0]
        verdict = self.server.verdict or ("[[A]]" if "good" in a else "[[B]]")
        content = f"I thought of [[C]] first. {verdict}"
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        return json.dumps({"choices": [{"message": {"content": content}}], "usage": usage})

    def log_message(self, *_):
        pass


def start(script=()):
    """A server that runs until `stop_all`."""
    server = Server(script)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    _running.append(server)
    return server


def stop_all():
    while _running:
        server = _running.pop()
        server.shutdown()
        server.server_close()
