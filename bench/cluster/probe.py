"""Whether the cluster's nodes see what jobs need: a first small job reads a token from the output folder and answers there."""

import json
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from bench.cluster.profile import NONE, Profile
from bench.cluster.queue import ENDED, HOLDING, NEVER, PER_USER, asked_for, flag_words, job_state, jobs_in_queue, slurm
from bench.cluster.submission import FOLDER, Submission
from bench.errors import RequestError

WAIT_SECONDS = 20.0  # for the answer; in a full queue the arrays are sent behind the check, which cancels them if it fails
LIMIT_SECONDS = 5.0  # after which a limit of the user's own jobs, of which none holds anything, is the request's own
LATER = ("hold", "begin", "deadline", "mail")  # flags that are for the cells, not for a check of seconds
PARTS = "import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, ('torch', 'submitit'))))"
SCRIPT = """#!/bin/bash
[ "$(cat {token} 2>/dev/null)" = {word} ] || exit 3
[ -r {code} ] || exit 5
trap 'exit 7' ERR
{setup}
trap - ERR
{python} -c {parts} || exit 4
echo "seen by $SLURMD_NODENAME" > {answer} 2>/dev/null || exit 6
"""
REASONS = {
    "3": "they do not see it; choose one on the shared disk with --out",
    "4": "the Python of the jobs, {python}, does not start there, or has no torch and submitit",
    "5": "they do not see the snapshot of the code; choose a folder on the shared disk with --out",
    "6": "they cannot write there; choose one on the shared disk with --out",
    "7": "a setup line of the profile {profile} fails there",
}


def check_nodes(sent: Submission, flags: Mapping[str, Any], profile: Profile, jobs: list[str]) -> str:
    """Runs the check on a partition that has not passed it yet; "" once it passed, or the number of the job that still waits, which
    is entered into `jobs` at once.

    RequestError where the nodes do not see the folder, or SLURM would never start the check.
    """
    out = sent.context.out
    folder = out / FOLDER / "check"
    python = python_of(profile)
    context = json.dumps([checked_partition(flags), python, *profile.setup])
    passed = folder / "passed.json"
    known = json.loads(passed.read_text()) if passed.is_file() else []
    if context in known or profile.check_partition == NONE:
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    word = uuid.uuid4().hex
    token, answer = folder / f"{word}.token", folder / f"{word}.answer"
    token.write_text(word)
    names = {"token": token, "word": word, "code": sent.snapshot / "bench" / "cluster" / "job.py", "answer": answer, "parts": PARTS}
    quoted = {name: quote(str(value)) for name, value in names.items()}
    script = SCRIPT.format(**quoted, python=python, setup="\n".join(profile.setup))
    own = {name: value for name, value in flags.items() if not name.startswith(LATER)}
    if profile.check_partition:
        own = without_gpus(own) | {"partition": profile.check_partition}
    own |= {"time": 5, "job-name": sent.name("check"), "output": "/dev/null", "parsable": True, "no-requeue": True, "chdir": "/"}
    job = slurm("sbatch", *flag_words(own), text=script).strip().partition(";")[0]
    jobs.append(job)
    if not _answered(job, answer, out, profile, own):
        return job
    jobs.remove(job)
    passed.write_text(json.dumps([*known, context]))
    for file in (token, answer):
        file.unlink(missing_ok=True)
    return ""


def python_of(profile: Profile) -> str:
    """The shell words that start Python in a job."""
    return profile.python or quote(sys.executable)


def without_gpus(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The request of a job that needs no GPU, nor the kind of node that has one."""
    return {name: value for name, value in flags.items() if not name.startswith(("gres", "gpu", "constraint", "exclusive"))}


def checked_partition(flags: Mapping[str, Any]) -> str:
    """The nodes that flags of sbatch ask for, in words; one check is enough for them."""
    return f"{flags.get('partition', '')}/{flags.get('constraint', '')}"


def _answered(job: str, answer: Path, out: Path, profile: Profile, flags: Mapping[str, Any]) -> bool:
    until = time.monotonic() + WAIT_SECONDS
    ended, limited = False, 0.0
    while time.monotonic() < until:
        if answer.is_file() and answer.read_text().strip():
            return True
        state = job_state(job)
        if state.get("JobState") in ENDED:
            _refuse(job, state, out, profile)
        if ended:
            raise RequestError(f"The nodes do not see the output folder {out}: job {job} ended, but its answer is not there.")
        if state.get("JobState") == "COMPLETED":
            ended = True
            time.sleep(5.0)  # a shared disk may show a new file late
        reason = state.get("Reason", "")
        limited = (limited or time.monotonic()) if PER_USER.search(reason) and jobs_in_queue(HOLDING)[1] == 0 else 0.0
        if NEVER.search(reason) or (limited and time.monotonic() > limited + LIMIT_SECONDS):
            raise RequestError(f"SLURM would never start such a job ({reason}). {asked_for(flags)}")
        time.sleep(0.2)
    return False


def _refuse(job: str, state: Mapping[str, str], out: Path, profile: Profile) -> None:
    """RequestError with what the script's own exit code says of the folder, or that it was not looked at where SLURM ended the job."""
    code = state.get("ExitCode", "").partition(":")[0]
    said = f"job {job} on {state.get('NodeList')}: {state['JobState']}, {state.get('Reason')}, exit code {state.get('ExitCode')}"
    if code not in REASONS:
        raise RequestError(f"The cluster did not run the check of the output folder {out} ({said}); run the same command again.")
    why = REASONS[code].format(python=python_of(profile), profile=profile.name)
    raise RequestError(f"The nodes cannot use the output folder {out}: {why} ({said}).")
