"""Train the post's transformer on two CPU cores: this project against nanoGPT's own recipe.

    python benchmarks/lm_cpu.py                                 # docstrings, GPT-2's vocabulary
    python benchmarks/lm_cpu.py --text '../texts/*.parquet'     # any data.files
    python benchmarks/lm_cpu.py --parts                         # what each compiled loop gains

Two questions, asked with the same tokens, the same validation windows, and every contestant in a
process of its own, one at a time: (a) tokens/s of the training loop alone, in turn for several
rounds, medians; (b) tokens and seconds to the same validation loss: the peer is trained on
--tokens tokens, ours (train_lm.py experiment=paper, its schedule fixed beforehand) on --share of
that, and what counts is whether ours ends at or below the peer's last loss.

The peer is nanoGPT as its repository publishes it (6 layers of 32, 4 heads, contexts of 256), in
plain PyTorch: fp32, no compilation (what it advises on a CPU), all logits of a vocabulary padded
to 50,304 and F.cross_entropy, AdamW 6e-4 (betas .9, .95, decay .1 on matrices), gradients clipped
at 1, cosine to a tenth, 12 contexts a step and no accumulation, the kindest of its settings where
tokens are few; its 2,000 steps of warm-up become 2 % of the run. The result is a line of JSON
appended to --out.
"""

import argparse
import csv
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
KEEP_PAGES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
BATCH, N_CTX, VOCAB = 12, 256, 50_304
OUR_BATCH = 8  # contexts: of so few tokens more steps are made
EVAL_TOKENS = 50_000
POINTS = 12  # validation losses along a run
NO_COMPILER = {"CC": "false"}
CONTESTANTS = {  # environment
    "nanogpt": {},
    "nanogpt, pages kept": KEEP_PAGES,
    "ours, fp32": {},
    "ours, bf16": {},
    "ours, bf16, torch alone": NO_COMPILER,
}


def overrides(args: argparse.Namespace) -> list[str]:
    """What of the text the command line of ours says."""
    data = ["data=docstrings"]
    if args.text:
        data = ["data=files", f"data.files='{args.text}'"]
    return ["experiment=paper", *data, f"training.eval_tokens={EVAL_TOKENS}", "device=cpu",
            "tracking.mode=disabled", f"cache_dir='{args.cache_dir}'"]  # fmt: skip


def store(args: argparse.Namespace) -> Any:
    """The tokens that all contestants read, made if they are not there."""
    import hydra

    from sparse_dict.launch.jobs import typed
    from sparse_dict.text import tokenizer, tokens

    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = typed(hydra.compose("train_lm", overrides(args)))
    made = tokenizer.build(config.tokenizer, config.data, args.cache_dir)
    return tokens.prepare(config.data, made, args.cache_dir)


def nanogpt() -> Any:
    """The peer's model, written from its description."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(32, bias=False), nn.LayerNorm(32, bias=False)
            self.attn = nn.Linear(32, 96, bias=False)
            self.attn_proj = nn.Linear(32, 32, bias=False)
            self.fc = nn.Linear(32, 128, bias=False)
            self.proj = nn.Linear(128, 32, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            b, t, d = x.shape
            q, k, v = (
                y.view(b, t, 4, 8).transpose(1, 2) for y in self.attn(self.ln_1(x)).split(d, 2)
            )
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.attn_proj(y.transpose(1, 2).contiguous().view(b, t, d))
            return x + self.proj(F.gelu(self.fc(self.ln_2(x))))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(VOCAB, 32), nn.Embedding(N_CTX, 32)
            self.blocks = nn.Sequential(*(Block() for _ in range(6)))
            self.ln_f = nn.LayerNorm(32, bias=False)
            for name, p in self.named_parameters():
                if p.ndim == 2:
                    nn.init.normal_(p, std=0.02 / math.sqrt(12) if "proj" in name else 0.02)

        def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
            logits = self.ln_f(self.blocks(x)) @ self.wte.weight.T
            return F.cross_entropy(logits.view(-1, VOCAB), targets.reshape(-1))

    return Model()


def train_peer(args: argparse.Namespace) -> dict:
    """The peer's run in this process."""
    import numpy as np
    import torch

    from sparse_dict.lm.train import validation_windows

    tokens = store(args)
    train = tokens.split("train")
    windows = torch.from_numpy(
        validation_windows(tokens.split("validation"), N_CTX, EVAL_TOKENS if args.curve else N_CTX)
    )
    torch.manual_seed(0)
    model = nanogpt()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=6e-4, betas=(0.9, 0.95),
    )  # fmt: skip
    n_steps = math.ceil(args.tokens / (BATCH * N_CTX))
    warmup = round(0.02 * n_steps)
    rng = np.random.default_rng(0)
    seconds, history = 0.0, []
    for step in range(n_steps):
        start = time.perf_counter()
        share = min(1.0, (step - warmup) / max(1, n_steps - warmup))
        rate = 0.1 + 0.45 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = 6e-4 * ((step + 1) / (warmup + 1) if step < warmup else rate)
        at = rng.integers(len(train) - N_CTX - 1, size=BATCH)
        x = torch.from_numpy(np.stack([train.window(int(i), N_CTX + 1) for i in at]))
        model(x[:, :-1], x[:, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds += time.perf_counter() - start
        done = step + 1
        if done == n_steps or (args.curve and done % max(1, n_steps // POINTS) == 0):
            with torch.no_grad():
                parts = windows.split(BATCH)
                total = sum(float(model(w[:, :-1], w[:, 1:])) * len(w) for w in parts)
            history.append((done * BATCH * N_CTX, seconds, total / len(windows)))
    return {"tokens": n_steps * BATCH * N_CTX, "seconds": seconds, "history": history}


def alone(command: list[str], extra: dict[str, str]) -> str:
    """What a process of its own prints, with the allocator's settings of `extra` only."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run(command, env=plain | extra, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"failed: {' '.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout


def run_peer(args: argparse.Namespace, tokens: int, extra: dict[str, str], curve: bool) -> dict:
    """The peer in a process of its own."""
    command = [sys.executable, __file__, "--peer", "--tokens", str(tokens), "--cache-dir",
               str(args.cache_dir), *(["--text", args.text] if args.text else []),
               *(["--curve"] if curve else [])]  # fmt: skip
    return json.loads(alone(command, extra).splitlines()[-1])


def run_ours(
    args: argparse.Namespace, tokens: int, precision: str, extra: dict[str, str], curve: bool
) -> dict:
    """The product's command line, which sets its allocator itself."""
    with tempfile.TemporaryDirectory() as folder:
        every = max(1, tokens // (POINTS * OUR_BATCH * N_CTX)) if curve else 10**9
        command = [sys.executable, str(ROOT / "train_lm.py"), *overrides(args),
                   f"lm_dir='{folder}/lm'", f"training.n_tokens={tokens}",
                   f"training.precision={precision}", f"training.eval_every={every}",
                   f"training.batch_size={OUR_BATCH}",
                   f"training.checkpoint_every={10**9}"]  # fmt: skip
        alone(command, extra)
        record = json.loads((Path(folder) / "lm/lm.json").read_text())
        with (Path(folder) / "lm/history.csv").open() as file:
            rows = list(csv.DictReader(file))
    rate = record["tokens_per_second"]
    history = [(int(r["tokens"]), int(r["tokens"]) / rate, float(r["val_loss"])) for r in rows]
    return {"tokens": record["tokens"], "seconds": record["seconds"], "history": history,
            "optimizer": record["config"]["optimizer"],
            "batch_size": record["config"]["training"]["batch_size"]}  # fmt: skip


def speed(args: argparse.Namespace) -> dict[str, list[float]]:
    """Tokens/s of each contestant in each round."""
    found: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for round_ in range(args.rounds):
        for name, extra in CONTESTANTS.items():
            if name.startswith("ours"):
                precision = "fp32" if "fp32" in name else "bf16"
                done = run_ours(args, 4 * args.speed_tokens, precision, extra, curve=False)
            else:
                done = run_peer(args, args.speed_tokens, extra, curve=False)
            found[name].append(done["tokens"] / done["seconds"])
            print(f"round {round_ + 1} {name}: {found[name][-1]:,.0f} tokens/s", flush=True)
    return found


def to_equal_loss(args: argparse.Namespace) -> dict:
    """The peer's run, ours on a share of its tokens, and where ours passes the peer's last loss."""
    peer = run_peer(args, args.tokens, KEEP_PAGES, curve=True)
    goal = peer["history"][-1][2]
    print(f"nanogpt: {peer['tokens']:,} tokens, {peer['seconds']:.0f} s, loss {goal:.3f}")
    ours = run_ours(args, round(args.tokens * args.share), "bf16", {}, curve=True)
    last = ours["history"][-1][2]
    print(f"ours: {ours['tokens']:,} tokens, {ours['seconds']:.0f} s, loss {last:.3f}")
    passed = next((point for point in ours["history"] if point[2] <= goal), None)
    result = {"peer": peer, "ours": ours, "goal": goal, "reached": last <= goal, "passed": passed}
    if passed:
        print(f"ours is at {passed[2]:.3f} after {passed[0]:,} tokens and {passed[1]:.0f} s: "
              f"{peer['tokens'] / passed[0]:.1f} times fewer tokens, "
              f"{peer['seconds'] / passed[1]:.1f} times faster (pages kept)")  # fmt: skip
    else:
        print("ours does not reach it")
    return result


def parts() -> dict[str, dict[str, float]]:
    """Milliseconds of each piece, forward and backward, for 4,096 tokens: compiled and by torch."""
    import torch

    from sparse_dict.lm import attention, loss
    from sparse_dict.lm.loss import linear_cross_entropy
    from sparse_dict.machine import runtime

    runtime.allocator()
    torch.manual_seed(0)
    hidden = torch.randn(4096, 32, requires_grad=True)
    weight = (torch.randn(50_257, 32) / 10).requires_grad_()
    targets = torch.randint(50_257, (4096,))
    qkv = torch.randn(16, N_CTX, 3, 4, 8, requires_grad=True)
    pieces = {
        "loss, fp32": lambda: linear_cross_entropy(hidden, weight, targets),
        "loss, bf16": lambda: linear_cross_entropy(hidden, weight, targets, bf16=True),
        "attention of a layer": lambda: attention.causal(qkv).sum(),
    }

    def milliseconds(piece: Callable[[], torch.Tensor]) -> float:
        times = []
        for _ in range(7):
            start = time.perf_counter()
            piece().backward()
            times.append(time.perf_counter() - start)
        return 1e3 * statistics.median(times[1:])

    found = {name: {"compiled": milliseconds(piece)} for name, piece in pieces.items()}
    loss.load = attention._kernel = lambda *_: None
    for name, piece in pieces.items():
        found[name]["torch"] = milliseconds(piece)
        compiled, by_torch = found[name].values()
        print(f"{name:<22}{by_torch:>9.1f} ms by torch {compiled:>9.1f} ms compiled")
    return found


def machine() -> str:
    """The processor's name and the number of cores."""
    try:
        names = [s for s in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in s]
        return f"{names[0].split(': ')[1]}, {len(names)} cores"
    except (OSError, IndexError):
        return platform.processor()


def main() -> None:
    """Parse the command line and run what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", help="a path or glob for data.files; without it docstrings")
    parser.add_argument("--tokens", type=int, default=2_000_000, help="of the peer's run in (b)")
    parser.add_argument("--share", type=float, default=1 / 3, help="of them that ours gets")
    parser.add_argument("--speed-tokens", type=int, default=49_152, help="of the peer in (a)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache-dir", type=Path, default=ROOT / "outputs/.cache")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/lm_cpu.jsonl")
    parser.add_argument("--parts", action="store_true", help="time the compiled loops alone")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--curve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        print(json.dumps(train_peer(args)))
        return
    import torch

    settings = {key: getattr(args, key) for key in ("tokens", "share", "speed_tokens", "rounds")}
    settings["text"] = Path(args.text).name if args.text else "docstrings"
    result = {
        "settings": settings, "machine": machine(),
        "python": platform.python_version(), "torch": torch.__version__,
    }  # fmt: skip
    if args.parts:
        result["parts"] = parts()
    else:
        store(args)  # nobody has to wait for it later
        rates = speed(args) if args.rounds else {}
        medians = {name: statistics.median(values) for name, values in rates.items()}
        for name, rate in medians.items():
            print(f"{name:<24}{rate:>9,.0f} tokens/s {rate / medians['nanogpt']:>7.2f} x plain")
        result |= {"tokens_per_second": rates, "medians": medians}
        if args.tokens:
            result["equal_loss"] = to_equal_loss(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a") as file:
        file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
