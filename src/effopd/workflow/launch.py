"""How a job's processes start: the GPUs that it claims, and its ranks on one node or several.

`python -m effopd.workflow.launch --ranks 4 --gpus 4 train-rl ...` runs `effopd train-rl ...` as four processes under
torch's launcher, on four GPUs of this machine that no other job has. For several nodes, srun starts it once on each,
and the launchers meet at the first.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from effopd.common.errors import UserError
from effopd.common.progress import say

# Ports for the meeting of launchers: above the well-known ones, below those that Linux hands out by itself.
FIRST_PORT, PORTS = 10000, 20000


def command(ranks: int, *, gpus: int = 0, nodes: int = 1, mpi: str | None = None, cpus: int = 1) -> str:
    """The words that start a rule's command of effopd, to stand before it in the shell.

    `gpus` are those of the whole job, `cpus` those of its part on each node; `mpi` is what starts the parts (srun).
    Raises UserError if the resources do not fit each other.
    """
    if nodes == 1:
        if ranks == 1 and not gpus:
            return "effopd"
        return f"python -m effopd.workflow.launch --ranks {ranks}" + (f" --gpus {gpus}" if gpus else "")
    if not mpi:
        raise UserError(
            f"profile: the resource `nodes` is {nodes}, and several nodes need `mpi: srun` and `tasks: {nodes}` too. "
            "Add them, or set `nodes` to 1."
        )
    _ranks_per_node(ranks, nodes)
    return (  # SLURM gives each node's part its GPUs
        f"{mpi} --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --cpus-per-task={cpus} --kill-on-bad-exit=1"
        f" python -m effopd.workflow.launch --ranks {ranks} --nodes {nodes}"
    )


def _ranks_per_node(ranks: int, nodes: int) -> int:
    if ranks % nodes:
        raise UserError(
            f"{ranks} ranks cannot be shared out evenly over {nodes} nodes. Change `num_processes` or `nodes`."
        )
    return ranks // nodes


def gpus_here() -> int:
    """How many GPUs this machine has: EFFOPD_GPUS if it is set, else what nvidia-smi lists."""
    if stated := os.environ.get("EFFOPD_GPUS"):
        if not stated.isdecimal():
            raise UserError(f"the environment variable EFFOPD_GPUS is {stated!r}. Set it to a number of GPUs.")
        return int(stated)
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    except FileNotFoundError:
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def claim_gpus(count: int) -> list[int]:
    """Claim GPUs of this machine for this process and for what it turns into, and wait while too few are free.

    The claims are locked files, one a GPU, in a folder of this user; they end with the last process that holds them
    open, however it ends. All or none are claimed, so that two jobs never wait for each other. Raises UserError if
    the machine has fewer.
    """
    total = gpus_here()
    if count > total:
        raise UserError(
            f"this job asks for {count} GPUs, and this machine has {total}. Lower the rule's `gpu` in the profile, or "
            "set EFFOPD_GPUS where nvidia-smi does not see them all."
        )
    folder = Path(tempfile.gettempdir()) / f"effopd-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    waiting = False
    while len(held := _lock_free_ones(folder, total, count)) < count:
        for handle in held.values():
            os.close(handle)
        if not waiting:
            say(f"waiting for {count} of this machine's {total} GPUs: too few are free")
            waiting = True
        time.sleep(random.uniform(0.2, 1.0))
    for handle in held.values():
        os.set_inheritable(handle, True)
    return list(held)


def _lock_free_ones(folder: Path, total: int, count: int) -> dict[int, int]:
    """Lock up to `count` files of GPUs that nobody has locked: open file descriptors by GPU."""
    held: dict[int, int] = {}
    for gpu in range(total):
        if len(held) == count:
            break
        handle = os.open(folder / f"gpu{gpu}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
        else:
            held[gpu] = handle
    return held


def rendezvous(ranks: int, nodes: int) -> list[str]:
    """The options with which this node's launcher meets those of the other nodes.

    Raises UserError if this is not one of as many parts, one a node, that srun started.
    """
    started = os.environ.get("SLURM_STEP_NUM_NODES"), os.environ.get("SLURM_STEP_NUM_TASKS")
    if started != (str(nodes), str(nodes)):
        found = "srun started {1} on {0} nodes".format(*started) if all(started) else "srun did not start this one"
        raise UserError(
            f"{nodes} nodes need one launcher each, and {found}. "
            f"Start it with `srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1`."
        )
    first, job = _first_host(os.environ["SLURM_STEP_NODELIST"]), os.environ["SLURM_JOB_ID"]
    return [
        f"--nnodes={nodes}",
        f"--nproc-per-node={_ranks_per_node(ranks, nodes)}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={first}:{FIRST_PORT + int(job) % PORTS}",
        f"--rdzv-id={job}",
        f"--rdzv-conf=is_host={int(os.environ['SLURM_NODEID'] == '0')}",
    ]


def _first_host(nodes: str) -> str:
    """The first of the hosts that SLURM writes as, say, `node[003-004,011]`."""
    listed = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True)
    if listed.returncode:
        raise UserError(f"`scontrol show hostnames {nodes}` failed: {listed.stderr.strip()}.")
    return listed.stdout.split()[0]


def start(ranks: int, gpus: int, nodes: int, verb: Sequence[str]) -> NoReturn:
    """Become the command, or the launcher of its ranks. Raises UserError if that cannot work."""
    if gpus and "CUDA_VISIBLE_DEVICES" not in os.environ:  # SLURM sets it
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, claim_gpus(gpus)))
    module = ["-m", "effopd", *verb]
    if nodes > 1:
        module = ["-m", "torch.distributed.run", *rendezvous(ranks, nodes), *module]
    elif ranks > 1:
        module = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *module]
    if ranks > 1:
        os.environ["EFFOPD_LAUNCHER"] = str(os.getpid())  # a rank that starts as its launcher ends has another parent
    os.execv(sys.executable, [sys.executable, *module])


def main() -> None:
    """Run a command of `effopd` as the ranks of one job."""
    parser = argparse.ArgumentParser(prog="python -m effopd.workflow.launch", description=__doc__)
    parser.add_argument("--ranks", type=int, default=1, help="processes of the job")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of this machine to claim, unless SLURM gave some")
    parser.add_argument("--nodes", type=int, default=1, help="nodes that the ranks are spread over, by srun")
    parser.add_argument("verb", nargs=argparse.REMAINDER, help="a command of `effopd` and its options")
    given = parser.parse_args()
    try:
        start(given.ranks, given.gpus, given.nodes, given.verb)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
