#!/usr/bin/env bash
# Stop the Slurm that up.sh started in DIR, and remove DIR. Only what up.sh recorded is stopped, never by name.
set -uo pipefail

[ $# -ge 1 ] || { echo "Usage: cluster/dev/down.sh DIR [--keep]      --keep: leave DIR with its logs" >&2; exit 2; }
dir=$(readlink -m -- "$1")
[ -e "$dir/pids" ] || { echo "down.sh: nothing is up in $dir"; exit 0; }
export SLURM_CONF="$dir/etc/slurm.conf"

# Is the process still the daemon that up.sh started? Its number may be another's by now.
alive() {
  [ "$(cat "/proc/$2/comm" 2>/dev/null)" = "${1%%.*}" ] &&
    tr '\0' '\n' 2>/dev/null <"/proc/$2/environ" | grep -qxF -- "SLURM_DEV_DIRECTORY=$dir"
}
namespaces_of() {
  local uts mnt
  uts=$(readlink "/proc/$1/ns/uts" 2>/dev/null) && mnt=$(readlink "/proc/$1/ns/mnt" 2>/dev/null) && echo "$uts $mnt"
}
own=$(namespaces_of $$)
while read -r name pid; do
  case $name in slurmd.*) alive "$name" "$pid" && namespaces_of "$pid" >>"$dir/namespaces" ;; esac
done <"$dir/pids"

# Jobs first, while there is a slurmd to end them.
if timeout 5 scontrol ping >/dev/null 2>&1; then
  mapfile -t jobs < <(timeout 5 squeue --noheader --format=%A 2>/dev/null | sort -u)
  [ ${#jobs[@]} -eq 0 ] || timeout 10 scancel --full "${jobs[@]}" >/dev/null 2>&1
  for _ in {1..75}; do
    [ -n "$(timeout 5 squeue --noheader --format=%A 2>/dev/null)" ] || break
    sleep 0.2
  done
fi

for daemon in slurmd. slurmctld slurmdbd mariadbd munged; do
  while read -r name pid; do
    [[ $name == "$daemon"* ]] || continue
    alive "$name" "$pid" || continue
    kill -TERM "$pid" 2>/dev/null
    for _ in {1..50}; do
      alive "$name" "$pid" || continue 2
      sleep 0.1
    done
    echo "down.sh: $name (pid $pid) had to be killed" >&2
    kill -KILL "$pid"
  done <"$dir/pids"
done

# What still lives in a node's namespaces: a slurmd that crashed leaves its jobs behind.
for process in /proc/[0-9]*; do
  pid=${process#/proc/}
  found=$(namespaces_of "$pid") || continue
  [ "$found" != "$own" ] || continue
  if grep -qxF -- "$found" "$dir/namespaces"; then
    echo "down.sh: left over and killed: $(cat "$process/comm" 2>/dev/null) (pid $pid)" >&2
    kill -KILL "$pid" 2>/dev/null
  fi
done
if [ "${2:-}" = --keep ]; then rm -f "$dir/pids"; else rm -rf "$dir"; fi
