# What a SLURM job does around Python, in bash: the batch script sources this, sets spb_logs, spb_attempts and spb_mem_max (MB, 0 for
# none), runs the profile's setup lines between `begin` and `ready`, and ends with `run_cells PYTHON ...`.
#
# SLURM warns the batch shell, which lives from the job's first second, when Python is still importing, and asks the controller, which a
# container may not reach. Python is told by USR2, saves its cell and ends with 75.

job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"
job="${job:-$SLURM_JOB_ID}" # the plain number of an array's last task is the whole array's
warned="" interrupted="" child=""

warn() {
  warned=1 interrupted=1
  [ -z "$child" ] || kill -USR2 "$child" 2>/dev/null
}

begin() { # a start leaves a file, which Python removes when the first cell begins
  : >"$spb_logs/$job.${SLURM_RESTART_COUNT:-0}.early"
  trap warn USR2 TERM
  trap 'echo "error: A setup line of the profile failed with exit code $?: $BASH_COMMAND" >&2; exit 1' ERR
}

ready() {
  trap - ERR
  [ -z "$warned" ] || queue_again
}

run_cells() {
  local code next
  "$@" &
  child=$!
  [ -z "$warned" ] || kill -USR2 "$child" 2>/dev/null
  wait "$child"
  code=$?
  while [ -n "$interrupted" ]; do # a signal ends `wait`, not the child
    interrupted=""
    wait "$child"
    next=$?
    [ "$next" = 127 ] || code=$next
  done
  child=""
  case "$code${warned:+ warned}" in
    75*) queue_again ;;
    "140 warned" | "143 warned") queue_again ;; # Python had not begun to listen: nothing is lost
    137) out_of_memory && more_memory ;;
  esac
  exit "$code"
}

queue_again() { # for as long as the job lives: the controller may be away
  local state said early
  early=("$spb_logs/$job".*.early)
  if [ -e "${early[0]}" ] && [ "${#early[@]}" -ge "$spb_attempts" ]; then
    echo "error: Job $job was warned ${#early[@]} times before its cells began: it is not queued again; it needs a longer time_min." >&2
    exit 1
  fi
  while true; do
    if state=$(squeue --noheader --jobs="$job" --format=%T 2>&1); then
      if [ "$state" != RUNNING ]; then
        echo "Job $job is ${state:-gone}: it is not queued again."
        exit 1
      fi
      if said=$(scontrol requeue "$job" 2>&1); then
        echo "Job $job is queued again and goes on from here."
        exit 0
      fi
      state=$said
    fi
    case "$state" in
      *ontact* | *onnect* | *ommunicat* | *"timed out"* | *emporar* | *busy*) echo "Job $job tries again to be queued again: $state" ;;
      *)
        echo "error: Job $job could not be queued again ($state); the same bench.run sends the rest." >&2
        exit 1
        ;;
    esac
    sleep 5
  done
}

out_of_memory() { # whether the node's kernel ended a process of this job for its memory
  local group
  group="/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)"
  grep -qs '^oom_kill [1-9]' "$group/memory.events" && return
  grep -qs '^oom_kill [1-9]' "/sys/fs/cgroup/memory$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup)/memory.oom_control"
}

more_memory() { # one retry: after it the job has all that the profile allows
  local used="${SLURM_MEM_PER_NODE:-0}"
  echo "error: Out of memory: the node ended Python, which had $used MB (mem_gb in the profile; 0: the cluster's default)." >&2
  [ "$used" -gt 0 ] && [ "$spb_mem_max" -gt "$used" ] || return 1
  scontrol requeue "$job" || return 1
  for _ in 1 2 3 4 5 6 7 8 9 10; do # the job waits again, and this shell has a few seconds to live
    if scontrol update jobid="$job" MinMemoryNode="$spb_mem_max"; then
      echo "Job $job is queued again with $spb_mem_max MB."
      exit 0
    fi
    sleep 0.3
  done
  exit 1
}
