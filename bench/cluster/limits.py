"""Requests that SLURM takes and never starts: what a partition, a QOS and an association allow one job, compared before anything is sent.

`sbatch --test-only` looks at none of these, and a job behind another one waits with the reason Dependency, whatever its own request.
"""

import os
import pwd
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from bench.cluster.queue import asked_for, slurm
from bench.errors import RequestError

UNITS = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}
QOS_FIELDS = {"MaxTRES": "at most", "MaxTRESPU": "at most", "MinTRES": "at least"}


def refuse_what_never_starts(flags: Mapping[str, Any]) -> None:
    """RequestError where every partition that the flags name, or the QOS or the account, allows no such job."""
    names = str(flags.get("partition", "")).split(",")
    found = [list(_partition_limits(flags, name)) for name in names]
    if all(found):
        raise RequestError(f"SLURM would never start such a job: {found[0][0]}. {asked_for(flags)}")
    for why in _accounting_limits(flags, names[0]):
        raise RequestError(f"SLURM would never start such a job: {why}. {asked_for(flags)}")


def _partition_limits(flags: Mapping[str, Any], name: str) -> Iterator[str]:
    limits = _partition(name)
    where = f"partition {limits.get('PartitionName', name)}"
    asked = _asked(flags)
    most = {"time": minutes(limits.get("MaxTime", "")), "cpu": number(limits.get("MaxCPUsPerNode", ""))}
    most |= {"mem": number(limits.get("MaxMemPerNode", "")), "node": number(limits.get("MaxNodes", ""))}
    for what, limit in most.items():
        if limit is not None and asked.get(what, 0.0) > limit:
            yield f"{where} allows {what} of at most {limit:g}, and {asked[what]:g} is asked for"
    if (least := number(limits.get("MinNodes", ""))) is not None and asked["node"] < least:
        yield f"{where} allows jobs of at least {least:g} nodes, and {asked['node']:g} is asked for"


def _partition(name: str) -> dict[str, str]:
    """What SLURM says of a partition; "" is the default one. Empty where it does not say."""
    with suppress(RequestError):
        for line in slurm("scontrol", "show", "partition", "--oneliner", *([name] if name else [])).splitlines():
            found = dict(word.split("=", 1) for word in line.split() if "=" in word)
            if name or found.get("Default") == "YES":
                return found
    return {}


def _accounting_limits(flags: Mapping[str, Any], partition: str) -> Iterator[str]:
    """What the QOS of the job, that of its partition and the user's association do not allow; nothing without accounting."""
    if shutil.which("sacctmgr") is None:
        return
    user, account = pwd.getpwuid(os.getuid()).pw_name, flags.get("account", "")
    words = ["show", "assoc", f"user={user}", *([f"account={account}"] if account else [])]
    own = _rows(words, "Account", "DefaultQOS", "MaxWall", "MaxTRES")
    for row in own[:1]:
        yield from _beyond(flags, f"the account {row['Account']}", row)
    qos = flags.get("qos") or (own[0]["DefaultQOS"] if own else "")
    for name in dict.fromkeys((qos, _partition(partition).get("QoS", ""))):
        if name and name != "N/A":
            for row in _rows(["show", "qos", str(name)], "Name", "MaxWall", *QOS_FIELDS):
                yield from _beyond(flags, f"QOS {row['Name']}", row)


def _rows(words: list[str], *names: str) -> list[dict[str, str]]:
    try:
        lines = slurm("sacctmgr", "--noheader", "--parsable2", *words, f"format={','.join(names)}", clusters=False).splitlines()
    except RequestError:  # no accounting here
        return []
    return [dict(zip(names, line.split("|"), strict=False)) for line in lines if line.count("|") == len(names) - 1]


def _beyond(flags: Mapping[str, Any], where: str, row: Mapping[str, str]) -> Iterator[str]:
    asked = _asked(flags)
    longest = minutes(row.get("MaxWall", ""))
    if longest is not None and asked["time"] > longest:
        yield f"{where} allows {longest:g} minutes (MaxWall), and {asked['time']:g} are asked for"
    for field, bound in QOS_FIELDS.items():
        for name, _, value in (word.partition("=") for word in row.get(field, "").split(",") if word):
            limit, wanted = number(value), asked.get(name, 0.0)
            if limit is not None and (wanted < limit if bound == "at least" else wanted > limit):
                yield f"{where} allows {name} of {bound} {limit:g} ({field}), and {wanted:g} is asked for"


def _asked(flags: Mapping[str, Any]) -> dict[str, float]:
    """What one job asks for, by SLURM's names of trackable resources: mem in MB, time in minutes."""
    tasks = float(flags.get("ntasks", 1))
    asked = {"time": minutes(str(flags.get("time", ""))), "mem": number(str(flags.get("mem", "")))}
    found = {"node": float(flags.get("nodes", 1)), "cpu": tasks * float(flags.get("cpus-per-task", 1))}
    found |= {name: value or 0.0 for name, value in asked.items()}
    for flag in ("gres", "gpus", "gpus-per-node", "gpus-per-task"):
        for word in str(flags.get(flag, "")).split(","):
            if word and (flag != "gres" or word.startswith("gpu")):
                kind = re.sub(r"^gpu:|:?\d+$", "", word)
                count = float(word.rpartition(":")[2]) if word.rpartition(":")[2].isdigit() else 1.0
                found["gres/gpu"] = found.get("gres/gpu", 0.0) + count
                if kind and kind != "gpu":
                    found[f"gres/gpu:{kind}"] = count
    return found


def number(text: str) -> float | None:
    """A limit, "4" or "62.5G" (megabytes then); None for UNLIMITED and the like."""
    found = re.fullmatch(r"([0-9.]+)([KMGT]?)[nc]?", text)
    return float(found[1]) * UNITS[found[2] or "M"] if found else None


def minutes(text: str) -> float | None:
    """A time limit as SLURM writes it: "90", "30:00", "2:00:00", "1-12:00:00"; None for UNLIMITED and the like."""
    days, dash, rest = text.rpartition("-")
    fields = rest.split(":")
    if not all(re.fullmatch(r"\d+", field) for field in (*fields, days or "0")):
        return None
    numbers = [float(field) for field in fields]
    if dash:  # days-hours[:minutes[:seconds]]
        hours, mins, secs = [*numbers, 0.0, 0.0][:3]
    elif len(numbers) == 3:
        hours, mins, secs = numbers
    else:
        hours, mins, secs = 0.0, numbers[0], (*numbers, 0.0)[1]
    return float(days or 0) * 1440 + hours * 60 + mins + secs / 60
