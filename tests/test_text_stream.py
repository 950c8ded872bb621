"""Data sets of a hub, read by the real client from a server that speaks the hub's HTTP."""

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
from fault_study import ENVIRONMENT, ROOT, SETTINGS
from hub_server import HubServer, openwebtext, pile10k
from processes import said, signalled, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

# The client tries to read a file again twenty times, five seconds apart.
IMPATIENT = (
    "import runpy, sys, datasets.config as c\n"
    "c.STREAMING_READ_MAX_RETRIES, c.STREAMING_READ_RETRY_INTERVAL = 1, 0.1\n"
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
rng = np.random.default_rng(0)
TEXTS = [f"{i} {' '.join(rng.choice(WORDS, size=60))}." for i in range(12_000)]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.sets = {
            "Skylion007/openwebtext": openwebtext(TEXTS),
            "NeelNanda/pile-10k": pile10k(TEXTS[:400]),
        }
        yield server


def started(hub: HubServer, folder: Path, *more: str, code: str = "", **env: str) -> Any:
    script = ["-c", code] if code else []
    command = [
        sys.executable, *script, str(ROOT / "train_lm.py"), "name=x", *SETTINGS["train_lm"],
        "cache_dir=cache", "tracking.mode=disabled", "data.val_fraction=0.2", *more,
    ]  # fmt: skip
    outside = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1"}
    return processes.started(command, folder, {**ENVIRONMENT, **outside, **env})


def run(hub: HubServer, folder: Path, *more: str, **options: str) -> str:
    """The output of a command that succeeds."""
    process = started(hub, folder, *more, **options)
    output = said(process, 150)
    assert process.returncode == 0, output
    return output


def corpus_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "outputs/x/lm/lm.json").read_text())["corpus"])


def tokens_of(folder: Path) -> dict[str, bytes]:
    (made,) = (folder / "cache" / "tokens").iterdir()
    return {path.name: path.read_bytes() for path in made.iterdir()}


def test_both_data_sets_of_the_post_are_found_and_recorded_by_their_commit(hub, tmp_path):
    for name, texts in (("openwebtext", TEXTS), ("pile10k", TEXTS[:400])):
        folder = tmp_path / name
        folder.mkdir()
        run(hub, folder, f"data={name}")
        assert len(corpus_of(folder)["commit"]) == 40
        (made,) = (folder / "cache" / "tokens").iterdir()
        splits = json.loads((made / "manifest.json").read_text())["splits"]
        assert sum(split["documents"] for split in splits.values()) == len(texts)
    hub.sets["Skylion007/openwebtext"] = pile10k(TEXTS)  # the script's maker went over to Parquet
    moved = tmp_path / "moved"
    moved.mkdir()
    run(hub, moved, "data=openwebtext")
    commit = corpus_of(tmp_path / "openwebtext").pop("commit")
    assert corpus_of(moved).pop("commit") != commit
    assert {**corpus_of(moved), "commit": commit} == corpus_of(tmp_path / "openwebtext")


def test_a_data_set_that_moves_on_is_read_as_it_was_first_seen_and_offline_too(hub, tmp_path):
    run(hub, tmp_path, "data=pile10k")
    before = corpus_of(tmp_path)
    old = hub.sets["NeelNanda/pile-10k"]["main"]
    hub.sets["NeelNanda/pile-10k"] = {**pile10k(TEXTS[:500]), "earlier": old}
    run(hub, tmp_path, "data=pile10k", "lm_dir=again", "model.d_model=16")
    assert json.loads((tmp_path / "again/lm.json").read_text())["corpus"] == before
    hub.http.shutdown()
    hub.http.server_close()
    run(hub, tmp_path, "data=pile10k", "lm_dir=offline", "model.d_model=24")
    assert json.loads((tmp_path / "offline/lm.json").read_text())["corpus"] == before


def test_a_hub_that_is_slow_or_asks_to_wait_is_waited_for(hub, tmp_path):
    hub.delay = 5.0
    hub.busy = [(429, "1"), (503, "1")] * 2
    run(hub, tmp_path, "data=pile10k")
    assert not hub.busy


def test_who_must_accept_terms_is_told_so(hub, tmp_path):
    hub.gated = {"NeelNanda/pile-10k"}
    process = started(hub, tmp_path, "data=pile10k")
    output = said(process, 60)
    assert process.returncode == 1, output
    assert "NeelNanda/pile-10k: 403 Client Error. Cannot access gated repo" in output
    assert "Traceback" not in output


def test_a_stream_that_breaks_off_goes_on_to_the_same_tokens(hub, tmp_path):
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    few = ["data=openwebtext", "tokenizer.train_chars=1000"]
    run(hub, tmp_path / "whole", *few)
    whole, hub.served = hub.served, 0
    hub.allowed = whole * 8 // 10
    process = started(hub, tmp_path / "broken", *few, code=IMPATIENT)
    output = said(process)
    assert process.returncode == 1, output
    assert "the same command goes on" in output
    hub.served, hub.allowed = 0, None
    output = run(hub, tmp_path / "broken", *few)
    assert "going on behind" in output
    assert 0 < hub.served < whole * 7 // 10
    assert tokens_of(tmp_path / "broken") == tokens_of(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("answers", ["slow", "broken", "none"])
def test_a_signal_is_heard_while_a_hub_is_waited_for(hub, tmp_path, number, answers):
    if answers == "none":
        hub.delay = 60.0
    elif answers == "slow":
        hub.slow = 20.0
    else:
        hub.allowed = 1000
    process = started(hub, tmp_path, "data=openwebtext")
    wanted = "HEAD /" if answers == "none" else ".parquet"
    wait_for(lambda: any(wanted in line for line in hub.asked), process)
    time.sleep(2)
    signalled(process, number)
    assert not list((tmp_path / "cache").rglob(".lock"))
