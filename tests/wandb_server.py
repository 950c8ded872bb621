"""A small server that the real wandb client takes for its own, and that keeps what it is sent."""

import json
import re
import time
from typing import Any

from http_server import Handler, LocalServer


class WandbServer(LocalServer):
    """Runs by their id, each with `bucket` as created, `files` by line number, `exit_code`."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.uploads: dict[str, bytes] = {}
        self.operations: list[str] = []
        self.views: list[dict[str, Any]] = []  # workspaces
        self.artifacts: list[dict[str, Any]] = []  # as created, one of each name and content
        self.uses: list[tuple[str, str]] = []  # the run's id, and the name of what it used
        self.status = 200  # of every answer
        self.delay = 0.0  # seconds before anything is answered
        self.delays: dict[str, float] = {}  # before an operation is
        server = self

        class Wandb(Handler):
            def answer(self, value: Any, status: int = 200) -> None:
                data = json.dumps(value).encode()
                self.head(status, len(data), {"Content-Type": "application/json"})
                self.wfile.write(data)

            def do_POST(self) -> None:
                time.sleep(server.delay)
                body = self.body()
                if server.status != 200:
                    self.answer({}, server.status)
                elif self.path == "/graphql":
                    self.answer(server.graphql(json.loads(body)))
                elif match := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                    server.stream(match[1], json.loads(body))
                    self.answer({"exitcode": None, "limits": {}})
                else:  # telemetry
                    self.answer({})

            def do_PUT(self) -> None:
                time.sleep(server.delay)
                server.uploads[self.path] = self.body()
                self.answer({}, server.status)

            def do_GET(self) -> None:
                """To ask for /die makes the server answer nothing but errors from now on."""
                server.status = 500
                self.answer({})

        super().__init__(Wandb)

    def graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        query, variables = request["query"], request.get("variables") or {}
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        operation = found[1] if found else ""
        self.operations.append(operation)
        time.sleep(self.delays.get(operation, 0))
        if operation == "Viewer":
            viewer = {"id": "u", "entity": "me", "username": "me", "flags": "{}"}
            return {"data": {"viewer": {**viewer, "teams": {"edges": []}}}}
        if operation == "GetDefaultEntity":
            return {"data": {"viewer": {"id": "u", "entity": "me"}}}
        if operation == "UpsertBucket":
            run_id = variables["name"]
            run = self.runs.setdefault(run_id, {"bucket": {}, "files": {}})
            run["bucket"].update({k: v for k, v in variables.items() if v is not None})
            project = {"name": "sparse-dict", "entity": {"name": "me"}}
            bucket = {"id": f"b-{run_id}", "name": run_id, "displayName": run_id, "sweepName": None,
                      "project": {"id": "p", **project}, "historyLineCount": 0}  # fmt: skip
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if operation == "RunResumeStatus":
            project = {"id": "p", "name": "sparse-dict", "entity": {"id": "e", "name": "me"}}
            return {"data": {"model": {**project, "bucket": self.bucket(variables["name"])}}}
        if operation == "CreateRunFiles":
            folder = f"{self.url}/{variables['run']}"
            made = [{"name": n, "uploadUrl": f"{folder}/{n}"} for n in variables["files"]]
            return {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": made}}}
        if operation == "CreateArtifact":
            artifact = self.artifact(variables["input"])
            return {"data": {"createArtifact": {"artifact": artifact}}}
        if operation == "CreateArtifactManifest":
            url = f"{self.url}/manifests/{variables['artifactID']}"
            file = {"id": "f", "name": "m", "displayName": "m", "uploadUrl": url}
            manifest = {"id": "m", "file": {**file, "uploadHeaders": []}}
            return {"data": {"createArtifactManifest": {"artifactManifest": manifest}}}
        if operation == "CommitArtifact":
            self.artifacts[int(variables["artifactID"])]["state"] = "COMMITTED"
            committed = {"id": variables["artifactID"], "digest": "d"}
            return {"data": {"commitArtifact": {"artifact": committed}}}
        if operation == "UseArtifact":
            used = variables["input"]
            name = self.artifacts[int(used["artifactID"])]["artifactCollectionName"]
            self.uses.append((used["runName"], name))
            return {"data": {"useArtifact": {"artifact": {"id": used["artifactID"]}}}}
        if operation == "UpsertView2":
            self.views.append(variables)
            view = {"id": "v", "name": variables["name"]}
            return {"data": {"upsertView": {"view": view, "inserted": True}}}
        return {"errors": [{"message": f"{operation} is not known here"}]}

    def artifact(self, made: dict[str, Any]) -> dict[str, Any]:
        """What a client is told that logs an artifact; that of a table's file is there already."""
        key = [made["artifactCollectionName"], made["digest"]]
        keys = [[a["artifactCollectionName"], a["digest"]] for a in self.artifacts]
        if key not in keys:
            keys.append(key)
            state = "COMMITTED" if made["artifactTypeName"] == "run_table" else "PENDING"
            self.artifacts.append({**made, "state": state})
        number, sequence = keys.index(key), {"id": "s", "latestArtifact": None}
        state = self.artifacts[number]["state"]
        return {"id": str(number), "state": state, "artifactSequence": sequence}

    def bucket(self, run_id: str) -> dict[str, Any] | None:
        """What a client that resumes a run is told of it."""
        if run_id not in self.runs:
            return None
        history = self.history(run_id)
        return {
            "id": f"b-{run_id}",
            "name": run_id,
            "summaryMetrics": json.dumps(self.summary(run_id)),
            "displayName": self.runs[run_id]["bucket"]["displayName"],
            "logLineCount": 0,
            "historyLineCount": len(history),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in history[-1:]]),
            "eventsTail": "[]",
            "config": self.runs[run_id]["bucket"]["config"],
            "tags": [],
            "notes": None,
            "wandbConfig": '{"t": 1}',  # without it the client begins anew
        }

    def stream(self, run_id: str, body: dict[str, Any]) -> None:
        run = self.runs[run_id]
        for name, part in (body.get("files") or {}).items():
            lines = run["files"].setdefault(name, {})
            lines.update(enumerate(map(json.loads, part["content"]), part["offset"]))
        if body.get("complete"):
            run["exit_code"] = body["exitcode"]

    def history(self, run_id: str) -> list[dict[str, Any]]:
        """The rows of a run, without those that an interrupted client has overwritten."""
        lines = self.runs[run_id]["files"].get("wandb-history.jsonl", {})
        return [lines[number] for number in sorted(lines)]

    def summary(self, run_id: str) -> dict[str, Any]:
        """A run's end values."""
        return self.runs[run_id]["files"].get("wandb-summary.json", {}).get(0, {})

    def config(self, run_id: str) -> dict[str, Any]:
        """A run's config."""
        entries = json.loads(self.runs[run_id]["bucket"]["config"])
        return {key: entry["value"] for key, entry in entries.items()}
