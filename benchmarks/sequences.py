"""What a step of `GPTLanguageModel` costs, what its data cost, and what the cache saves.

The step is compared with the same net in a bare torch loop, and with a compact GPT that is written
here in the way of nanoGPT (Karpathy 2022): 4 blocks of width 128, 4 heads, blocks of 128
characters, batches of 8, AdamW, one thread. All take turns in one process. Times are CPU time of
the process, because other programs may run beside it.

Run: python benchmarks/sequences.py
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlblocks._quiet import quiet
from dlblocks.data import TextDataModule
from dlblocks.models import GPTLanguageModel

STEPS, TURNS = 20, 5
WIDTH, DEPTH, HEADS, CONTEXT, BATCH = 128, 4, 4, 128, 8
NEW_TOKENS = 256


class NanoBlock(nn.Module):
    """One block, in the way of nanoGPT."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.c_fc, self.c_out = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.c_attn(self.ln_1(x)).split(c, dim=2)
        q, k, v = (part.view(b, t, HEADS, c // HEADS).transpose(1, 2) for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))
        found: Tensor = x + self.c_out(F.gelu(self.c_fc(self.ln_2(x))))
        return found


class NanoGPT(nn.Module):
    """A compact GPT with learned positions and tied weights."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab_size, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(NanoBlock() for _ in range(DEPTH)))
        self.ln_f = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        return F.linear(self.ln_f(self.blocks(x)), self.wte.weight)


class Clock(pl.Callback):
    """CPU time from the start of the first step to the end of the last."""

    seconds = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
        if args[-1] == 0:
            self.seconds = -time.process_time()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds += time.process_time()


def make_model(size: int) -> GPTLanguageModel:
    return GPTLanguageModel(
        size, width=WIDTH, depth=DEPTH, num_heads=HEADS, context=CONTEXT, positions="learned",
        optimizer="adamw", lr=1e-3,
    )  # fmt: skip


def under_trainer(data: TextDataModule) -> float:
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
    )
    trainer.fit(make_model(data.vocab_size), data)
    return clock.seconds / STEPS


def bare(net: nn.Module, batches: list[Any]) -> float:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    start = time.process_time()
    for inputs, targets in batches:
        optimizer.zero_grad()
        logits = net(inputs)
        F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1).backward()
        optimizer.step()
    return (time.process_time() - start) / len(batches)


def loading(data: TextDataModule) -> float:
    start, count = time.process_time(), 0
    for count, _ in enumerate(data.train_dataloader(), 1):
        if count == 10 * STEPS:
            break
    return (time.process_time() - start) / count


def generating(model: GPTLanguageModel, use_cache: bool) -> float:
    start = time.process_time()
    model.generate([[1, 2, 3]], NEW_TOKENS, seed=0, use_cache=use_cache)
    return time.process_time() - start


def main() -> None:
    """Prints milliseconds, and the ratios of each turn."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    data = TextDataModule(block_size=CONTEXT, batch_size=BATCH)
    data.setup()
    size = data.vocab_size
    batches = [batch for _, batch in zip(range(STEPS), data.train_dataloader(), strict=False)]
    writer = GPTLanguageModel(
        size, width=WIDTH, depth=DEPTH, num_heads=HEADS, context=2 * CONTEXT + 4
    )
    runs: dict[str, Callable[[], float]] = {
        "ours": lambda: under_trainer(data),
        "bare loop": lambda: bare(make_model(size).net, batches),
        "nanoGPT": lambda: bare(NanoGPT(size), batches),
        "data": lambda: loading(data),
        f"{NEW_TOKENS} tokens, cache": lambda: generating(writer, True),
        f"{NEW_TOKENS} tokens, no cache": lambda: generating(writer, False),
    }
    turns: dict[str, list[float]] = {name: [] for name in runs}
    with quiet():
        for turn in range(TURNS + 1):
            for name, run in runs.items():
                seconds = run()
                if turn:  # the first warms up
                    turns[name].append(seconds)
    print(f"torch {torch.__version__}, lightning {pl.__version__}, {TURNS} turns of {STEPS} steps")
    print(f"{'':<28}{'median':>9}{'min':>9}{'max':>9}")
    for name, values in turns.items():
        show(f"{name} (ms)", [1e3 * value for value in values])
    cached, full = f"{NEW_TOKENS} tokens, cache", f"{NEW_TOKENS} tokens, no cache"
    for above, below in (
        ("ours", "bare loop"), ("ours", "nanoGPT"), ("bare loop", "nanoGPT"), ("data", "ours"),
        (full, cached),
    ):  # fmt: skip
        pairs = zip(turns[above], turns[below], strict=True)
        show(f"{above} / {below}"[-28:], [a / b for a, b in pairs])


def show(name: str, values: list[float]) -> None:
    shown = [statistics.median(values), min(values), max(values)]
    print(f"{name:<28}" + "".join(f"{value:9.3f}" for value in shown))


if __name__ == "__main__":
    main()
