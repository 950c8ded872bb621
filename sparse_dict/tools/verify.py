"""`python -m sparse_dict.verify outputs/NAME`: is every file of a study what it should be?

Reads every file whole, hashes it, and follows the fingerprints from stage to stage. What no record
lists does not belong there. Of several studies, it also sees whether their activations are of the
same text, row for row. Every fault is named; the exit code is 1 if there is one.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sparse_dict.activations import store, toy
from sparse_dict.activations.side_by_side import refuse_other_tokens
from sparse_dict.analysis import columns
from sparse_dict.analysis import stage as analysis_stage
from sparse_dict.analysis.study import folders
from sparse_dict.errors import UserError, lacking, printable, reading
from sparse_dict.lm import folder as lm_folder
from sparse_dict.machine.progress import Progress
from sparse_dict.sae import folder as sae_folder
from sparse_dict.storage import files, lock, tensor_files
from sparse_dict.storage.output import ANYWHERE
from sparse_dict.tools import ending

CHANGED = "has changed since it was written"


@dataclass
class Check:
    """What is found in one folder that should hold the record `manifest`."""

    folder: Path
    manifest: Path
    line: str = ""  # what it is, if it is finished
    prints: Mapping[str, Any] = field(default_factory=dict)  # for what was made from it
    faults: list[str] = field(default_factory=list)
    listed: set[str] = field(default_factory=set)  # files that records list
    closed: set[str] = field(default_factory=set)  # folders of whose files there is no list

    def run(self, look: Callable[["Check"], None]) -> "Check":
        """Check the folder by `look`, if it is finished."""
        self.listed.add(str(self.manifest))
        if holder := lock.holder(self.folder):
            where = f"{self.folder} is being written by {holder}"
            self._fault(f"{where}: verify it again when it has ended")
        elif not self.manifest.is_file():
            name = self.manifest.name
            self._fault(f"{self.folder} is not finished (no {name}): run its stage again")
            self._checkpoints()
        else:
            self._attempt(self.folder, partial(look, self))
        return self

    def _fault(self, text: str) -> None:
        """What of the folder is listed is not known."""
        self.faults.append(text)
        self.closed.add(str(self.folder))

    def _attempt(self, path: Path, look: Callable[[], object]) -> None:
        try:
            with reading(path):
                look()
        except UserError as error:
            self._fault(str(error))
        except OSError as error:
            self._fault(lacking(error) or f"{path}: {error}")

    def expect(self, fits: object, text: str) -> None:
        """What does not fit is a fault of what the manifest says."""
        if not fits:
            self.faults.append(f"{self.manifest}: {text}")

    def files(
        self, record: Mapping[str, Any], hashes: Mapping[str, str], read: Iterable[str] = ()
    ) -> None:
        """See that the record and the files that it lists are those that were written.

        But for those that were `read`, and compared then.
        """
        self.listed.update(f"{self.folder}/{name}" for name in (*hashes, *read))
        changed = {} if files.is_sealed(record) else {self.manifest.name: CHANGED}
        there = {name: (self.folder / name).exists() for name in sorted(hashes.keys() - {*read})}
        changed |= {name: "is missing" for name, exists in there.items() if not exists}
        names = [name for name, exists in there.items() if exists]
        pool = ThreadPoolExecutor()  # only large files gain from threads
        try:
            found = pool.map(files.sha256_file, [self.folder / name for name in names])
            with Progress(f"verify {self.folder.name}", len(names), "files") as progress:
                for name, digest in zip(names, found, strict=True):
                    changed |= {name: CHANGED} if digest != hashes[name] else {}
                    progress.advance(1)
        finally:
            pool.shutdown(cancel_futures=True)
        again = f"delete {self.manifest} and make it again"
        self.faults += [f"{self.folder / name} {how}: {again}" for name, how in changed.items()]
        self._checkpoints()

    def _checkpoints(self) -> None:
        """Read whatever checkpoint is there."""
        for name in (str(lm_folder.CHECKPOINT), sae_folder.CHECKPOINT):
            if (path := self.folder / name).exists():
                self.listed.add(f"{self.folder}/{name}")
                self._attempt(path, partial(tensor_files.read_checkpoint, path))

    def corpus(self, record: Mapping[str, Any]) -> None:
        """See that the corpus is that of its fingerprint, where there is one."""
        if "corpus" in record["fingerprints"]:
            same = files.fingerprint(record["corpus"]) == record["fingerprints"]["corpus"]
            self.expect(same, "the corpus it describes is not that of its fingerprint")


def _lm(check: Check) -> None:
    record = lm_folder.read_record(check.folder)
    prints = check.prints = record["fingerprints"]
    lm_folder.load(check.folder)  # compares the fingerprints of model and tokenizer
    check.line = f"model {prints['model']} from corpus {prints['corpus']}"
    check.corpus(record)
    check.files(record, record.get("sha256") or {}, lm_folder.PRINTED)


def _activations(lm: Mapping[str, object], check: Check) -> None:
    manifest = store.Activations.open(check.folder).manifest
    assert manifest is not None
    prints = check.prints = manifest["fingerprints"]
    own, kinds = prints["activations"], ("", "origin_")
    shards = [(shard, kind) for shard in manifest["shards"] for kind in kinds]
    hashes = {shard[f"{kind}file"]: shard[f"{kind}sha256"] for shard, kind in shards}
    read = [toy.TRUTH] if "truth" in prints else []
    check.files(manifest, hashes, read)
    check.expect(store.fingerprint_of(manifest, prints) == own, f"{store.MANIFEST} {CHANGED}")
    if read:
        check.line = f"{own}, synthetic"
        digest = files.fingerprint(files.sha256_file(check.folder / toy.TRUTH))
        check.expect(digest == prints["truth"], f"{toy.TRUTH} has changed")
        return
    check.corpus(manifest)
    check.line = f"{own} from model {prints.get('model')}"
    if not lm:
        check.line += ", which this study does not hold"
    for key in lm.keys() - {"corpus"}:
        there = prints.get(key)
        text = f"made from the {key} {there}, but the study's is {lm[key]}"
        check.expect(there == lm[key], text)


def _dictionary(own: object, check: Check) -> None:
    trained = sae_folder.read(check.folder)  # which compares hashes
    metrics = trained.metrics
    snapshots = [sae_folder.snapshot_name(seen) for seen in sae_folder.read_snapshots(trained)]
    hashes = metrics.get("sha256") or sae_folder.hashes_of(check.folder)
    made_from = (metrics.get("fingerprints") or {})["activations"]
    read = sae_folder.WEIGHTS, sae_folder.CONFIG, sae_folder.FEATURES, *snapshots
    check.files(metrics, hashes, read)
    told = f"trained on the activations {made_from}, but the study's are {own}"
    check.expect(own in (None, made_from), told)
    check.prints = {"weights": files.fingerprint(hashes[sae_folder.WEIGHTS])}
    where = "" if own else ", which this study does not hold"
    check.line = f"{check.prints['weights']} from activations {made_from}{where}"


def _analysis(weights: Mapping[str, object], check: Check) -> None:
    record = analysis_stage.read_record(check.folder)
    compared: Mapping[str, str] = record["dictionaries"]
    for name, was in compared.items():
        now, of = weights.get(name), f"{name!r} was compared"
        check.expect(now, f"{of}, but is not a dictionary here now")
        check.expect(now in (None, was), f"{of} as {was}, and is {now} now: analyse again")
    check.files(record, record.get("sha256") or {})
    # What an analysis goes on from another time, each kind in a folder of its own.
    kept = {str(there) for there in check.folder.iterdir() if there.is_dir()}
    check.closed |= kept - {str(check.folder / columns.FOLDER)}
    later = sorted(weights.keys() - compared.keys())
    more = f"; {len(later)} more are there, {later[0]} first" if later else ""
    check.line = f"of {len(compared)} dictionaries{more}"


def verify(study: Path) -> tuple[list[str], list[str]]:
    """What was made from what in a study, and every fault."""
    checks = [*_checks(study)]
    lines = [
        f"{check.folder.relative_to(study)}: {check.line or 'not made'}"
        for check in checks
        if check.line or not check.folder.exists()
    ]
    return lines, [*(fault for check in checks for fault in check.faults), *_strays(study, checks)]


def _checks(study: Path) -> Iterator[Check]:
    """The folders of a study, checked."""

    def stage(name: str, manifest: str, look: Callable[[Check], None]) -> Check:
        check = Check(study / name, study / name / manifest)
        return check.run(look) if check.folder.is_dir() else check

    yield (lm := stage("lm", lm_folder.RECORD, _lm))
    yield (rows := stage("activations", store.MANIFEST, partial(_activations, lm.prints)))
    folder = study / "sae"
    done, others = folders(folder)
    if not folder.is_dir():
        yield Check(folder, folder)
    look = partial(_dictionary, rows.prints.get("activations"))
    weights: dict[str, object] = {}
    with Progress("verify", len(done) + len(others), "dictionaries") as progress:
        for path in [*others, *done]:
            check = Check(path, path / sae_folder.METRICS).run(look)
            progress.advance(1)
            if check.prints:
                weights[str(path.relative_to(folder))] = check.prints["weights"]
            yield check
    yield stage("analysis", analysis_stage.MANIFEST, partial(_analysis, weights))


def _strays(study: Path, checks: Sequence[Check]) -> Iterator[str]:
    """Name half files, links out of the study, and what no record lists."""
    top, root = str(study), study.resolve()
    closed = {f"{top}/wandb", f"{top}/probe"}.union(*(check.closed for check in checks))
    listed = {top, f"{top}/sae", *closed}
    for path in (path for check in checks for path in check.listed | check.closed):
        while path not in listed or path in closed:  # and the folders that it lies in
            listed.add(path)
            path = os.path.dirname(path)  # noqa: PTH120  a `Path` of each would double the time
    for at, inner, names in os.walk(study):
        for name in sorted([*inner, *names]):
            path = f"{at}/{name}"
            if name.startswith(".") and name.endswith(".tmp"):
                yield f"{path} is half a file that a killed process left: delete it"
            elif os.path.islink(path) and not Path(path).resolve().is_relative_to(root):  # noqa: PTH114
                yield f"{path} leads out of the study, to {Path(path).resolve()}"
            elif path not in listed and not re.fullmatch(ANYWHERE, name):
                yield f"{path} does not belong there"
        inner[:] = [n for n in inner if f"{at}/{n}" in listed and f"{at}/{n}" not in closed]


def same_rows(one: Path, other: Path) -> str:
    """Say that row i of two harvests is of the same token of the same text, for every i."""
    a, b = (store.Activations.open(study / "activations") for study in (one, other))
    refuse_other_tokens(a, b)
    return f"{a.folder} and {b.folder}: the same {a.rows:,} tokens, row for row"


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was made from what, and every fault; 1 if there is one."""
    parser = argparse.ArgumentParser("python -m sparse_dict.verify", description="check studies")
    parser.add_argument(
        "study", type=Path, nargs="+", help="a study's folder, such as outputs/demo"
    )
    studies: list[Path] = parser.parse_args(argv).study
    lines: list[str] = []
    faults: list[str] = []
    for folder in studies:
        if not folder.is_dir():
            parser.error(f"{folder} is not a folder")
        made, wrong = verify(folder if folder.name else folder.absolute())
        lines += [*([f"{folder}"] if len(studies) > 1 else []), *made, ""]
        faults += wrong
    for folder in studies[1:]:
        try:
            lines += [same_rows(studies[0], folder), ""]
        except UserError as error:
            faults.append(str(error))
    verdict = f"{len(faults)} faults" if len(faults) != 1 else "1 fault"
    lines += [*(f"FAULT {fault}" for fault in faults), verdict]
    sys.stdout.write("\n".join(map(printable, [*lines, ""])))
    return 1 if faults else 0


if __name__ == "__main__":
    ending(main)
