"""GPT-2 124M training steps by PyTorch, to be compared with ours: tied output layer, AdamW, random
tokens; the fastest of fused and foreach AdamW, eager and compiled. On the CPU in fp32: answers
lines on stdin as bench_train --serve does: "step" with milliseconds, "gemm" with the GFLOP/s of
torch.mm. With --device cuda: steps that follow each other without waiting, timed by CUDA events;
--dtype bf16 computes by autocast and keeps fp32 parameters. May not know what it is compared
with."""
import argparse
import signal
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

LAYERS, WIDTH, HEADS, VOCAB, POSITIONS = 12, 768, 12, 50257, 1024
TRIAL_STEPS, GROUPS = 3, 5
CUDA_VOCAB = 50304  # padded: what GPUs like


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1 = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.ln2 = nn.LayerNorm(WIDTH)
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)

    def attention(self, x):
        B, T, C = x.shape
        parts = self.qkv(x).split(C, dim=2)
        q, k, v = (y.view(B, T, HEADS, C // HEADS).transpose(1, 2) for y in parts)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(out.transpose(1, 2).reshape(B, T, C))

    def forward(self, x):
        x = x + self.attention(self.ln1(x))
        return x + self.fc2(F.gelu(self.fc1(self.ln2(x)), approximate="tanh"))


class Gpt2(nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.vocab = vocab
        self.wte = nn.Embedding(vocab, WIDTH)
        self.wpe = nn.Embedding(POSITIONS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.lnf = nn.LayerNorm(WIDTH)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.lnf(x), self.wte.weight)
        return F.cross_entropy(logits.view(-1, self.vocab), targets.view(-1))


class Trainer:
    def __init__(self, args):
        torch.manual_seed(1)
        self.device, self.bf16 = args.device, args.dtype == "bf16"
        self.cuda = self.device == "cuda"
        self.model = Gpt2(CUDA_VOCAB if self.cuda else VOCAB).to(args.device)
        self.run = self.model
        tokens = torch.randint(VOCAB, (2, args.batch, args.seq_len)).to(args.device)
        self.tokens, self.targets = tokens.unbind()
        self.choose_optimizer("fused")

    def choose_optimizer(self, kind):
        self.optimizer = None  # the old moments go before the new ones come
        decay = [p for p in self.model.parameters() if p.dim() == 2]
        rest = [p for p in self.model.parameters() if p.dim() != 2]
        groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), **{kind: True})

    def begin_step(self):
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.run(self.tokens, self.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def step(self):
        """Milliseconds."""
        start = time.perf_counter()
        self.begin_step()
        if self.cuda:
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start)

    def trial(self):
        self.step()
        return min(self.step() for _ in range(TRIAL_STEPS))


def fastest_optimizer(trainer):
    ms = {}
    for kind in ("foreach", "fused"):
        trainer.choose_optimizer(kind)
        ms[kind] = trainer.trial()
    best = min(ms, key=ms.get)
    trainer.choose_optimizer(best)
    return f"{best} AdamW", ms[best]


def try_compiled(trainer, eager_ms, limit):
    """Keeps the compiled model where it is ready within the limit (seconds) and faster."""
    def too_late(signum, frame):
        raise TimeoutError(f"not compiled within {limit} s")

    signal.signal(signal.SIGALRM, too_late)
    try:
        trainer.run = torch.compile(trainer.model)
        signal.alarm(limit)
        trainer.step()
        signal.alarm(0)
        compiled, ms = trainer.run, 1e30
        for _ in range(TRIAL_STEPS):  # in turn, so that what disturbs one disturbs both
            trainer.run = compiled
            ms = min(ms, trainer.step())
            trainer.run = trainer.model
            eager_ms = min(eager_ms, trainer.step())
        if ms < eager_ms:
            trainer.run = compiled
            return f"compiled (eager: {eager_ms:.0f} ms, compiled: {ms:.0f} ms)"
        note = f"eager (compiled: {ms:.0f} ms, eager: {eager_ms:.0f} ms)"
    except Exception as error:  # whatever the compiler of this machine lacks
        signal.alarm(0)
        note = f"eager (torch.compile: {type(error).__name__})"
    trainer.run = trainer.model
    return note


def steady_step(trainer, steps):
    """Milliseconds a step, of so many that are handed over one after the other."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(steps):
        trainer.begin_step()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / steps


def gemm_gflops(side=1024, seconds=0.3):
    """The best of what fits into the time, as bench_train measures its own."""
    a, b = torch.randn(2, side, side).unbind()
    out = torch.empty(side, side)
    best, start = 1e30, time.perf_counter()
    while time.perf_counter() - start < seconds:
        before = time.perf_counter()
        torch.mm(a, b.t(), out=out)
        best = min(best, time.perf_counter() - before)
    return 2e-9 * side**3 / best


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=int, default=20, help="cuda only: of each of 5 groups")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--compile-seconds", type=int, default=60,
                        help="give up on torch.compile after; 0: do not try")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    if args.device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    trainer = Trainer(args)
    optimizer, eager_ms = fastest_optimizer(trainer)
    mode = "eager"
    if args.compile_seconds:
        mode = try_compiled(trainer, eager_ms, args.compile_seconds)
    if trainer.cuda:
        steady_step(trainer, 3)
        ms = sorted(steady_step(trainer, args.steps) for _ in range(GROUPS))[GROUPS // 2]
        print(f"PyTorch: step, median of {GROUPS} x {args.steps}: {ms:.3f} ms, "
              f"{1e3 * args.batch * args.seq_len / ms:.1f} tokens/s "
              f"({torch.__version__}, {args.dtype}, {mode}, {optimizer}, "
              f"{torch.cuda.get_device_name()})")
        return
    print(f"ready PyTorch {torch.__version__}, {mode}, {optimizer}, "
          f"{torch.get_num_threads()} threads", flush=True)
    for line in sys.stdin:
        if line.strip() == "step":
            print(f"{trainer.step():.3f} ms", flush=True)
        elif line.strip() == "gemm":
            print(f"{gemm_gflops():.2f} GFLOP/s", flush=True)
        else:
            sys.exit(f"{line!r} on stdin: step and gemm are known")


if __name__ == "__main__":
    main()
