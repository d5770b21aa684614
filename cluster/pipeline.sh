#!/usr/bin/env bash
# From scenes to scores on a Slurm cluster: submits chip, train, infer and evaluate, each after the one before it succeeded.
set -euo pipefail
GEOCHIP_CLUSTER_DIR=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
# shellcheck source=lib.sh
. "$GEOCHIP_CLUSTER_DIR/lib.sh"

STEPS=(chip train infer evaluate)
WANTED=("${STEPS[@]}")
DRY_RUN="" DOCTOR=""

read_options() { # sets REST, WANTED, DRY_RUN and DOCTOR
  local step
  while [ $# -gt 0 ]; do
    case $1 in
      --dry-run) DRY_RUN=yes ;;
      --doctor) DOCTOR=yes ;;
      --steps=*)
        IFS=, read -r -a WANTED <<<"${1#--steps=}"
        for step in "${WANTED[@]}"; do
          [[ " ${STEPS[*]} " == *" $step "* ]] || fail "--steps: there is no step $step; there are $(IFS=,; echo "${STEPS[*]}")"
        done
        ;;
      *) break ;;
    esac
    shift
  done
  REST=("$@")
}

usage() {
  cat >&2 <<'TEXT'
Usage: cluster/pipeline.sh [--dry-run] [--doctor] [--steps=chip,train,infer,evaluate] OUT [RUN.yaml]
  OUT        directory of the run: all results go there, logs to OUT/logs. If the run is there already, it goes on;
             nothing that is finished is made again, nothing is overwritten.
  RUN.yaml   the run file; it is kept as OUT/run.yaml. Default: OUT/run.yaml, where there is one, else GEOCHIP_RUN_FILE
             of site.env
  --dry-run  print the sbatch commands, submit and write nothing
  --doctor   look for what would make the run fail, submit nothing
  --steps    only some of the steps, in their usual order
Account, partitions, GPUs, memory and so on: cluster/site.env.
TEXT
  exit 2
}

# The jobs of an earlier submission would work on the same files.
refuse_a_second_submission() {
  local -a queued
  [ -f "$OUT/logs/jobs" ] || return 0
  mapfile -t queued < <(squeue --noheader --user="$(id -un)" --format=%A | grep -Fx -f <(awk '{print $2}' "$OUT/logs/jobs") | sort -u)
  [ ${#queued[@]} -eq 0 ] ||
    fail "$OUT: jobs of this run are in the queue: ${queued[*]}; wait for them (squeue --jobs=$(IFS=,; echo "${queued[*]}")), or end them (scancel ${queued[*]}) and submit again"
}

# The run's own copy: the file that was named may be edited while the jobs wait in the queue.
keep_run_file() {
  local kept=$OUT/run.yaml
  if [ -e "$kept" ]; then
    [ "$RUN_FILE" -ef "$kept" ] || cmp -s "$RUN_FILE" "$kept" ||
      fail "$OUT was begun with another run file: $kept differs from $RUN_FILE. To go on with it, leave the run file out; to begin another run, choose another directory; to change this one, edit $kept"
  elif [ -z "$DRY_RUN" ]; then
    { mkdir -p "$OUT" && cp -- "$RUN_FILE" "$kept"; } || fail "$OUT cannot be written; choose another directory" 1
  fi
  RUN_FILE=$kept
}

submit() { # STEP AFTER_JOB: sets JOB
  local step=$1 after=$2
  sbatch_options "$step"
  if [ -n "$after" ]; then OPTIONS+=("--dependency=afterok:$after" --kill-on-invalid-dep=yes); fi
  local -a command=(sbatch --parsable "${OPTIONS[@]}" "$GEOCHIP_CLUSTER_DIR/$step.sbatch" "$OUT" "$RUN_FILE")
  if [ -n "$DRY_RUN" ]; then
    JOB="<$step>"
    printf '%q ' "${command[@]}"
    echo
    return
  fi
  if ! JOB=$("${command[@]}"); then
    if [ ${#JOBS[@]} -gt 0 ]; then scancel "${JOBS[@]}"; fi
    fail "sbatch refused the step $step, for the reason above; nothing of this submission is left in the queue. What it was asked: $(printf '%q ' "${command[@]}")" 1
  fi
  JOB=${JOB%%;*}
  printf '%-9s job %s%s\n' "$step" "$JOB" "${after:+, after $after has succeeded}"
  echo "$step $JOB" >>"$OUT/logs/jobs"
}

run_doctor() {
  find_run_file
  prologue
  python_command --driver
  dask_flags "$GEOCHIP_CHIP_WORKERS"
  exec "${PYTHON_COMMAND[@]}" -m geochip.doctor --config "$RUN_FILE" --run_dir "$OUT" "${FLAGS[@]}"
}

read_options "$@"
[ ${#REST[@]} -ge 1 ] && [ ${#REST[@]} -le 2 ] && [ -n "${REST[0]}" ] && [[ ${REST[0]} != -* ]] || usage
read_arguments cluster/pipeline.sh "${REST[@]}"
load_site
if [ -n "$DOCTOR" ]; then run_doctor; fi
command -v sbatch >/dev/null || fail "there is no sbatch here: run this on a login node of the cluster (module load slurm, on some sites)"
find_run_file
if [ -z "$DRY_RUN" ]; then refuse_a_second_submission; fi
keep_run_file
if [ -z "$DRY_RUN" ]; then
  (umask 077 && mkdir -p "$OUT/logs") || fail "$OUT/logs cannot be made; choose another directory" 1
  : >"$OUT/logs/jobs"
fi

# This may run in a job itself, a notebook's for example, whose settings would become those of the new jobs.
for name in $(compgen -e | grep -E '^(SLURM|SBATCH|SRUN|SALLOC)_'); do
  if [ "$name" != SLURM_CONF ]; then unset "$name"; fi
done
export GEOCHIP_CLUSTER_DIR
if [ -n "${GEOCHIP_SITE:-}" ]; then
  GEOCHIP_SITE=$(absolute "$GEOCHIP_SITE")
  export GEOCHIP_SITE
fi

echo "run       $OUT"
echo "run file  $RUN_FILE"
JOBS=()
JOB=""
for step in "${STEPS[@]}"; do
  if [[ " ${WANTED[*]} " == *" $step "* ]]; then
    submit "$step" "$JOB"
    JOBS+=("$JOB")
  else
    printf '%-9s not submitted: not in --steps\n' "$step"
  fi
done
if [ -n "$DRY_RUN" ]; then exit; fi
cat <<TEXT

Watch:    squeue --jobs=$(IFS=,; echo "${JOBS[*]}")
          tail -F $(printf '%q' "$OUT/logs")/*.out
End:      scancel ${JOBS[*]}
Go on:    $(printf '%q ' "$0" "$OUT")  (after an end of any kind; finished work is kept)
Result:   $OUT/eval.json
TEXT
