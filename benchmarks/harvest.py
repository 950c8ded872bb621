"""Harvest activations: the whole of it against bare forward passes to the same layer.

    python benchmarks/harvest.py                                  # the post's model on this machine
    python benchmarks/harvest.py --d-model 256 --d-mlp 1024       # a larger one
    python benchmarks/harvest.py --hf bfloat16 --d-model 576 --d-mlp 1536 --layer 4 --batch 8 \
        --rows 100_000                                            # a Llama by transformers

`bare` calls `model.read` on the batches and drops what it gives, or with --hf runs transformers'
own model, cut behind the layer that is read; `harvest` is what harvest.py does
from the first batch to the manifest: reading tokens, the same passes, shuffling, float16 shards,
their hashes, fsync. Each in a process of its own, one at a time, in turn. Made from random words
and initial weights, on which the speed does not depend. The result is appended to --out.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TEXT = ["data=files", "data.val_fraction=0.01", "tracking.mode=disabled"]


def config(script: str, folder: Path, *overrides: str) -> Any:
    """A script's config, all of whose files lie in `folder`."""
    from hydra import compose, initialize_config_dir

    from sparse_dict.launch.jobs import typed

    where = [f"study_dir={folder}", f"cache_dir={folder}/cache", f"data.files={folder}/text.jsonl"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return typed(compose(script, [*TEXT, *where, *overrides]))


def prepare(folder: Path, args: argparse.Namespace) -> None:
    """A text of more than `args.rows` tokens and a language model of one step."""
    import numpy as np

    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), size=n)) for n in rng.integers(3, 9, size=500)]
    with (folder / "text.jsonl").open("w") as file:
        for i in range(args.rows // 400):
            file.write(json.dumps({"text": f"{i} {' '.join(rng.choice(words, size=500))}"}) + "\n")
    if args.hf:
        return prepare_llama(folder / "hf", args)
    from sparse_dict.lm import stage

    sizes = [f"model.{key}={getattr(args, key)}" for key in ("d_model", "d_mlp", "n_ctx")]
    lm = config(
        "train_lm", folder, *sizes, "tokenizer.vocab_size=2048", "tokenizer.train_chars=300_000",
        "training.n_tokens=1", "training.batch_size=1", "training.eval_tokens=1000",
    )  # fmt: skip
    stage.run(lm)


def prepare_llama(folder: Path, args: argparse.Namespace) -> None:
    """A Llama with initial weights, one layer more than are read, and a token for each byte."""
    import transformers  # noqa: TID251
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<eos>": 0} | {x: i for i, x in enumerate(letters, 1)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    fast.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=257, hidden_size=args.d_model, intermediate_size=args.d_mlp,
        num_hidden_layers=args.layer + 2, num_attention_heads=args.d_model // 64,
        max_position_embeddings=args.n_ctx, eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def bare(lm: Any, harvest: Any) -> Any:
    """What runs the forward pass that is needed, and nothing else."""
    if not hasattr(lm.model, "model"):
        return lambda tokens: lm.model.read(tokens, harvest.places())
    llama = lm.model.model.model  # of our Model, of the causal model
    llama.layers = llama.layers[: harvest.layer + 1]
    return lambda tokens: llama(input_ids=tokens, use_cache=False)[0]


class Clock:
    """Seconds, and processor seconds of all threads, from its making on."""

    def __init__(self) -> None:
        self.begun = time.perf_counter(), time.process_time()

    def show(self, rows: int) -> None:
        """Print them and the number of rows, as JSON."""
        seconds, cpu = time.perf_counter() - self.begun[0], time.process_time() - self.begun[1]
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "rows": rows}))


def contest(name: str, folder: Path, overrides: list[str]) -> None:
    """Print what one contestant took, as JSON."""
    import numpy as np
    import torch

    from sparse_dict.activations import stage
    from sparse_dict.machine import runtime
    from sparse_dict.text import tokens

    settings = config("harvest", folder, *overrides)
    harvest = settings.harvest
    if name == "harvest":

        class Timed(stage.ShardWriter):
            def __init__(self, *args: Any) -> None:
                self.clock = Clock()
                super().__init__(*args)

            def finish(self, *args: Any) -> None:
                super().finish(*args)
                self.clock.show(self.rows)

        stage.ShardWriter = Timed  # type: ignore[misc]
        stage.run(settings)
    else:
        runtime.allocator()
        module, named = stage._lm(settings)
        lm = module.opened(named, runtime.device(settings.device))
        model, n_ctx = lm.model, lm.n_ctx
        stream = tokens.prepare(settings.data, lm.tokenizer, Path(settings.cache_dir)).split("all")
        n = min(harvest.n_tokens, len(stream)) // n_ctx
        contexts = torch.from_numpy(stream.window(0, n * n_ctx).astype(np.int64)).view(n, n_ctx)
        run_bare = bare(lm, harvest)
        clock = Clock()
        with torch.inference_mode():
            for batch in contexts.split(harvest.batch_size):
                found = run_bare(batch.to(model.device))
        if found[0].is_cuda:
            torch.cuda.synchronize()
        clock.show(n * n_ctx)


def run(name: str, folder: Path, overrides: list[str]) -> dict[str, float]:
    """One contestant in a process of its own."""
    command = [sys.executable, __file__, "--contestant", name, str(folder), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {**json.loads(done.stdout.splitlines()[-1]), "peak_mib_so_far": peak}


def main() -> None:
    """Parse the command line, measure and print."""
    if sys.argv[1:2] == ["--contestant"]:
        contest(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for key, value in (("d-model", 32), ("d-mlp", 128), ("n-ctx", 256), ("rows", 1_000_000)):
        parser.add_argument(f"--{key}", type=int, default=value)
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--hf", choices=["float32", "bfloat16"], help="a Llama, computed so")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/harvest.jsonl")
    args = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {"bare": [], "harvest": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, args)
        overrides = [
            f"harvest.layer={args.layer}", f"harvest.n_tokens={args.rows}", "harvest.split=all",
            f"harvest.batch_size={args.batch}", f"device={args.device}",
        ]  # fmt: skip
        if args.hf:
            overrides += ["lm=hf", f"lm.name_or_path={folder}/hf", f"lm.dtype={args.hf}"]
            overrides.append(f"lm.n_ctx={args.n_ctx}")
        for number in range(args.rounds):
            for contestant, all_runs in runs.items():
                own = f"activations_dir={folder}/activations-{number}"
                all_runs.append(run(contestant, folder, [*overrides, own]))
                rate = all_runs[-1]["rows"] / all_runs[-1]["seconds"]
                print(f"round {number + 1} {contestant}: {rate:,.0f} rows/s", flush=True)
    rates = {k: statistics.median(r["rows"] / r["seconds"] for r in v) for k, v in runs.items()}
    share, cpu_share = (
        statistics.median(
            bare[key] / harvest[key]
            for bare, harvest in zip(runs["bare"], runs["harvest"], strict=True)
        )
        for key in ("seconds", "cpu_seconds")
    )
    print(f"bare {rates['bare']:,.0f} rows/s, harvest {rates['harvest']:,.0f}: {share:.0%}, "
          f"by processor seconds {cpu_share:.0%}")  # fmt: skip
    result = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "task": {k: v for k, v in vars(args).items() if k != "out"},
        "rows_per_second": rates, "share": share, "cpu_share": cpu_share, "runs": runs,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a") as file:
        file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
