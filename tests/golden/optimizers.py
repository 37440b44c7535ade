#!/usr/bin/env python3
"""Writes optimizers.hpp, beside this script: what PyTorch's optimizers make of fixed gradients, in double.

Run once with a Python that has torch; the tests need only the header. Versions stand in the header's first lines.
"""
import pathlib
import platform

import torch

STEPS = 6
VALUES = [0.5, -1.25, 0.0, 2.0, -0.03125, 7.0]

ADAMW = {
    "plain": {},
    "decayed": {"lr": 0.02, "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-6},
    "undecayed": {"lr": 0.1, "weight_decay": 0.0},
}
SGD = {
    "plain": {"lr": 0.1},
    "momentum": {"lr": 0.1, "momentum": 0.9},
    "dampened": {"lr": 0.1, "momentum": 0.9, "dampening": 0.25},
    "nesterov": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "decayed": {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.1},
    "decayed_nesterov": {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.1, "nesterov": True},
}


def gradients():
    torch.manual_seed(7)
    rows = torch.randn(STEPS, len(VALUES), dtype=torch.float64)
    rows[2, 3] = 0
    rows[:, 5] *= 1e-6
    return rows


def train(optimizer, options):
    value = torch.nn.Parameter(torch.tensor(VALUES, dtype=torch.float64))
    rule = optimizer([value], **options)
    for row in gradients():
        value.grad = row.clone()
        rule.step()
    return value.detach()


def clipped(max_norm):
    parts = [torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(3)]
    for part, grad in zip(parts, gradients()[0].reshape(3, 2)):
        part.grad = grad.clone()
    norm = torch.nn.utils.clip_grad_norm_(parts, max_norm)
    return norm.reshape(1), torch.cat([part.grad for part in parts])


def array(name, values):
    rows = ",\n    ".join(", ".join(float(x).hex() for x in row) for row in values.reshape(-1, len(VALUES)))
    return f"inline constexpr double {name}[] = {{\n    {rows}}};\n"


def main():
    lines = [
        "#pragma once",
        "// Written by optimizers.py with "
        f"torch {torch.__version__} and Python {platform.python_version()} on {platform.machine()}; not to be edited.",
        "// clang-format off",
        "",
        "namespace deltaw_tests::golden {",
        "",
        f"inline constexpr long steps = {STEPS};",
        array("values", torch.tensor(VALUES)),
        array("gradients", gradients()),
    ]
    lines += [array(f"adamw_{name}", train(torch.optim.AdamW, options)) for name, options in ADAMW.items()]
    lines += [array(f"sgd_{name}", train(torch.optim.SGD, options)) for name, options in SGD.items()]
    for name, max_norm in {"tight": 0.5, "loose": 100.0}.items():
        norm, grads = clipped(max_norm)
        lines.append(f"inline constexpr double norm_{name} = {float(norm).hex()};")
        lines.append(array(f"clipped_{name}", grads))
    lines.append("}  // namespace deltaw_tests::golden\n")
    pathlib.Path(__file__).with_name("optimizers.hpp").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
