"""A hub on loopback that serves small parquet datasets to the real `datasets` client, and counts requests."""

import hashlib
import io
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

REVISION = "0123456789abcdef0123456789abcdef01234567"
Rows = list[dict[str, Any]]


class StandInHub(ThreadingHTTPServer):
    """`tables`: (dataset, configuration, split) → rows, laid out as the hub's own datasets are."""

    daemon_threads = True

    def __init__(self, tables: dict[tuple[str, str, str], Rows]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        configs: dict[str, dict[str, list[dict[str, str]]]] = {}
        for (dataset, config, split), rows in tables.items():
            name = f"{config}/{split}-00000-of-00001.parquet"
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows), buffer)
            self.files.setdefault(dataset, {})[name] = buffer.getvalue()
            entry = {"split": split, "path": f"{config}/{split}-*"}
            configs.setdefault(dataset, {}).setdefault(config, []).append(entry)
        for dataset, found in configs.items():
            card = {"configs": [{"config_name": name, "data_files": files} for name, files in found.items()]}
            self.files[dataset]["README.md"] = f"---\n{yaml.safe_dump(card)}---\n".encode()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "StandInHub":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: StandInHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {self.path}")
        for dataset, files in self.server.files.items():
            if path in (
                f"/api/datasets/{dataset}",
                f"/api/datasets/{dataset}/revision/{REVISION}",
                f"/api/datasets/{dataset}/revision/main",
            ):
                siblings = [{"rfilename": name} for name in files]
                return self.send_json({"id": dataset, "sha": REVISION, "siblings": siblings, "tags": []})
            for revision in ("main", REVISION):
                tree = f"/api/datasets/{dataset}/tree/{revision}"
                if path == tree or path.startswith(f"{tree}/"):
                    folder = path.removeprefix(tree).strip("/")
                    return self.send_json(self.children(dataset, folder))
                resolve = f"/datasets/{dataset}/resolve/{revision}/"
                if path.startswith(resolve) and (name := path.removeprefix(resolve)) in files:
                    return self.send(200, files[name], name)
        self.send(404, b"{}", "", {"X-Error-Code": "EntryNotFound"})

    def do_POST(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        form = self.rfile.read(int(self.headers["Content-Length"])).decode()
        for dataset, files in self.server.files.items():
            if self.path.startswith(f"/api/datasets/{dataset}/paths-info/"):
                names = json.loads(form)["paths"] if form.startswith("{") else parse_qs(form)["paths"]
                return self.send_json([self.entry(dataset, name) for name in names if name in files])
        self.send(404, b"{}", "")

    def children(self, dataset: str, folder: str) -> list[dict[str, Any]]:
        """What lies in a folder itself: files, and folders."""
        prefix = f"{folder}/" if folder else ""
        below = [name.removeprefix(prefix) for name in self.server.files[dataset] if name.startswith(prefix)]
        folders = sorted({name.split("/")[0] for name in below if "/" in name})
        return [
            *({"type": "directory", "path": prefix + name, "oid": "0" * 40} for name in folders),
            *(self.entry(dataset, prefix + name) for name in below if "/" not in name),
        ]

    def entry(self, dataset: str, name: str) -> dict[str, Any]:
        content = self.server.files[dataset][name]
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def send_json(self, content: object) -> None:
        self.send(200, json.dumps(content).encode(), "", {"Content-Type": "application/json"})

    def send(self, status: int, body: bytes, name: str, headers: dict[str, str] | None = None) -> None:
        etag = hashlib.sha1(body).hexdigest()
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            status, first, last = 206, int(wanted[1]), int(wanted[2] or len(body) - 1)
            headers = {**(headers or {}), "Content-Range": f"bytes {first}-{last}/{len(body)}"}
            body = body[first : last + 1]
        self.send_response(status)
        for key, value in {
            "Content-Length": str(len(body)),
            "ETag": f'"{etag}"',
            "X-Repo-Commit": REVISION,
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
