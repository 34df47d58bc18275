"""Spectral metrics of effopd against torch.linalg.svdvals, side by side: speed and error.

    python benchmarks/spectra.py [--rows 4096] [--columns 1024] [--threads 1] [--repeats 9]

Each repeat times both on the same matrix, one after the other, so that whatever else the machine does hits both. Printed
are the median and range over repeats of the ratio of processor times (of all threads together: what other processes
disturb least) and of wall times, and each metric's relative error against LAPACK's singular values in float64. `exact`
are all eigenvalues of the Gram matrix (tolerance 1e-5).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from effopd.dynamics.spectra import Spectrum, spectrum

METRICS = ("spectral_norm", "spectral_to_frobenius", "effective_rank", "top1pct_norm_ratio")


def matrices(rows: int, columns: int) -> dict[str, torch.Tensor]:
    """Updates as training makes them, and one that has no structure at all."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def decaying(values: torch.Tensor) -> torch.Tensor:
        left, right = torch.linalg.qr(noise(rows, columns))[0], torch.linalg.qr(noise(columns, columns))[0]
        return (left * values) @ right.T

    ranks = torch.arange(1, columns + 1).float()
    return {
        "rank 16 + noise": noise(rows, 16) @ torch.diag(torch.logspace(0, -1, 16)) @ noise(16, columns)
        + noise(rows, columns),
        "Gaussian": noise(rows, columns),
        "power law i^-0.5": decaying(ranks**-0.5),
        "power law i^-0.6 + floor": decaying(ranks**-0.6 + 0.02),
        "power law i^-1": decaying(ranks**-1),
    }


def timed(function: Callable[[], Spectrum | torch.Tensor]) -> tuple[float, float]:
    """Seconds of processor time and of wall time."""
    processor, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - processor, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.rows} x {options.columns} float32, {options.threads} threads, {options.repeats} repeats")
    with threadpool_limits(options.threads):
        for name, matrix in matrices(options.rows, options.columns).items():
            compare(name, matrix, options.repeats)


def compare(name: str, matrix: torch.Tensor, repeats: int) -> None:
    exact = spectrum(matrix, tolerance=0)
    times: dict[str, list[tuple[float, float]]] = {"svdvals": [], "default": [], "exact": []}
    for _ in range(repeats + 1):
        times["svdvals"].append(timed(lambda: torch.linalg.svdvals(matrix)))
        times["default"].append(timed(lambda: spectrum(matrix)))
        times["exact"].append(timed(lambda: spectrum(matrix, tolerance=1e-5)))
    seconds = {side: np.array(values[1:]) for side, values in times.items()}  # the first warms up
    print(f"{name}: svdvals {milliseconds(seconds['svdvals'])}")
    for side, tolerance in (("default", 1e-3), ("exact", 1e-5)):
        found = spectrum(matrix, tolerance)
        processor, wall = (
            f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
            for ratios in (seconds["svdvals"] / seconds[side]).T
        )
        errors = ", ".join(f"{abs(getattr(found, m) / getattr(exact, m) - 1):.1e}" for m in METRICS)
        print(
            f"  {side} ({found.method}): {milliseconds(seconds[side])}; times faster {processor}, by wall time {wall}; "
            f"errors {errors}; largest reported {found.error:.1e}",
            flush=True,
        )


def milliseconds(seconds: np.ndarray) -> str:
    """Median processor and wall time of repeats [r, 2]."""
    processor, wall = 1e3 * np.median(seconds, axis=0)
    return f"{processor:.0f} ms (wall {wall:.0f})"


if __name__ == "__main__":
    main()
