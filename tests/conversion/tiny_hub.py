"""A hub on loopback: what `huggingface_hub` asks of one, served from a dictionary of files."""

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Request(NamedTuple):
    """``file``: of the model, where the request is for one."""

    method: str
    path: str
    file: str | None
    range: str | None


@dataclass
class Hub:
    """One model, ``name``, at one commit, with one branch.

    refuse: (path, file) -> (status, headers) of a request that is to fail, or None.
    cut: file -> for each GET of it in turn, after how many bytes the connection is cut; None: not at all.
    """

    name: str
    files: dict[str, bytes]
    commit: str = COMMIT
    refuse: Callable[[str, str | None], tuple[int, dict[str, str]] | None] = lambda path, file: None
    cut: dict[str, list[int | None]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> "Hub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = False  # so that closing waits for them, and no test inherits one
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fetched(self) -> list[str]:
        """The files whose content was asked for, in alphabetical order; and forgets all requests."""
        found = sorted(request.file for request in self.requests if request.method == "GET" and request.file)
        self.requests.clear()
        return found


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    timeout = 5

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_) -> None:
        pass

    def _answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        before, _, rest = path.partition("/resolve/")
        file = rest.partition("/")[2] if rest else None
        hub.requests.append(Request(self.command, path, file, self.headers["Range"]))
        refused = hub.refuse(path, file)
        api = f"/api/models/{hub.name}"
        if refused:
            self._send(b"{}", *refused)
        elif file is not None and before == f"/{hub.name}" and file in hub.files:
            self._file(file)
        elif path in (api, f"{api}/revision/main", f"{api}/revision/{hub.commit}"):
            siblings = [{"rfilename": name, "size": len(content)} for name, content in hub.files.items()]
            self._send(json.dumps({"id": hub.name, "sha": hub.commit, "siblings": siblings}).encode())
        elif path.startswith(f"{api}/revision/"):
            self._send(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        elif path == f"{api}/tree/{hub.commit}":
            tree = [{"type": "file", "path": f, "size": len(c), "oid": _etag(c)} for f, c in hub.files.items()]
            self._send(json.dumps(tree).encode())
        else:
            self._send(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

    def _file(self, name: str) -> None:
        content = self.hub.files[name]
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": self.hub.commit, "Accept-Ranges": "bytes"}
        asked = self.headers["Range"]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cuts = self.hub.cut.get(name)
        cut = cuts.pop(0) if cuts and self.command == "GET" else None
        self._send(content[start:], 206 if asked else 200, headers, cut)

    def _send(
        self, body: bytes, status: int = 200, headers: dict[str, str] | None = None, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body)), "Connection": "close"} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if cut is None else body[:cut])
        self.close_connection = True


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
