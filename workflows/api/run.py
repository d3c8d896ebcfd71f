#!/usr/bin/env python3
"""Run an API workflow on a ComfyUI server and fetch its images. Needs Python 3.10 and nothing else.

    python run.py fmboost_photo_upscale.json --upload "Load Image.image=photo.jpg" --set "CFM Latent Upscale.steps=4"

A node is named by its id, its title or its type. Paths of the saved images go to standard output, progress to
standard error. Exit status: 0 done, 1 the server refused or failed the workflow (its message is printed), 2 wrong
arguments, 3 no connection, 130 cancelled with Ctrl-C (the server is told to stop).
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import socket
import struct
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Graph = dict[str, dict[str, Any]]
Progress = Callable[[str, int, int], None]
"""(node id, steps done, steps in all)"""


class WorkflowError(Exception):
    """The server refused the workflow, or a node failed; the message is the server's."""


class Client:
    """One client of one ComfyUI server."""

    def __init__(self, server: str = "http://127.0.0.1:8188", timeout: float = 60) -> None:
        """Raises ValueError for an address that is not HOST:PORT, with or without http:// in front."""
        self.server = (server if "://" in server else f"http://{server}").rstrip("/")
        try:
            parts = urllib.parse.urlsplit(self.server)
            self.address = parts.hostname, parts.port or 80
        except ValueError as error:
            raise ValueError(f"the server's address is {server}: {error}") from error
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"the server's address is {server}: expected HOST:PORT or http://HOST:PORT")
        self.timeout, self.id = timeout, uuid.uuid4().hex
        # Straight to the server, as the websocket goes: proxies of the environment are for the internet.
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str) -> Any:
        return json.loads(self.fetch(path))

    def fetch(self, path: str) -> bytes:
        with self.opener.open(self.server + path, timeout=self.timeout) as response:
            return response.read()

    def post(self, path: str, body: Any) -> Any:
        return self._post(path, json.dumps(body).encode(), "application/json")

    def _post(self, path: str, data: bytes, kind: str) -> Any:
        request = urllib.request.Request(self.server + path, data, {"Content-Type": kind})
        try:
            with self.opener.open(request, timeout=self.timeout) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            raise WorkflowError(_refusal(error)) from error
        return json.loads(text) if text.strip() else {}

    def upload(self, path: Path) -> str:
        """Put an image into the server's input folder; returns the name for Load Image."""
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        data = head.encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        answer = self._post("/upload/image", data, f"multipart/form-data; boundary={boundary}")
        return "/".join(part for part in (answer["subfolder"], answer["name"]) if part)

    def queue(self, graph: Graph, **extra: Any) -> str:
        """Submit a workflow; returns its prompt id. Raises WorkflowError with what the server objects to."""
        answer = self.post("/prompt", {"prompt": graph, "client_id": self.id, "extra_data": extra})
        if answer.get("node_errors"):  # the server runs what is left of such a workflow: not what was asked for
            self.cancel(answer["prompt_id"])
            raise WorkflowError(_node_errors(answer["node_errors"]) or "the server refused a part of the workflow")
        return answer["prompt_id"]

    def cancel(self, prompt: str) -> None:
        """Take a workflow out of the queue, or stop it where it runs."""
        self.post("/queue", {"delete": [prompt]})
        self.post("/interrupt", {"prompt_id": prompt})

    def listen(self) -> Socket:
        return Socket(self.address, f"{self.server}/ws?clientId={self.id}", self.timeout)

    def run(self, graph: Graph, progress: Progress | None = None, **extra: Any) -> dict[str, Any]:
        """Submit, wait, return the history entry. Raises WorkflowError where the server refuses, fails or is
        interrupted, ConnectionError where it is gone."""
        with self.listen() as events:
            prompt = self.queue(graph, **extra)
            try:
                for event in events:
                    kind, data = (event.get("type"), event.get("data")) if isinstance(event, dict) else (None, None)
                    if not isinstance(data, dict) or data.get("prompt_id") != prompt:  # another's, or a custom node's
                        continue
                    if kind == "progress" and progress is not None:
                        progress(data["node"], data["value"], data["max"])
                    if kind in ("execution_success", "execution_error", "execution_interrupted"):
                        return self.finished(prompt)
            except KeyboardInterrupt:
                self.cancel(prompt)
                raise
        raise ConnectionError("the server closed the connection before the workflow was done")

    def finished(self, prompt: str) -> dict[str, Any]:
        """The history entry of a workflow that has ended. Raises WorkflowError unless it ended well."""
        deadline = time.monotonic() + self.timeout
        while prompt not in (history := self.get(f"/history/{prompt}")):  # written shortly after the last event
            if time.monotonic() > deadline:
                raise ConnectionError(f"the server has no result for {prompt}")
            time.sleep(0.05)
        entry = history[prompt]
        if entry["status"]["status_str"] != "success":
            for kind, data in entry["status"]["messages"]:
                if kind == "execution_error":
                    raise WorkflowError(f"{data['node_type']}: {data['exception_message'].strip()}")
            raise WorkflowError("the workflow was interrupted")
        return entry

    def images(self, entry: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
        """(name, contents) of the images a finished workflow saved; the name is below the server's output folder."""
        for output in entry["outputs"].values():
            for image in output.get("images", []):
                if image.get("type") == "output":
                    parts = (image.get("subfolder", ""), image["filename"])
                    yield "/".join(filter(None, parts)), self.fetch("/view?" + urllib.parse.urlencode(image))

    def inputs(self, kind: str) -> set[str]:
        """The inputs a type of node has."""
        found = self.get(f"/object_info/{urllib.parse.quote(kind)}").get(kind, {}).get("input", {})
        return {name for section in ("required", "optional") for name in found.get(section, {})}


class Socket:
    """The reading half of a websocket (RFC 6455): JSON messages as dicts, binary ones as bytes."""

    def __init__(self, address: tuple[str, int], url: str, timeout: float) -> None:
        parts = urllib.parse.urlsplit(url)
        self.socket = socket.create_connection(address, timeout=timeout)
        self.stream = self.socket.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        status = self.stream.readline()
        if b" 101 " not in status:
            raise ConnectionError(f"no websocket at {url}: {status.decode().strip()}")
        while self.stream.readline().strip():
            pass
        self.socket.settimeout(None)  # a node may be silent for as long as it works

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self.socket.close()

    def __iter__(self) -> Iterator[dict[str, Any] | bytes]:
        message, binary = b"", False
        while head := self.stream.read(2):
            final, kind, size = head[0] & 0x80, head[0] & 0x0F, head[1] & 0x7F
            if size == 126:
                (size,) = struct.unpack(">H", self._exactly(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", self._exactly(8))
            data = self._exactly(size)
            if kind == 8:
                return
            if kind == 9:  # ping: answer with its own data, masked (with zeros) as clients must
                self.socket.sendall(struct.pack(">BBI", 0x8A, 0x80 | len(data), 0) + data)
            if kind > 8:
                continue
            binary = kind == 2 if kind else binary  # a continuation has the kind of the frame before
            message += data
            if final:
                yield message if binary else json.loads(message)
                message = b""

    def _exactly(self, size: int) -> bytes:
        data = self.stream.read(size)
        if len(data) != size:
            raise ConnectionError("the server closed the connection in the middle of a message")
        return data


def read_graph(path: Path) -> Graph:
    """Raises ValueError where the file is no API workflow."""
    try:
        graph = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if isinstance(graph, dict) and "nodes" in graph:
        raise ValueError(f"{path} is a workflow of the editor: there, use File > Export (API) and give that file")
    nodes = list(graph.values()) if isinstance(graph, dict) else []
    if not nodes or not all(isinstance(n, dict) and "class_type" in n and "inputs" in n for n in nodes):
        raise ValueError(f"{path} is no API workflow: expected nodes by their ids, each with class_type and inputs")
    return graph


def free(folder: Path, name: str) -> Path:
    """Where to write an image of that name: below `folder`, whatever the server says, and over no other file."""
    parts = [part.replace(":", "_") for part in name.replace("\\", "/").split("/") if part.strip(". ")]
    path = folder.joinpath(*parts or ["image"])
    first, number = path, 1
    while path.exists():
        number += 1
        path = first.with_name(f"{first.stem}-{number}{first.suffix}")
    return path


def override(graph: Graph, setting: str) -> tuple[str, str, str]:
    """Split NODE.INPUT=VALUE into the id of the node, the input, the value. Raises ValueError where NODE is none or
    several of the graph's nodes."""
    target, equals, value = setting.partition("=")
    name, dot, key = target.rpartition(".")
    if not (equals and dot and name and key):
        raise ValueError(f"'{setting}': expected NODE.INPUT=VALUE")
    found = (
        [name]
        if name in graph
        else [i for i, node in graph.items() if name in (node.get("_meta", {}).get("title"), node["class_type"])]
    )
    if len(found) != 1:
        nodes = ", ".join(f"{i} ({node['class_type']})" for i, node in graph.items())
        raise ValueError(f"'{name}' is {len(found)} nodes of the workflow, expected one of: {nodes}")
    return found[0], key, value


def check_input(graph: Graph, node: str, key: str, inputs: Callable[[str], set[str]]) -> None:
    """Raise ValueError where the node has no such input, which servers pass over in silence. `inputs` of a type of
    node are only asked for where the workflow does not have it already."""
    present, kind = graph[node]["inputs"], graph[node]["class_type"]
    if key not in present and key not in (known := inputs(kind)):
        raise ValueError(f"{kind} has no input '{key}': expected one of {', '.join(sorted(known | set(present)))}")


def apply(graph: Graph, settings: list[str], inputs: Callable[[str], set[str]] = lambda kind: set()) -> None:
    """Set inputs; a VALUE is JSON where it can be read as such, else text. `inputs` as in `check_input`."""
    for setting in settings:
        node, key, value = override(graph, setting)
        check_input(graph, node, key, inputs)
        try:
            graph[node]["inputs"][key] = json.loads(value)
        except json.JSONDecodeError:
            graph[node]["inputs"][key] = value


def _refusal(error: urllib.error.HTTPError) -> str:
    text = error.read().decode(errors="replace")
    try:
        body = json.loads(text)
    except json.JSONDecodeError:
        return f"the server answered {error.code} {error.reason}: {text[:500]}"
    problem = body.get("error", {})
    message = problem if isinstance(problem, str) else f"{problem.get('message', '')} {problem.get('details', '')}"
    return "; ".join(filter(None, [message.strip(), _node_errors(body.get("node_errors") or {})])) or text[:500]


def _node_errors(errors: dict[str, Any]) -> str:
    return "; ".join(
        f"node {node} ({found['class_type']}): {error['message']} {error['details']}".strip()
        for node, found in errors.items()
        for error in found["errors"]
    )


def _show(graph: Graph) -> Progress:
    def show(node: str, value: int, total: int) -> None:
        title = graph.get(node, {}).get("_meta", {}).get("title") or graph.get(node, {}).get("class_type", node)
        bar = "#" * int(30 * value / max(total, 1))
        end = "\n" if value >= total else ""
        print(f"\r{title:24.24} [{bar:30}] {value}/{total}", end=end, file=sys.stderr, flush=True)

    return show


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflow", type=Path, help="API workflow (JSON)")
    parser.add_argument("--server", default="127.0.0.1:8188", metavar="HOST:PORT")
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", dest="settings")
    parser.add_argument("--upload", action="append", default=[], metavar="NODE.INPUT=FILE", help="upload and use it")
    parser.add_argument("-o", "--output", type=Path, default=Path(), help="folder for the images (default: here)")
    options = parser.parse_args(arguments)
    try:
        client = Client(options.server)
        graph = read_graph(options.workflow)
        apply(graph, options.settings, client.inputs)
        for setting in options.upload:
            node, key, file = override(graph, setting)
            check_input(graph, node, key, client.inputs)
            graph[node]["inputs"][key] = client.upload(Path(file))
        entry = client.run(graph, _show(graph))
        options.output.mkdir(parents=True, exist_ok=True)
        for name, contents in client.images(entry):
            path = free(options.output, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents)
            print(path)
    except WorkflowError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        print(f"\nno answer from {options.server}: {error}", file=sys.stderr)
        return 3
    except (ValueError, OSError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ncancelled", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
