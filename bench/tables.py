#!/usr/bin/env python3
"""Prints the results in build/bench as Markdown; with --write, puts them between the marks of docs/benchmarks.md.

Run it on the machine that ran `make bench`, right after it: the processor and the date are read here and now.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results: written by bench/tables.py -->", "<!-- end of results -->"
SHAPES = [(512, 4096, 4096), (512, 1024, 1024), (128, 768, 3072)]
TARGETS = {  # must, then aim where it differs, at each of the shapes; as in bench/adapters.cpp
    "lora": ((1.03, 1.10, 1.08), (1.03, 1.07, 1.06)), "dora": ((1.07, 1.14, 1.20), (1.07, 1.13, 1.18)),
    "lora_xs": ((1.02, 1.05, 1.05),), "lora_sb": ((1.02, 1.05, 1.05),), "vera": ((1.03, 1.07, 1.06),),
    "nola": ((1.10, 1.25, 1.55),), "nola cached": ((1.05, 1.10, 1.20),), "randlora": ((3.6, 3.6, 2.45),),
    "randlora regenerated": ((3.8, 3.8, 2.8),), "randlora very sparse": ((2.0, 3.6, 2.45),)}


def read(folder, name):
    path = folder / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def table(header, rows):
    rule = ["---" if i == 0 else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [header, rule, *rows])


def target(row):
    """Must and aim at rank 16 with a BLAS; two threads may take 0.04 more."""
    if row["method"] not in TARGETS or row["rank"] != 16 or not row["core"]:
        return "", ""
    more = 0.04 * (row["threads"] > 1)
    at = SHAPES.index((row["tokens"], row["in_features"], row["out_features"]))
    must, aim = TARGETS[row["method"]][0][at], TARGETS[row["method"]][-1][at]
    return f"{must + more:.2f}", f"{aim + more:.2f}"


def size(count):
    return f"{count / 1024:.1f} KiB" if count < 1 << 20 else f"{count / 1048576:.1f} MiB"


def adapters(rows):
    header = ["tokens x in x out", "method", "rank", "threads", "products", "floor ms", "ms", "ratio", "95 % interval",
              "must", "aim", "extra memory", "GFLOP of its own"]
    return table(header, [[
        f"{r['tokens']} x {r['in_features']} x {r['out_features']}", r["method"], r["rank"] or "-", r["threads"],
        "OpenBLAS" if r["core"] else "Eigen", f"{r['floor_ms']:.2f}", f"{r['ms']:.2f}", f"**{r['ratio']:.3f}**",
        f"{r['ratio_low']:.3f} to {r['ratio_high']:.3f}", *target(r), size(r["extra_bytes"]), f"{r['flops'] / 1e9:.3f}",
    ] for r in rows])


def adamw(rows):
    header = ["parameters", "built for", "ms", "over a loop that only moves 28 B", "must", "speed of the scalar loop", "must"]
    result = []
    for r in rows:
        native = r["program"] == "adamw_native"
        big = r["parameters"] > 1000000
        result.append([
            f"{r['parameters']:,}", "this processor (" + r["simd"].split(",")[0] + ")" if native else "any x86-64 (SSE2)",
            f"{r['ms']:.3f}", f"{r['over_moving']:.2f} ({r['over_moving_low']:.2f} to {r['over_moving_high']:.2f})",
            f"at most {1.5 if native else 2.5}" if big else "",
            f"{r['speedup']:.2f} ({r['speedup_low']:.2f} to {r['speedup_high']:.2f})",
            "" if big else f"at least {3 if native else 2}"])
    return table(header, result)


def compile_time(rows):
    header = ["products by", "bare Eigen s", "with DeltaW s", "ratio", "least to greatest", "must"]
    return table(header, [[
        "OpenBLAS" if r["products"] == "blas" else "Eigen", f"{r['bare_seconds']:.2f}", f"{r['step_seconds']:.2f}",
        f"**{r['ratio']:.2f}**", f"{r['ratio_least']:.2f} to {r['ratio_greatest']:.2f} of {r['rounds']}", "at most 1.5",
    ] for r in rows])


def processor():
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    count = sum(line.startswith("processor") for line in info.splitlines())
    return (f"{named.get('model name', 'unknown processor')}, family {named.get('cpu family', '?')} model "
            f"{named.get('model', '?')}, {count} cores seen")


def results(folder):
    rows = read(folder, "adapters.json")
    if not rows:
        sys.exit(f"tables: {folder}/adapters.json: no rows; run make bench first")
    parts = [f"{processor()}; {datetime.date.today()}.", ""]
    for blas, core, flags in sorted({(r["blas"], r["core"], r["flags"]) for r in rows}, reverse=True):
        parts.append(f"- {blas}" + (f", core {core}" if core else "") + f"; {flags}")
    parts += ["", adapters(rows)]
    for name, render in (("adamw.json", adamw), ("compile_time.json", compile_time)):
        if found := read(folder, name):
            parts += ["", render(found)]
    return "\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="folder", type=Path, default=ROOT / "build/bench")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    arguments = parser.parse_args()
    text = results(arguments.folder)
    if not arguments.write:
        print(text)
        return
    page = ROOT / "docs/benchmarks.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
