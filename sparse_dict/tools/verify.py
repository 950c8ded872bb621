"""`python -m sparse_dict.verify outputs/NAME`: is every file of a study what it should be?

Reads all files whole, hashes them anew, and follows the fingerprints from stage to stage. What no
record lists does not belong there. Of several studies, it also sees whether their activations are
of the same text, row for row. Every fault is named; the exit code is 1 if there is one.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sparse_dict.activations import store, toy
from sparse_dict.activations.side_by_side import refuse_other_tokens
from sparse_dict.analysis import columns
from sparse_dict.analysis import stage as analysis_stage
from sparse_dict.errors import UserError, lacking, printable, reading
from sparse_dict.lm import folder as lm_folder
from sparse_dict.machine.progress import Progress
from sparse_dict.sae import folder as sae_folder
from sparse_dict.storage import files, lock, tensor_files
from sparse_dict.storage.output import ANYWHERE
from sparse_dict.tools import ending, status

CHANGED = "has changed since it was written"
STAGES = ("lm", "activations", "sae", "analysis")


class Verification:
    """What was found in one study."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.faults: dict[str, None] = {}  # in the order in which they were found
        self.lm: lm_folder.Prints | None = None  # the model's fingerprints
        self.activations: dict[str, str] | None = None
        self.weights: dict[str, str] = {}  # of the finished dictionaries
        self.listed: set[Path] = set()  # files that a record lists, with their folders
        # folders of whose files there is no list
        self.unlisted = {folder / "wandb", folder / "probe"}

    def run(self) -> None:
        """Check everything."""
        self._stage("lm", lm_folder.RECORD, self._lm)
        self._stage("activations", store.MANIFEST, self._activations)
        self._dictionaries()
        self._stage("analysis", analysis_stage.MANIFEST, self._analysis)
        self._strays()

    def _stage(self, name: str, manifest: str, check: Callable[[Path], str]) -> None:
        """Check a folder that should hold `manifest`, if it is there."""
        folder = self.folder / name
        if not folder.is_dir():
            self.lines.append(f"{name}: not made")
        elif self._is_finished(folder, manifest):
            self._attempt(folder, lambda: self.lines.append(f"{name}: {check(folder)}"))

    def _is_finished(self, folder: Path, manifest: str) -> bool:
        """Whether a folder can be checked; that it is not finished is a fault."""
        if holder := lock.holder(folder):
            self._fault(f"{folder} is being written by {holder}: verify it again when it has ended")
        elif not (folder / manifest).is_file():
            self._fault(f"{folder} is not finished (no {manifest}): run its stage again")
            self._checkpoints(folder)
        else:
            return True
        self.unlisted.add(folder)
        return False

    def _attempt(self, path: Path, check: Callable[[], object]) -> None:
        """Run `check`; what it raises is a fault of `path`, whose files it did not list."""
        try:
            with reading(path):
                check()
            return
        except UserError as error:
            self._fault(str(error))
        except OSError as error:
            self._fault(lacking(error) or f"{path}: {error}")
        self.unlisted.add(path)

    def _fault(self, text: str) -> None:
        self.faults[text] = None

    def _expect(self, fits: object, text: str) -> None:
        if not fits:
            self._fault(text)

    # --- stages -----------------------------------------------------------------------------------

    def _lm(self, folder: Path) -> str:
        record = lm_folder.read_record(folder)
        self.lm = record["fingerprints"]
        lm_folder.load(folder)  # compares the fingerprints of model and tokenizer
        path = folder / lm_folder.RECORD
        self._sealed(path, record)
        corpus = record["fingerprints"]["corpus"]
        self._expect(
            files.fingerprint(record["corpus"]) == corpus,
            f"{path}: the corpus it describes is not that of its fingerprint",
        )
        self._list(folder, [lm_folder.RECORD, *lm_folder.PRINTED])
        unhashed = self._hashes(path, lm_folder.HASHED, record.get("sha256"))
        self._checkpoints(folder)
        return f"model {record['fingerprints']['model']} from corpus {corpus}{unhashed}"

    def _activations(self, folder: Path) -> str:
        opened = store.Activations.open(folder)
        manifest = opened.manifest or {}
        inputs = self.activations = manifest["fingerprints"]
        names = [path.name for s in opened.shards for path in (s.path, s.origin_path) if path]
        self._list(folder, [*names, store.MANIFEST, *([toy.TRUTH] if "truth" in inputs else [])])
        path = folder / store.MANIFEST
        for changed in opened.changed():
            self._changed(changed, path)
        own = inputs["activations"]
        if "truth" in inputs:
            digest = files.fingerprint(files.sha256_file(folder / toy.TRUTH))
            self._expect(digest == inputs["truth"], f"{folder / toy.TRUTH} has changed")
            return f"{own}, synthetic"
        if "corpus" in inputs:
            self._expect(
                files.fingerprint(manifest["corpus"]) == inputs["corpus"],
                f"{path}: the corpus it describes is not that of its fingerprint",
            )
        if self.lm is None:
            return f"{own} from model {inputs.get('model')}, which this study does not hold"
        for key, own_print in self.lm.items():
            self._expect(
                key == "corpus" or inputs.get(key) == own_print,
                f"{path}: made from the {key} {inputs.get(key)}, but the study's is {own_print}",
            )
        return f"{own} from model {inputs.get('model')}"

    def _dictionaries(self) -> None:
        sae_dir = self.folder / "sae"
        if not sae_dir.is_dir():
            self.lines.append("sae: not made")
            return
        done, others = status.dictionaries(sae_dir)
        self.listed |= {sae_dir, *(path.parent for path in (*done, *others)), *done, *others}
        for path in others:
            self._is_finished(path, sae_folder.METRICS)
        with Progress("verify", len(done), "dictionaries") as progress:
            for path in done:
                self._attempt(path, partial(self._dictionary, path))
                progress.advance(1)

    def _dictionary(self, folder: Path) -> None:
        name = str(folder.relative_to(self.folder / "sae"))
        path = folder / sae_folder.METRICS
        trained = sae_folder.read(folder)  # compares the hashes of what it reads
        decoders = sae_folder.read_snapshots(folder)
        metrics = trained.metrics
        made_from = (metrics.get("fingerprints") or {})["activations"]
        recorded = metrics.get("sha256") or {}
        self._list(folder, [sae_folder.METRICS])
        compared = [str(p.relative_to(folder)) for p in sae_folder.snapshot_paths(folder)]
        compared += [sae_folder.WEIGHTS, sae_folder.CONFIG, sae_folder.FEATURES]
        names = [*compared, sae_folder.HISTORY]
        unhashed = self._hashes(path, names, recorded, compared)
        self._sealed(path, metrics)
        weights = recorded.get(sae_folder.WEIGHTS) or files.sha256_file(folder / sae_folder.WEIGHTS)
        self.weights[name] = files.fingerprint(weights)
        own = (self.activations or {}).get("activations")
        self._expect(
            own in (None, made_from),
            f"{path}: trained on the activations {made_from}, but the study's are {own}",
        )
        where = "" if own else ", which this study does not hold"
        self.lines.append(
            f"sae/{name}: {self.weights[name]} from activations {made_from}{where}{unhashed}"
        )
        self._checkpoints(folder)
        shape = trained.dictionary.W_dec.shape
        for seen, decoder in decoders.items():
            fits = decoder.shape == shape
            self._expect(fits, f"{folder}: snapshot {seen} has the shape {decoder.shape}")

    def _analysis(self, folder: Path) -> str:
        path = folder / analysis_stage.MANIFEST
        record = analysis_stage.read_record(folder)
        self._sealed(path, record)
        compared: dict[str, Any] = record["dictionaries"]
        for name, weights in compared.items():
            there = self.weights.get(name)
            self._expect(there, f"{path}: {name!r} was compared, but is not a dictionary here now")
            self._expect(
                there is None or there == weights,
                f"{path}: {name!r} was compared as {weights}, and is {there} now: analyse again",
            )
        recorded = record.get("sha256")
        older = () if recorded else analysis_stage.own_files(folder)
        self._list(folder, [analysis_stage.MANIFEST])
        unhashed = self._hashes(path, [str(p.relative_to(folder)) for p in older], recorded)
        # What an analysis goes on from another time, each kind in a folder of its own.
        kept = {there for there in folder.iterdir() if there.is_dir()} - {folder / columns.FOLDER}
        self.listed |= kept
        self.unlisted |= kept
        later = sorted(self.weights.keys() - compared.keys())
        more = f"; {len(later)} more are there, {later[0]} first" if later else ""
        return f"of {len(compared)} dictionaries{more}{unhashed}"

    # --- files ------------------------------------------------------------------------------------

    def _sealed(self, path: Path, record: Mapping[str, Any]) -> None:
        """See that a record is the one that was written."""
        if not files.is_sealed(record):
            self._changed(path, path)

    def _changed(self, path: Path, manifest: Path, what: str = CHANGED) -> None:
        self._fault(f"{path} {what}: delete {manifest} and make it again")

    def _hashes(
        self, manifest: Path, names: Iterable[str], recorded: dict[str, str] | None,
        compared: Iterable[str] = (),
    ) -> str:  # fmt: skip
        """Compare files beside a manifest with the SHA-256 that it lists, but those `compared`.

        Returns a note on those of `names` without one: folders that an earlier version made have
        no hashes, or fewer.
        """
        folder, recorded = manifest.parent, recorded or {}
        there = {name for name in {*names, *recorded} if (folder / name).exists()}
        self._list(folder, [*names, *recorded])
        for name, hashed in sorted(recorded.items()):
            if name not in there:
                self._changed(folder / name, manifest, "is missing")
            elif name not in compared and files.sha256_file(folder / name) != hashed:
                self._changed(folder / name, manifest)
        unhashed = sorted({*names} & there - recorded.keys())
        return f" (no hash recorded, not checked: {', '.join(unhashed)})" if unhashed else ""

    def _checkpoints(self, folder: Path) -> None:
        """Read whatever checkpoint is there."""
        for name in (lm_folder.CHECKPOINT, Path(sae_folder.CHECKPOINT)):
            if (path := folder / name).exists():
                self._list(folder, [str(name)])
                self._attempt(path, partial(tensor_files.read_checkpoint, path))

    def _list(self, folder: Path, names: Iterable[str]) -> None:
        """Note that a record lists these files of `folder`."""
        paths = [folder / name for name in names]
        self.listed.update(paths, (path.parent for path in paths), folder.parents)

    def _strays(self) -> None:
        """Name half files, links out of the study, and what no record lists."""
        root = self.folder.resolve()
        unlisted = {*map(str, self.unlisted)}
        listed = {*map(str, self.listed), *(str(self.folder / name) for name in STAGES)} - unlisted
        for at, folders, names in os.walk(self.folder):
            for name in sorted([*folders, *names]):
                path = f"{at}/{name}"
                if name.startswith(".") and name.endswith(".tmp"):
                    self._fault(f"{path} is half a file that a killed process left: delete it")
                elif leads_out(path, root):
                    self._fault(f"{path} leads out of the study, to {Path(path).resolve()}")
                elif not (path in listed or path in unlisted or re.fullmatch(ANYWHERE, name)):
                    self._fault(f"{path} does not belong there")
            folders[:] = [name for name in folders if f"{at}/{name}" in listed]


def leads_out(path: str, root: Path) -> bool:
    """Whether a path is a link to what is not in `root`."""
    link = os.path.islink(path)  # noqa: PTH114  a `Path` of each file would double the time
    return link and not Path(path).resolve().is_relative_to(root)


def same_rows(one: Path, other: Path) -> str:
    """Say that row i of two harvests is of the same token of the same text, for every i.

    Raises:
        UserError: it is not, or they are not harvests of ours.
    """
    a, b = (store.Activations.open(study / "activations") for study in (one, other))
    refuse_other_tokens(a, b)
    return f"{a.folder} and {b.folder}: the same {a.rows:,} tokens, row for row"


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was made from what, and every fault; 1 if there is one."""
    parser = argparse.ArgumentParser("python -m sparse_dict.verify", description="check studies")
    parser.add_argument(
        "study", type=Path, nargs="+", help="a study's folder, such as outputs/demo"
    )
    folders: list[Path] = parser.parse_args(argv).study
    lines: list[str] = []
    faults: list[str] = []
    for folder in folders:
        if not folder.is_dir():
            parser.error(f"{folder} is not a folder")
        found = Verification(folder)
        found.run()
        lines += [*([f"{folder}"] if len(folders) > 1 else []), *found.lines, ""]
        faults += found.faults
    for folder in folders[1:]:
        try:
            lines += [same_rows(folders[0], folder), ""]
        except UserError as error:
            faults.append(str(error))
    verdict = f"{len(faults)} faults" if len(faults) != 1 else "1 fault"
    lines += [*(f"FAULT {fault}" for fault in faults), verdict]
    sys.stdout.write("\n".join(map(printable, [*lines, ""])))
    return 1 if faults else 0


if __name__ == "__main__":
    ending(main)
