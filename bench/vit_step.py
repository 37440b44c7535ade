#!/usr/bin/python3
"""One training step of the example's Vision Transformer against the same step in PyTorch.

    cmake --preset release && cmake --build --preset release --target finetune
    bench/vit_step.py [--rounds 7] [--steps 30] [--threads 1 2] [--out build/bench]

Debian's python3-torch (1.13, eager) with its OpenMP OpenBLAS; batches of 64 images, LoRA of rank 4 on every linear layer
with the head trained, and full fine-tuning; forward, cross entropy, backward, clipping to norm 1 and AdamW. Rounds of both
programs alternate in random order; a ratio is ours / PyTorch's from the medians of one round, reported as the median over
the rounds. Both run the same OpenBLAS kernels: the name of the core is asked of both, and a difference is an error.
`--cpu` compares the processor time of a step instead of wall time, for machines that others use too (one thread only).
"""
import argparse
import ctypes
import json
import os
import random
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time

OPENBLAS = "/usr/lib/x86_64-linux-gnu/openblas-openmp"
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
METHODS = ("lora", "full")


def torch_model(lora):
    import torch
    import torch.nn.functional as F

    width, heads, blocks, tokens = 96, 4, 4, 49

    class Linear(torch.nn.Linear):
        """As PEFT's LoRA layer computes it: the result plus B(A x) times the scale."""

        def __init__(self, inputs, outputs):
            super().__init__(inputs, outputs)
            if lora:
                self.weight.requires_grad_(False)
                self.bias.requires_grad_(False)
                self.a = torch.nn.Parameter(torch.randn(4, inputs) / inputs**0.5)
                self.b = torch.nn.Parameter(torch.zeros(outputs, 4))

        def forward(self, x):
            y = F.linear(x, self.weight, self.bias)
            return y + F.linear(F.linear(x, self.a), self.b) * 4.0 if lora else y

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
            self.query, self.key, self.value, self.output = (Linear(width, width) for _ in range(4))
            self.fc1, self.fc2 = Linear(width, 4 * width), Linear(4 * width, width)

        def forward(self, x):
            images = x.shape[0]
            y = self.norm1(x)
            q, k, v = (f(y).view(images, tokens, heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
            p = torch.softmax(q @ k.transpose(-1, -2) * (width // heads) ** -0.5, -1)
            x = x + self.output((p @ v).transpose(1, 2).reshape(images, tokens, width))
            return x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))

    class Vit(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.patch_embed = Linear(16, width)
            self.position = torch.nn.Parameter(torch.randn(tokens, width) * 0.02, requires_grad=not lora)
            self.blocks = torch.nn.Sequential(*(Block() for _ in range(blocks)))
            self.norm = torch.nn.LayerNorm(width)
            self.head = torch.nn.Linear(width, 10)
            if lora:
                for module in self.modules():
                    if isinstance(module, torch.nn.LayerNorm):
                        module.requires_grad_(False)

        def forward(self, x):
            return self.head(self.norm(self.blocks(self.patch_embed(x) + self.position)).mean(1))

    return Vit()


def torch_child(method, threads, steps):
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = torch_model(method == "lora")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    x, labels = torch.randn(64, 49, 16), torch.randint(0, 10, (64,))
    wall, cpu = [], []
    for _ in range(steps + 5):
        start, start_cpu = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    library = ctypes.CDLL("libopenblas.so.0")
    library.openblas_get_corename.restype = ctypes.c_char_p
    print(json.dumps({"seconds": statistics.median(wall[5:]), "cpu": statistics.median(cpu[5:]),
                      "core": library.openblas_get_corename().decode(), "parameters": sum(p.numel() for p in trained)}))


def run_torch(method, threads, steps):
    env = dict(os.environ, LD_LIBRARY_PATH=OPENBLAS, OMP_NUM_THREADS=str(threads))
    command = [sys.executable, os.path.abspath(__file__), "--torch", method, "--threads", str(threads), "--steps", str(steps)]
    return json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout)


def run_ours(program, method, threads, steps):
    """Medians that finetune reports; its processor time a step from the difference of a long and a short run."""

    def once(count, folder):
        env = dict(os.environ, OMP_NUM_THREADS=str(threads))
        result = os.path.join(folder, "result.json")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([program, "--method", method, "--steps", str(count), "--threads", str(threads), "--quiet", "--out", folder,
                        "--json", result, "--test-images", "0"], env=env, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        with open(result) as file:
            row = json.load(file)
        return row, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    with tempfile.TemporaryDirectory() as folder:
        row, long_cpu = once(steps + 5, folder)
        _, short_cpu = once(5, folder)
        with open(os.path.join(folder, "state.safetensors"), "rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    core = json.loads(header["__metadata__"]["deltaw_state"])["environment"]["core"]
    return {"seconds": row["seconds_per_step"], "cpu": (long_cpu - short_cpu) / steps, "core": core,
            "parameters": row["trainable_parameters"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=os.path.join(ROOT, "build/release/bin/finetune"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--out", default=os.path.join(ROOT, "build/bench"))
    parser.add_argument("--torch", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.torch:
        return torch_child(options.torch, options.threads[0], options.steps)
    clock = "cpu" if options.cpu else "seconds"
    rows = []
    for threads in options.threads:
        for method in METHODS:
            ours, theirs = [], []
            for _ in range(options.rounds):
                turns = [lambda: ours.append(run_ours(options.program, method, threads, options.steps)),
                         lambda: theirs.append(run_torch(method, threads, options.steps))]
                random.shuffle(turns)
                for turn in turns:
                    turn()
            if {r["core"] for r in ours} != {r["core"] for r in theirs}:
                sys.exit(f"the two use other kernels of OpenBLAS: {ours[0]['core']} and {theirs[0]['core']}")
            if ours[0]["parameters"] != theirs[0]["parameters"]:
                sys.exit(f"the two train other parameters: {ours[0]['parameters']} and {theirs[0]['parameters']}")
            ratios = sorted(a[clock] / b[clock] for a, b in zip(ours, theirs))
            row = {"method": method, "threads": threads, "clock": "processor" if options.cpu else "wall",
                   "core": ours[0]["core"], "rounds": options.rounds,
                   "ms": 1e3 * statistics.median(r[clock] for r in ours),
                   "torch_ms": 1e3 * statistics.median(r[clock] for r in theirs),
                   "ratio": statistics.median(ratios), "ratio_low": ratios[0], "ratio_high": ratios[-1]}
            rows.append(row)
            print("{method:5} {threads} thread(s)  ours {ms:6.1f} ms  PyTorch {torch_ms:6.1f} ms  ratio {ratio:.2f} "
                  "({ratio_low:.2f} to {ratio_high:.2f}), {clock} time, {core}".format(**row), flush=True)
    os.makedirs(options.out, exist_ok=True)
    with open(os.path.join(options.out, "vit_step.json"), "w") as file:
        json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
