#!/usr/bin/env bash
# From scenes to scores on a Slurm cluster: submits chip, train, infer and evaluate, each after the one before it succeeded.
set -euo pipefail
GEOCHIP_CLUSTER_DIR=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
# shellcheck source=lib.sh
. "$GEOCHIP_CLUSTER_DIR/lib.sh"

STEPS=(chip train infer evaluate)
WANTED=("${STEPS[@]}")
REST=()
DRY_RUN="" DOCTOR=""
DOCTOR_OPTIONS=()

read_options() { # sets REST, WANTED, DRY_RUN, DOCTOR and DOCTOR_OPTIONS
  local step
  while [ $# -gt 0 ]; do
    case $1 in
      --dry-run) DRY_RUN=yes ;;
      --doctor) DOCTOR=yes ;;
      --wait) DOCTOR=yes DOCTOR_OPTIONS+=(--wait) ;;
      --no-probe) DOCTOR=yes DOCTOR_OPTIONS+=(--no_probe) ;;
      --steps=*)
        IFS=, read -r -a WANTED <<<"${1#--steps=}"
        for step in "${WANTED[@]}"; do
          [[ " ${STEPS[*]} " == *" $step "* ]] || fail "--steps: there is no step $step; there are $(IFS=,; echo "${STEPS[*]}")"
        done
        ;;
      -*) usage ;;
      *) REST+=("$1") ;;
    esac
    shift
  done
}

usage() {
  cat >&2 <<'TEXT'
Usage: cluster/pipeline.sh [--dry-run] [--steps=chip,train,infer,evaluate] OUT [RUN.yaml]
       cluster/pipeline.sh --doctor [--wait] [--no-probe] [--steps=...] OUT [RUN.yaml]
  OUT        directory of the run: all results go there, logs to OUT/logs. If the run is there already, it goes on;
             nothing that is finished is made again, nothing is overwritten.
  RUN.yaml   the run file; it is kept as OUT/run.yaml. Default: OUT/run.yaml, where there is one, else GEOCHIP_RUN_FILE
             of site.env
  --dry-run  print the sbatch commands, submit and write nothing
  --doctor   look for what would make the run fail, from a job as well, and submit none of the steps
  --wait     wait for that job as long as a run would, not for a minute
  --no-probe start no such job
  --steps    only some of the steps, in their usual order
Account, partitions, GPUs, memory and so on: cluster/site.env.
TEXT
  exit 2
}

# The jobs of an earlier submission would work on the same files.
refuse_a_second_submission() {
  local mine
  local -a queued
  [ -f "$OUT/logs/jobs" ] || return 0
  mine=$(squeue --noheader --user="$(id -un)" --format=%A) ||
    fail "$OUT: whether jobs of this run are in the queue is not known, since squeue failed, for the reason above; try again when Slurm answers (scontrol ping)" 1
  mapfile -t queued < <(grep -Fx -f <(awk '{print $2}' "$OUT/logs/jobs") <<<"$mine" | sort -u)
  [ ${#queued[@]} -eq 0 ] ||
    fail "$OUT: jobs of this run are in the queue: ${queued[*]}; wait for them (squeue --jobs=$(IFS=,; echo "${queued[*]}")), or end them (scancel ${queued[*]}) and submit again"
}

submit() { # STEP AFTER_JOB: sets JOB
  local step=$1 after=$2 status=0 errors said
  sbatch_options "$step"
  batch_script "$step"
  if [ -n "$after" ]; then OPTIONS+=("--dependency=afterok:$after" --kill-on-invalid-dep=yes); fi
  local -a command=(sbatch --parsable "${OPTIONS[@]}" "$SCRIPT" "$OUT" "$RUN_FILE")
  if [ -n "$DRY_RUN" ]; then
    JOB="<$step>"
    printf '%q ' "${command[@]}"
    echo
    return
  fi
  if [ "$SCRIPT" != "$GEOCHIP_CLUSTER_DIR/$step.sbatch" ]; then printf %s "$SCRIPT_TEXT" >"$SCRIPT"; fi
  errors=$(mktemp)
  JOB=$("${command[@]}" 2>"$errors") || status=$?
  said=$(cat "$errors")
  rm -f "$errors"
  if [ -n "$said" ]; then printf '%s\n' "$said" >&2; fi
  if [ "$status" -ne 0 ]; then
    if [ ${#JOBS[@]} -gt 0 ]; then scancel "${JOBS[@]}"; fi
    fail "sbatch refused the step $step, for the reason above; nothing of this submission is left in the queue; change $(variables_of "$step" "$said") in $GEOCHIP_SITE_FILE. What it was asked: $(printf '%q ' "${command[@]}")" 1
  fi
  JOB=${JOB%%;*}
  printf '%-9s job %s%s\n' "$step" "$JOB" "${after:+, after $after has succeeded}"
  echo "$step $JOB" >>"$OUT/logs/jobs"
}

# This may run in a job itself, a notebook's for example, whose settings would become those of the new jobs.
leave_surrounding_job() {
  local name
  if [ -z "${SLURM_JOB_ID:-}" ]; then return; fi
  for name in $(compgen -e | grep -E '^(SLURM|SBATCH|SRUN|SALLOC)_'); do
    case $name in
      SLURM_CONF | SLURM_JWT) ;;
      *) unset "$name" ;;
    esac
  done
}

# ---- The doctor

say() { printf '%-5s%s: %s\n' "$1" "$2" "$3"; } # LEVEL WHAT TEXT: as geochip.doctor does

most_seconds() { # PARTITION, or nothing for the default one: how long a job may take there; nothing when there is no limit
  local pattern=" Default=YES " most
  if [ -n "$1" ]; then pattern="PartitionName=$1 "; fi
  most=$(scontrol show partition --oneliner 2>/dev/null | grep -F -- "$pattern" | sed -n 's/.* MaxTime=\([0-9:-]*\) .*/\1/p' | head -n 1) || true
  if [ -n "$most" ]; then seconds_of "$most"; fi
}

# The steps' own jobs; those of workers are judged by geochip.doctor. Returns 1 when Slurm would not take one.
examine_steps() {
  local step said option partition walltime most result=0
  if ! command -v sbatch >/dev/null; then
    say warn steps "there is no sbatch here, so it is not known whether Slurm takes the jobs of the steps; run this on a login node"
    return 0
  fi
  for step in "${STEPS[@]}"; do
    if [[ " ${WANTED[*]} " != *" $step "* ]]; then continue; fi
    sbatch_options "$step"
    partition="" walltime=""
    for option in "${OPTIONS[@]}"; do
      case $option in
        --partition=*) partition=${option#*=} ;;
        --time=*) walltime=${option#*=} ;;
      esac
    done
    most=$(most_seconds "$partition")
    batch_script "$step"
    if ! said=$(sbatch --test-only "${OPTIONS[@]}" <<<"$SCRIPT_TEXT" 2>&1); then
      say FAIL "$step step" "Slurm refuses its job: $(one_line "$said"); change $(variables_of "$step" "$said") in $GEOCHIP_SITE_FILE. What it was asked: sbatch $(printf '%q ' "${OPTIONS[@]}")"
      result=1
    # Slurm may take such a job, and leave it in the queue for ever.
    elif [ -n "$most" ] && [ "$(seconds_of "$walltime")" -gt "$most" ]; then
      say FAIL "$step step" "--time=$walltime is more than ${partition:-the default partition} allows, $((most / 60)) minutes; lower $(variable_of_time "$step") in $GEOCHIP_SITE_FILE"
      result=1
    else
      say ok "$step step" "Slurm takes its job: $(one_line "$said")"
    fi
  done
  return "$result"
}

one_line() { # WHAT SBATCH SAID
  sed -e 's/^sbatch: *//' -e 's/^error: *//' -e '/^$/d' <<<"$1" | paste -s -d ';' | sed 's/;/; /g'
}

# What in site.env a refused job's options come from: what Slurm's words are about, or all of it.
variables_of() { # STEP WHAT_SBATCH_SAID
  local kind=CPU memory found=""
  case $1-$GEOCHIP_KIND in
    train-* | infer-srun | infer-local) kind=GPU ;;
    chip-slurm | infer-slurm) kind=DRIVER ;;
  esac
  memory=GEOCHIP_${kind}_MEMORY
  if [ "$1" = evaluate ]; then memory=GEOCHIP_DRIVER_MEMORY; fi
  case ${2,,} in
    *qos*) found=GEOCHIP_QOS ;;
    *account*) found=GEOCHIP_ACCOUNT ;;
    *gres* | *gpu*) if [ "$kind" = GPU ]; then found=GEOCHIP_GPU_GRES; fi ;;
    *memory*) found=$memory ;;
    *"time limit"* | *timelimit*) found=$(variable_of_time "$1") ;;
    *partition*) found=GEOCHIP_${kind}_PARTITION ;;
    *"unrecognized option"* | *"invalid option"*) found=GEOCHIP_DIRECTIVES ;;
  esac
  if [ -z "$found" ]; then
    found="what its options come from: GEOCHIP_ACCOUNT, GEOCHIP_QOS, GEOCHIP_${kind}_PARTITION, $memory, $(variable_of_time "$1")"
    if [ "$kind" = GPU ]; then found+=", GEOCHIP_GPU_GRES, GEOCHIP_GPU_CORES"; fi
    found+=" or GEOCHIP_DIRECTIVES"
  fi
  echo "$found"
}

variable_of_time() { # STEP
  case $1-$GEOCHIP_KIND in
    train-* | infer-srun | infer-local) echo GEOCHIP_GPU_TIME ;;
    chip-slurm | infer-slurm) echo GEOCHIP_DRIVER_TIME ;;
    *) echo GEOCHIP_CPU_TIME ;;
  esac
}

# With these kinds the workers are in the jobs of the steps: only from inside of such a job can be seen what they will see.
how_to_look_from_a_node() {
  local option
  local -a asked=()
  sbatch_options infer
  for option in "${OPTIONS[@]}"; do
    case $option in
      --nodes=* | --job-name=* | --output=* | --open-mode=* | --requeue | --signal=* | --export=*) ;;
      *) asked+=("$option") ;;
    esac
  done
  # One node tells.
  asked+=(--nodes=1 --output=geochip-doctor-%j.out
    "--wrap=$(printf '%q ' "$GEOCHIP_CLUSTER_DIR/pipeline.sh" --doctor "$OUT" "$RUN_FILE")")
  say warn node "with GEOCHIP_KIND=$GEOCHIP_KIND all work is done in the jobs of the steps, and this machine says little about their nodes; to look from there: sbatch $(printf '%q ' "${asked[@]}")"
}

MADE=()
make_out() { # It goes away again at the end if it stays empty.
  local path=$OUT
  until [ -d "$path" ]; do
    MADE+=("$path")
    path=$(dirname "$path")
  done
  mkdir -p "$OUT" || fail "$OUT cannot be made; choose another directory" 1
  trap 'if [ ${#MADE[@]} -gt 0 ]; then rmdir "${MADE[@]}" 2>/dev/null || true; fi' EXIT
}

# Ends the script.
run_doctor() {
  local status=0 steps=0
  find_run_file
  if [ -e "$OUT/logs/directory" ]; then go_where_it_began; fi
  # Inside a job that holds the workers too, sbatch need not be allowed.
  if [ -z "${SLURM_JOB_ID:-}" ] || [ "$GEOCHIP_KIND" = slurm ]; then (leave_surrounding_job && examine_steps) || steps=1; fi
  if [ -z "${SLURM_JOB_ID:-}" ] && [ "$GEOCHIP_KIND" != slurm ]; then
    how_to_look_from_a_node
    # The rest would be judged by this machine's memory, GPU and disks.
    if [ "$GEOCHIP_KIND" = local ]; then end_doctor 0 "$steps"; fi
  fi
  prologue
  # A directory that is not there cannot be bound.
  if [ -n "$GEOCHIP_IMAGE" ]; then make_out; fi
  dask_flags "$GEOCHIP_CHIP_WORKERS"
  python_command --driver
  "${PYTHON_COMMAND[@]}" -m geochip.doctor --config "$RUN_FILE" --run_dir "$OUT" "${FLAGS[@]}" "${DOCTOR_OPTIONS[@]}" || status=$?
  end_doctor "$status" "$steps"
}

end_doctor() { # ITS_EXIT_CODE THAT_OF_THE_STEPS
  if [ "$1" -eq 0 ] && [ "$2" -ne 0 ]; then
    fail "a run would fail all the same: see the lines above that begin with FAIL and name a step" 1
  fi
  exit "$1"
}

read_options "$@"
[ ${#REST[@]} -ge 1 ] && [ ${#REST[@]} -le 2 ] && [ -n "${REST[0]}" ] && [[ ${REST[0]} != -* ]] || usage
read_arguments cluster/pipeline.sh "${REST[@]}"
load_site
export GEOCHIP_CLUSTER_DIR
if [ -n "${GEOCHIP_SITE:-}" ]; then
  GEOCHIP_SITE=$(absolute "$GEOCHIP_SITE")
  export GEOCHIP_SITE
fi
if [ -n "$DOCTOR" ]; then run_doctor; fi
command -v sbatch >/dev/null || fail "there is no sbatch here: run this on a login node of the cluster (module load slurm, on some sites)"
find_run_file
if [ -z "$DRY_RUN" ]; then refuse_a_second_submission; fi
keep_run_file ${DRY_RUN:+--look}
if [ -z "$DRY_RUN" ]; then
  make_logs
  go_where_it_began
fi
leave_surrounding_job

echo "run       $OUT"
echo "run file  $RUN_FILE"
JOBS=()
JOB=""
LOGS=""
for step in "${STEPS[@]}"; do
  if [[ " ${WANTED[*]} " == *" $step "* ]]; then
    submit "$step" "$JOB"
    JOBS+=("$JOB")
    LOGS+=" $(printf %q "$OUT/logs/$step-$JOB.out")"
  else
    printf '%-9s not submitted: not in --steps\n' "$step"
  fi
done
if [ -n "$DRY_RUN" ]; then exit; fi
cat <<TEXT

Watch:    squeue --jobs=$(IFS=,; echo "${JOBS[*]}")
          tail -F${LOGS}
End:      scancel ${JOBS[*]}
Go on:    $(printf '%q ' "$0" "$OUT")  (after an end of any kind; finished work is kept)
Result:   $OUT/eval.json
TEXT
