"""What each of several processes does for tests/test_distributed.py, which starts them."""

import json
import sys
from pathlib import Path

import test_activations_harvest as harvest
import test_lm_train as lm

from sparse_dict.lm import train
from sparse_dict.machine import distributed


def main(folder: Path) -> None:
    """Train from the beginning, from the checkpoint of one process, and harvest."""
    with distributed.joined():
        histories = [
            train.train(lm.new_model(), lm.make_job(folder / name), lm.FakeRun()).history
            for name in ("whole", "resumed")
        ]
        harvest.harvested(folder / "rows", harvest.new_model(), harvest.new_stream())
        gathered = distributed.gather(distributed.rank() + 0.5)
        result = {"histories": histories, "gathered": gathered}
        (folder / f"{distributed.rank()}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
