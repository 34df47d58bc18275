"""`effopd extrapolate` against `cp` of the current checkpoint, on one disk: time, CPU time and peak memory.

    python benchmarks/extrapolate.py [--gigabytes 4] [--repeats 5] [--dtype float32] [--folder .]

`cp` reads and writes those bytes once; extrapolation reads as much again, the anchor: on a disk that is the limit, 2/3
of cp's speed is the most it can reach. Before each run both checkpoints are put out of the page cache (cold), or into
it (warm), and as much free memory as both sides may use is written once: a virtual machine may have given it back to
its host, and getting it again can cost more than copying. Either side ends with fsync. The sides alternate. Ratios are
cp's time over effopd's, 1 is as fast as cp.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROWS, COLUMNS, SHARDS = 4096, 4096, 4
SPARE = 2**30  # bytes left free, so that nothing has to make room
TOUCH = "import mmap, sys; m = mmap.mmap(-1, int(sys.argv[1])); [m.__setitem__(i, 1) for i in range(0, len(m), 4096)]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="Size of a checkpoint (default: 4).")
    parser.add_argument("--repeats", type=int, default=5, help="Times each side runs, cold and warm (default: 5).")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--folder", type=Path, default=Path("."), help="Where to put three checkpoints.")
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)  # this script's own child process
    options = parser.parse_args()
    if options.make:
        make(Path(options.make[0]), options.gigabytes, options.dtype, int(options.make[1]))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for seed, checkpoint in enumerate(("anchor", "current")):
            # in a process of its own: the peak memory of a child is at least its parent's
            arguments = ["--gigabytes", str(options.gigabytes), "--dtype", options.dtype]
            make_it = [sys.executable, __file__, *arguments, "--make", str(folder / checkpoint), str(seed)]
            subprocess.run(make_it, check=True)
        for cache in ("cold", "warm"):
            compare(folder, cache, options.repeats)


def make(folder: Path, gigabytes: float, dtype_name: str, seed: int) -> None:
    """A checkpoint of equal matrices in shards."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    dtype = getattr(torch, dtype_name)
    count = max(SHARDS, round(gigabytes * 1e9 / (ROWS * COLUMNS * dtype.itemsize)))
    base = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)) * 0.02
    names = {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        tensors = {
            f"model.layers.{layer}.mlp.up_proj.weight": (base + 1e-3 * (layer + 1) * seed).to(dtype)
            for layer in range(shard, count, SHARDS)
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        names.update(dict.fromkeys(tensors, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def compare(folder: Path, cache: str, repeats: int) -> None:
    anchor, current, out = folder / "anchor", folder / "current", folder / "out"
    extrapolate = [sys.executable, "-c", "import torch; from effopd.__main__ import main; main()", "extrapolate"]
    extrapolate += ["--anchor", str(anchor), "--current", str(current), "--coefficient", "4", "--out", str(out)]
    size = sum(file.stat().st_size for file in current.iterdir())
    start_up = min(run([*extrapolate[:4], "--help"], out)[0] for _ in range(3))
    rows = []
    for _ in range(repeats):
        prepare((anchor, current), cache, 4 * size)
        copied = run(["cp", "-r", str(current), str(out)], out)
        prepare((anchor, current), cache, 4 * size)
        made = run(extrapolate, out)
        rows.append((copied, made))
    for side, name in enumerate(("cp", "effopd")):
        seconds, cpu, peak = (statistics.median(row[side][i] for row in rows) for i in range(3))
        print(
            f"{cache}: {name} {seconds:.1f} s ({size / 1e9 / seconds:.2f} GB/s written), "
            f"CPU {cpu:.1f} s, {peak:.0f} MB peak"
        )
    whole = [copied[0] / made[0] for copied, made in rows]
    working = [copied[0] / (made[0] - start_up) for copied, made in rows]
    print(f"{cache}: ratio {spread(working)}, with {start_up:.1f} s of imports {spread(whole)}", flush=True)


def prepare(checkpoints: Sequence[Path], cache: str, memory: int) -> None:
    """Put the files out of the page cache, or into it, and let the machine own that many bytes of free memory."""
    os.sync()
    for file in (file for checkpoint in checkpoints for file in checkpoint.iterdir()):
        with file.open("rb") as handle:
            if cache == "cold":
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while handle.read(2**24):
                    pass
    with open("/proc/meminfo", encoding="ascii") as lines:
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemFree:"))
    if (touched := min(memory, free - SPARE)) > 0:
        subprocess.run([sys.executable, "-c", TOUCH, str(touched)], check=True)


def run(command: list[str], out: Path) -> tuple[float, float, float]:
    """Seconds until what the command wrote is on the disk, seconds of CPU, and peak memory in MB."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed")
    if out.exists():
        for file in out.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    seconds = time.perf_counter() - started
    shutil.rmtree(out, ignore_errors=True)
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
