"""Weights & Biases: one run for each job, online where that works, offline where it does not.

Tracking never stops a training run: trouble with wandb becomes a warning, given once. A server that
is slow or gone costs seconds, and what it did not take stays in ``<study_dir>/wandb``.

`runs` opens runs, `run` is what a stage holds, `server` says whether the server is used.
"""

from sparse_dict.tracking.run import ID_FILE, KILLED, Run
from sparse_dict.tracking.runs import check, open_run, together, unfinished
from sparse_dict.tracking.server import why_offline
