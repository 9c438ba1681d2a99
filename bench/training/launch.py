"""Starts one Python command as several processes on this machine, as torchrun does, and ends all when one ends badly."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

GRACE_SECONDS = 10.0
PASSED_ON = (signal.SIGINT, signal.SIGTERM)


def launch_processes(arguments: Sequence[str], processes: int, signals: Sequence[signal.Signals] = PASSED_ON) -> int:
    """Runs `python ARGUMENTS` that many times, with RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set, which
    `bench.training.process_group.join_process_group` reads. Returns process 0's exit code; 1 where another one ended badly.

    The signals go to process 0 alone, which writes what is unfinished and ends; the others follow.
    """
    with socket.socket() as probe:  # a port that is free
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = []
    for rank in range(processes):
        environment = {"OMP_NUM_THREADS": "1", **os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        children.append(subprocess.Popen([sys.executable, *arguments], env=environment, start_new_session=True))
    before = {number: signal.signal(number, lambda n, _: children[0].send_signal(n)) for number in signals}
    try:
        while all(child.poll() in (None, 0) for child in children) and any(child.poll() is None for child in children):
            time.sleep(0.1)
        for rank, child in enumerate(children):
            if (code := child.poll()) is not None and code < 0:
                print(f"error: Process {rank + 1} of {len(children)} was ended by signal {-code}; the others stop too.", file=sys.stderr)
        return _ended(children)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_distributed() -> bool:
    """Whether this process was started as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main_process() -> bool:
    """Whether this process is alone, or rank 0 of its process group: the one that writes."""
    return not is_distributed() or os.environ["RANK"] == "0"


def _ended(children: Sequence["subprocess.Popen[bytes]"]) -> int:
    """The exit code, when all have ended: by themselves, or made to."""
    failed_by_itself = children[0].poll() is not None
    for make in (None, subprocess.Popen.terminate, subprocess.Popen.kill):
        for child in children:
            if make and child.poll() is None:
                make(child)
        until = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < until and any(child.poll() is None for child in children):
            time.sleep(0.1)
    codes = [child.wait() for child in children]
    if codes[0] < 0 and failed_by_itself:  # as a shell says it
        return 128 - codes[0]
    return codes[0] if codes[0] > 0 else int(any(codes))
