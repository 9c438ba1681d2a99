"""Whether the cluster's nodes see what jobs need: a first small job reads a token from the output folder and answers there."""

import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from bench.cluster.queue import cancel, flag_words, job_state, slurm
from bench.cluster.submission import FOLDER
from bench.errors import RequestError

WAIT_SECONDS = 20.0  # for the answer; in a full queue the arrays are sent behind the check, which cancels them if it fails
ENDED = ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY", "DEADLINE")
LATER = ("hold", "begin", "deadline", "mail")  # flags that are for the cells, not for a check of seconds
SCRIPT = """#!/bin/bash
[ "$(cat {token} 2>/dev/null)" = {word} ] || exit 3
[ -x {python} ] || exit 4
[ -r {code} ] || exit 5
echo "seen by $SLURMD_NODENAME" > {answer} 2>/dev/null || exit 6
"""
REASONS = {
    "3": "they do not see it",
    "4": "they have no {python}",
    "5": "they do not see the snapshot of the code",
    "6": "they cannot write there",
}


def check_nodes(out: Path, flags: Mapping[str, Any], snapshot: Path, python: str, wait: float = WAIT_SECONDS) -> str:
    """Runs the check on a partition that has not passed it yet; "" once it passed, or the number of the job that still waits.

    RequestError, and nothing left in the queue, where the nodes do not see the folder.
    """
    folder = out / FOLDER / "check"
    context = json.dumps([checked_partition(flags), python])
    passed = folder / "passed.json"
    known = json.loads(passed.read_text()) if passed.is_file() else []
    if context in known:
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    word = uuid.uuid4().hex
    token, answer = folder / f"{word}.token", folder / f"{word}.answer"
    token.write_text(word)
    names = {"token": token, "word": word, "python": python, "code": snapshot / "bench" / "job.py", "answer": answer}
    script = SCRIPT.format(**{name: quote(str(value)) for name, value in names.items()})
    own = {name: value for name, value in flags.items() if not name.startswith(LATER)}
    own |= {"time": 5, "job-name": "spb_check", "output": "/dev/null", "parsable": True, "no-requeue": True, "chdir": "/"}
    job = slurm("sbatch", *flag_words(own), text=script).strip().partition(";")[0]
    if not _answered(job, answer, out, python, wait):
        return job
    passed.write_text(json.dumps([*known, context]))
    for file in (token, answer):
        file.unlink(missing_ok=True)
    return ""


def checked_partition(flags: Mapping[str, Any]) -> str:
    """The nodes that flags of sbatch ask for, in words; one check is enough for them."""
    return f"{flags.get('partition', '')}/{flags.get('constraint', '')}"


def _answered(job: str, answer: Path, out: Path, python: str, wait: float) -> bool:
    until = time.monotonic() + wait
    ended = False
    while time.monotonic() < until:
        if answer.is_file() and answer.read_text().strip():
            return True
        state = job_state(job)
        if state.get("JobState") in ENDED:
            cancel([job])
            _refuse(job, state, out, python)
        if ended:
            raise RequestError(f"The nodes do not see the output folder {out}: job {job} ended, but its answer is not there.")
        if state.get("JobState") == "COMPLETED":
            ended = True
            time.sleep(5.0)  # a shared disk may show a new file late
        time.sleep(0.2)
    return False


def _refuse(job: str, state: Mapping[str, str], out: Path, python: str) -> None:
    """RequestError with what the script's own exit code says of the folder, or that it was not looked at where SLURM ended the job."""
    code = state.get("ExitCode", "").partition(":")[0]
    said = f"job {job} on {state.get('NodeList')}: {state['JobState']}, {state.get('Reason')}, exit code {state.get('ExitCode')}"
    if code not in REASONS:
        raise RequestError(f"The cluster did not run the check of the output folder {out} ({said}); run the same command again.")
    why = REASONS[code].format(python=python)
    raise RequestError(f"The nodes cannot use the output folder {out}: {why} ({said}); choose one on the shared disk with --out.")
