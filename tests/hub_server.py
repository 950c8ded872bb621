"""A small server that speaks as much of the hub's HTTP as the real client asks of it."""

import hashlib
import io
import json
import re
import time
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from http_server import Handler, LocalServer

CONVERTED = "refs/convert/parquet"
SCRIPT = b"import datasets\nclass Openwebtext(datasets.GeneratorBasedBuilder): ...\n"


def parquet(texts: list[str]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), out, row_group_size=100)
    return out.getvalue()


def commit(files: dict[str, bytes]) -> str:
    return hashlib.sha1(b"".join(name.encode() + data for name, data in files.items())).hexdigest()


class HubServer(LocalServer):
    """Data sets by name and branch, each a dict of files; and what goes wrong with them."""

    def __init__(self) -> None:
        self.sets: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.busy: list[tuple[int, str]] = []  # status and Retry-After of the next API calls
        self.delay = 0.0  # before the first answer
        self.slow = 0.0  # before each piece of a file
        self.allowed: int | None = None  # bytes of Parquet files that come before all breaks off
        self.served = 0
        self.asked: list[str] = []
        server = self

        class Hub(Handler):
            def do_GET(self) -> None:
                body = self.body()
                server.asked.append(f"{self.command} {self.path}")
                time.sleep(server.delay)
                server.delay = 0.0
                path = unquote(urlsplit(self.path).path)
                if path.startswith("/api/") and server.busy:
                    status, after = server.busy.pop(0)
                    return self.send(status, b"{}", {"Retry-After": after})
                found = re.match(r"/(api/)?datasets/([^/]+/[^/]+)/?(.*)", path)
                if not found:
                    return self.send(200 if path == "/" else 404, b"{}")
                api, name, rest = found.groups()
                if name in server.gated:
                    return self.send(403, b"{}", {"X-Error-Code": "GatedRepo"})
                if name not in server.sets:
                    return self.send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
                branches = server.sets[name]
                revisions = {commit(files): files for files in branches.values()} | branches
                what, _, more = rest.partition("/")
                wanted = next((r for r in revisions if f"{more}/".startswith(f"{r}/")), None)
                if what and wanted is None:
                    return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                files = revisions[wanted or "main"]
                inside = more.removeprefix(wanted or "").lstrip("/")
                if not api:
                    return self.file(files, inside)
                if what in ("", "revision"):
                    siblings = [{"rfilename": each} for each in files]
                    value: Any = {"id": name, "sha": commit(files), "siblings": siblings}
                elif what == "tree":
                    value = listed(files, inside)
                else:  # paths-info
                    form = re.findall(r"paths=([^&]*)", body.decode())
                    asked = [unquote(p.replace("+", " ")) for p in form]
                    if not form:
                        asked = json.loads(body)["paths"]
                    value = [entry for entry in listed(files, "") if entry["path"] in asked]
                self.send(200, json.dumps(value).encode())

            def file(self, files: dict[str, bytes], name: str) -> None:
                if name not in files:
                    return self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
                data, tag = files[name], commit({name: files[name]})
                headers = {"X-Repo-Commit": commit(files), "ETag": f'"{tag}"'}
                if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                    start, stop = int(span[1]), int(span[2] or len(data) - 1) + 1
                    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
                    return self.send(206, data[start:stop], headers, name)
                self.send(200, data, headers, name)

            do_HEAD = do_POST = do_GET

            def send(
                self,
                status: int,
                data: bytes,
                headers: dict[str, str] | None = None,
                name: str = "",
            ) -> None:
                self.head(status, len(data), headers or {})
                if self.command == "HEAD":
                    return
                if name.endswith(".parquet"):
                    time.sleep(server.slow)
                    left = len(data)
                    if server.allowed is not None:
                        left = max(0, server.allowed - server.served)
                    server.served += min(left, len(data))
                    if left < len(data):
                        self.wfile.write(data[:left])
                        self.close_connection = True
                        return
                self.wfile.write(data)

        super().__init__(Hub)


def listed(files: dict[str, bytes], folder: str) -> list[dict[str, Any]]:
    """Files and folders below `folder`, as the hub lists them."""
    inside = {name: data for name, data in files.items() if name.startswith(folder)}
    folders = {name.rsplit("/", n)[0] for name in inside for n in range(1, name.count("/") + 1)}
    return [
        *({"type": "directory", "path": name, "size": 0, "oid": "0"} for name in sorted(folders)),
        *({"type": "file", "path": n, "size": len(d), "oid": "0"} for n, d in inside.items()),
    ]


def pile10k(texts: list[str]) -> dict[str, dict[str, bytes]]:
    """A data set that is Parquet, laid out as NeelNanda/pile-10k is."""
    readme = b"---\nlicense: bigscience-bloom-rail-1.0\n---\n"
    return {"main": {"README.md": readme, "data/train-00000-of-00001.parquet": parquet(texts)}}


def openwebtext(texts: list[str], shards: int = 4) -> dict[str, dict[str, bytes]]:
    """A data set whose main branch is a script, with the branch to which the hub converted it."""
    parts = [
        texts[len(texts) * i // shards : len(texts) * (i + 1) // shards] for i in range(shards)
    ]
    converted = {f"plain_text/train/{i:04d}.parquet": parquet(p) for i, p in enumerate(parts)}
    return {"main": {"README.md": b"", "openwebtext.py": SCRIPT}, CONVERTED: converted}
