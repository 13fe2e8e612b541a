"""A judge of one's own at an OpenAI-compatible endpoint, for tests: an HTTP server in a thread."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def last_word(question: str) -> str:
    """Replies with the question's last word."""
    return question.split()[-1]


class Server:
    """Replies to every question, after the statuses that it is told to give first.

    requests: what was asked, bodies with the path and the key. status: if not 200, of every reply.
    """

    def __init__(self, answer: Callable[[str], Any] = last_word, statuses: list[int] | None = None) -> None:
        self.answer, self.statuses, self.status = answer, statuses or [], 200
        self.requests: list[dict[str, Any]] = []
        handler = type("Handler", (_Handler,), {"owner": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.owner.requests.append({"path": self.path, "key": self.headers["Authorization"], **body})
        status = self.owner.statuses.pop(0) if self.owner.statuses else self.owner.status
        answer = self.owner.answer(body["messages"][0]["content"])
        if isinstance(answer, str):
            answer = {"choices": [{"message": {"role": "assistant", "content": answer}}]}
        content = json.dumps(answer if status == 200 else {"error": "no such\nmodel"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""
