"""Google Cloud Storage on loopback: gcp-storage-emulator with what it lacks of the real service, as a process.

Added: preconditions on generations (412), the generation in the answer to a download, empty objects, listings between
offsets and in pages, and several clients at a time. Run as ``python gcs_server.py FOLDER``; its port goes to
``FOLDER/port``. While ``FOLDER/fail`` exists, a line "STATUS PATTERN", requests whose method and path match the
pattern get that status; 0: no answer.
"""

import re
import sys
import threading
import time
from functools import partial, partialmethod
from http import HTTPStatus, server
from operator import itemgetter
from pathlib import Path
from urllib.parse import unquote

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets, objects
from gcp_storage_emulator.storage import Storage

LOCK = threading.Lock()
NAME = itemgetter("name")


def generation(request, storage) -> str:
    """The generation of the object that a request is about; "0" if there is none, as in preconditions."""
    name = request.params.get("object_id") or request.query["name"][0]
    try:
        return str(storage.get_file_obj(request.params["bucket_name"], name)["generation"])
    except NotFound:
        return "0"


def checked(handler):
    """A handler behind the preconditions of its request."""

    def run(request, response, storage, *args, **kwargs):
        if request.method == emulator.POST and request.data is None:
            request._data = b""
        with LOCK:
            found = generation(request, storage)
            if request.query.get("ifGenerationMatch", [found])[0] != found:
                response.status = HTTPStatus.PRECONDITION_FAILED
            elif request.query.get("ifGenerationNotMatch", [""])[0] == found:
                response.status = HTTPStatus.NOT_MODIFIED
            else:
                response["x-goog-generation"] = found
                handler(request, response, storage, *args, **kwargs)

    return run


def listed(request, response, storage, *args, **kwargs):
    """A listing in order of names, between offsets, in pages."""
    query = {name: values[0] for name, values in request.query.items()}
    with LOCK:
        try:
            found, _ = storage.get_file_list(request.params["bucket_name"], query.get("prefix"), None, None)
        except NotFound:
            response.status = HTTPStatus.NOT_FOUND
            return
    first, end, size = query.get("startOffset", ""), query.get("endOffset"), int(query.get("maxResults", 1000))
    found = sorted((one for one in found if one["name"] >= first and (not end or one["name"] < end)), key=NAME)
    found = [one for one in found if one["name"] > query.get("pageToken", "")]
    more = {"nextPageToken": found[size - 1]["name"]} if len(found) > size else {}
    response.json({"kind": "storage#objects", "items": found[:size], **more})


def main(folder: str) -> None:
    for _, methods in emulator.HANDLERS:
        for method, handler in methods.items():
            if handler in (objects.insert, objects.get, objects.delete):
                methods[method] = checked(handler)
            elif handler is objects.ls:
                methods[method] = listed

    def handle(self, method):
        try:
            status, pattern = (Path(folder) / "fail").read_text().split(" ", 1)
        except FileNotFoundError:
            pattern = "$^"
        if not re.search(pattern, f"{method} {unquote(self.path)}"):
            getattr(emulator.RequestHandler, f"do_{method}")(self)
            return
        while status == "0" and (Path(folder) / "fail").exists():
            time.sleep(0.1)
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(int(status) or 503)
        self.send_header("content-length", "0")
        self.end_headers()

    storage = Storage(use_memory_fs=True)
    buckets.create_bucket("bucket", storage)
    methods = {f"do_{method}": partialmethod(handle, method) for method in ("GET", "POST", "PUT", "PATCH", "DELETE")}
    settings = {"protocol_version": "HTTP/1.1", "disable_nagle_algorithm": True}
    handler = type("Handler", (emulator.RequestHandler,), settings | methods)
    served = server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, storage))
    aside = Path(folder) / "port.partial"
    aside.write_text(str(served.server_address[1]))
    aside.rename(Path(folder) / "port")
    served.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
