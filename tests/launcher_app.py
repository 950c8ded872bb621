"""A script with launchers whose stage is a stand-in, for the tests of the launchers."""

import re
import subprocess
import sys
from pathlib import Path

from processes import HERE, finished

APP = """
import hydra
from sparse_dict import config
from sparse_dict.launch import jobs, script

jobs.MODULES["app"] = "batch"

@hydra.main(version_base="1.3", config_path={folder!r}, config_name="app")
def main(config):
    print("alone", config.size)

script.start(main)
"""

CONF = """
defaults:
  - _self_
  - override hydra/launcher: ensemble
name: app
study_dir: .
size: 1
number: ${hydra:job.num}
folder: ${hydra:runtime.output_dir}
hydra:
  searchpath: ["file://${sparse_dict.conf:.}"]
  sweep:
    dir: runs
    subdir: ${hydra.job.override_dirname}
  callbacks:
    check_first:
      _target_: sparse_dict.launch.check_first.CheckFirst
    record:
      _target_: batch.Record
"""

BATCH = """
import json
import logging
import os
from pathlib import Path

from hydra.experimental.callback import Callback
from sparse_dict.errors import UserError
from sparse_dict.machine.interrupt import Interrupted
from sparse_dict.storage.output import Output

OUTPUT = Output("app", None, "record.json", lambda folder: None)
log = logging.getLogger(__name__)


class Unsendable(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def check(config, folder):
    assert config["folder"] == str(folder)
    if config["size"] < 0:
        raise UserError("size must not be negative")


def weight(config):
    return config["size"]


def objective(outcome):
    return outcome["size"], 2 * outcome["size"]


def outcome(config, folder):
    log.info("training %s", config["size"])
    if config["size"] == 13:
        return UserError("13 is unlucky")
    if config["size"] == 14:
        try:
            raise Unsendable("this", "that")
        except Exception as error:
            return error
    assert folder.is_dir() and config["folder"] == str(folder)
    (folder / "worker").write_text(
        f"{os.getpid()} {os.environ.get('OMP_NUM_THREADS')} "
        f"{','.join(map(str, sorted(os.sched_getaffinity(0))))} "
        f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {config['number']}"
    )
    return {"size": config["size"]}


def train_many(configs, folders):
    log.info("batch of %d", len(configs))
    sizes = [config["size"] for config in configs]
    if 66 in sizes:
        os._exit(3)
    if 77 in sizes:
        raise Interrupted(143)
    if 90 in sizes:
        raise AssertionError("too much")
    if 92 in sizes:
        raise KeyboardInterrupt
    return [outcome(config, folder) for config, folder in zip(configs, folders)]


class Record(Callback):
    def on_job_start(self, config, **kwargs):
        self.folder = Path(config.hydra.runtime.output_dir)

    def on_job_end(self, config, job_return, **kwargs):
        log.info("ended")
        value = job_return._return_value
        result = repr(value) if isinstance(value, Exception) else value
        record = {"status": job_return.status.name, "result": result}
        (self.folder / "record.json").write_text(json.dumps(record))

    def on_multirun_end(self, config, **kwargs):
        print("multirun ended")
"""


def write(folder: Path) -> Path:
    """Write the script, its config and its stage; returns the folder."""
    (folder / "app.py").write_text(APP.format(folder=str(folder)))
    (folder / "batch.py").write_text(BATCH)
    (folder / "app.yaml").write_text(CONF)
    return folder


def launch(app: Path, cwd: Path, *overrides: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the script in `cwd`; the jobs' folders are in its folder runs."""
    command = [sys.executable, str(app / "app.py"), "-m", *overrides]
    return finished(command, cwd, {**HERE, **env})


def logged(folder: Path) -> list[str]:
    """The stage's messages in a job's log file."""
    return re.findall(r"\[batch\]\[INFO\] - (.*)", (folder / "app.log").read_text())


def worker(folder: Path) -> list[str]:
    """Of the process that trained a job: its id, threads, cores, GPUs, and the job's number."""
    return (folder / "worker").read_text().split()
