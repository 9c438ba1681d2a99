"""Which SLURM job this process is, by the environment that SLURM gives it."""

import os

NAMES = {
    "job": "SLURM_JOB_ID",
    "array": "SLURM_ARRAY_JOB_ID",
    "task": "SLURM_ARRAY_TASK_ID",
    "restart": "SLURM_RESTART_COUNT",
    "node": "SLURMD_NODENAME",
    "partition": "SLURM_JOB_PARTITION",
    "gpus": "CUDA_VISIBLE_DEVICES",
}


def job_facts() -> dict[str, str]:
    """The job's numbers, node and GPUs, all as text; empty outside of SLURM. `restart` is "0" in a job's first life."""
    if "SLURM_JOB_ID" not in os.environ:
        return {}
    return {"restart": "0", **{name: os.environ[variable] for name, variable in NAMES.items() if variable in os.environ}}


def task_id(facts: dict[str, str]) -> str:
    """A job as squeue and the log files name it: "12_3" for a task of an array, "12" for a job alone."""
    return f"{facts['array']}_{facts['task']}" if "array" in facts and "task" in facts else facts["job"]
