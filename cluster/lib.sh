# shellcheck shell=bash
# For pipeline.sh and the batch scripts, which source it: site.env turned into sbatch's options and geochip's flags.
# It sets, for those who call its functions, the variables in capitals.

SITE_VARIABLES=(
  ACCOUNT QOS DIRECTIVES SKIP_DIRECTIVES PROLOGUE PYTHON IMAGE BINDS KIND CHIP_WORKERS INFER_WORKERS WAIT_MINUTES INTERFACE
  GPU_INTERFACE SCHEDULER_INTERFACE DASHBOARD LOCAL_DIRECTORY PROFILES CPU_PARTITION CPU_CORES CPU_MEMORY CPU_TIME GPU_PARTITION GPU_GRES GPU_CORES
  GPU_MEMORY GPU_TIME TRAIN_NODES TRAIN_RANKS DRIVER_PARTITION DRIVER_MEMORY DRIVER_TIME MAX_REQUEUES RUN_FILE
)
# What counts where site.env says nothing; it names each of these (a test compares them).
SITE_DEFAULTS=(
  KIND=slurm CHIP_WORKERS=4 INFER_WORKERS=4 DASHBOARD=no CPU_CORES=1 CPU_MEMORY=4G CPU_TIME=01:00:00
  GPU_CORES=4 GPU_MEMORY=16G GPU_TIME=02:00:00 TRAIN_NODES=1 DRIVER_MEMORY=4G DRIVER_TIME=24:00:00 MAX_REQUEUES=10
)
NOTICE=300 # seconds before a job's end in which it is told to stop; stands in the batch scripts, too

fail() { # TEXT [EXIT_CODE]
  printf 'geochip: error: %s\n' "$1" >&2
  exit "${2:-2}"
}

absolute() { # PATH: without resolving links, so that it stays as a person knows it
  case $1 in
    /*) printf '%s\n' "$1" ;;
    *) printf '%s\n' "$PWD/$1" ;;
  esac
}

# ---- site.env

load_site() {
  local file name value
  file=${GEOCHIP_SITE:-$GEOCHIP_CLUSTER_DIR/site.env}
  [ -r "$file" ] || fail "$file cannot be read; GEOCHIP_SITE names the file that describes the site (default: cluster/site.env)"
  # Every value would end in an invisible character.
  if grep -q $'\r' "$file"; then
    fail "$file has the line ends of Windows; take them out: dos2unix $(printf '%q' "$file"), or sed -i 's/\\r\$//' $(printf '%q' "$file")"
  fi
  bash -n "$file" || fail "$file: bash cannot read it, for the reason above; write NAME=value, quoted where it has spaces"
  while IFS= read -r name || [ -n "$name" ]; do
    [[ " ${SITE_VARIABLES[*]} " == *" $name "* ]] ||
      fail "$file: there is no variable GEOCHIP_$name; there are GEOCHIP_{$(IFS=,; echo "${SITE_VARIABLES[*]}")}"
  done < <(sed -n 's/^[[:space:]]*\(export[[:space:]]\{1,\}\)\{0,1\}GEOCHIP_\([A-Za-z0-9_]*\)=.*/\2/p' "$file")
  unset GEOCHIP_DIRECTIVES GEOCHIP_SKIP_DIRECTIVES GEOCHIP_PROLOGUE GEOCHIP_BINDS
  # A person's file, which may name variables that are not set everywhere.
  set +u
  # shellcheck source=site.env
  . "$file"
  set -u
  check_lists
  take_sbatch_defaults
  # For geochip's own words: what they name has to be changed there.
  export GEOCHIP_SITE_FILE
  GEOCHIP_SITE_FILE=$(absolute "$file")
  note_what_is_given
  # shellcheck disable=SC2034 # for train.sbatch
  RANKS_GIVEN=${GEOCHIP_TRAIN_RANKS:-}
  # On one node there is one process for the GPU.
  if [ "${GEOCHIP_KIND:-}" = local ] && [ -n "${GEOCHIP_GPU_GRES:-}" ]; then : "${GEOCHIP_INFER_WORKERS:=1}"; fi
  for name in "${SITE_DEFAULTS[@]}"; do
    value=GEOCHIP_${name%%=*}
    if [ -z "${!value:-}" ]; then printf -v "$value" %s "${name#*=}"; fi
  done
  : "${GEOCHIP_PYTHON:=}" "${GEOCHIP_IMAGE:=}" "${GEOCHIP_GPU_GRES:=}"
  : "${GEOCHIP_DRIVER_PARTITION:=${GEOCHIP_CPU_PARTITION:-}}"
  : "${GEOCHIP_TRAIN_RANKS:=$(gpus_in "$GEOCHIP_GPU_GRES")}"
  : "${GEOCHIP_GPU_INTERFACE:=${GEOCHIP_INTERFACE:-}}"
  check_site
  # Jobs may wait for hours where many want the same GPUs. A driver whose own time runs out begins it anew.
  if [ "$GEOCHIP_KIND" = slurm ]; then : "${GEOCHIP_WAIT_MINUTES:=$(($(seconds_of "$GEOCHIP_DRIVER_TIME") / 120))}"; fi
}

note_what_is_given() { # sets GIVEN: a profile has the word where site.env has none
  local name value
  GIVEN=" "
  for name in "${SITE_VARIABLES[@]}"; do
    value=GEOCHIP_$name
    if [ -n "${!value:-}" ]; then GIVEN+="$name "; fi
  done
}

# A string is a list of one word: of several, written without brackets, sbatch would make one strange option.
check_lists() {
  local name value
  for name in DIRECTIVES SKIP_DIRECTIVES BINDS; do
    value=GEOCHIP_$name
    if [[ $(declare -p "$value" 2>/dev/null) =~ ^declare\ -[A-Za-z]*a ]]; then continue; fi
    value=${!value:-}
    if [ -z "$value" ]; then unset "GEOCHIP_$name"; fi
    if [[ $value == *[[:space:]][-/]* ]]; then
      fail "GEOCHIP_$name=\"$value\" is one word to bash; in brackets it is a list: GEOCHIP_$name=($value)"
    fi
  done
  GEOCHIP_DIRECTIVES=("${GEOCHIP_DIRECTIVES[@]}") GEOCHIP_SKIP_DIRECTIVES=("${GEOCHIP_SKIP_DIRECTIVES[@]}")
  GEOCHIP_PROLOGUE=("${GEOCHIP_PROLOGUE[@]}") GEOCHIP_BINDS=("${GEOCHIP_BINDS[@]}")
}

# What a person's own defaults for sbatch say counts where site.env says nothing; exported, for the jobs of workers, which
# are submitted from inside a job. In a job they are somebody else's, of the job itself.
take_sbatch_defaults() {
  local name value option
  if [ -z "${SLURM_JOB_ID:-}" ]; then
    : "${GEOCHIP_ACCOUNT:=${SBATCH_ACCOUNT:-}}" "${GEOCHIP_QOS:=${SBATCH_QOS:-}}"
    : "${GEOCHIP_CPU_PARTITION:=${SBATCH_PARTITION:-}}" "${GEOCHIP_GPU_PARTITION:=${SBATCH_PARTITION:-}}"
    GEOCHIP_INHERITED=""
    for name in RESERVATION CONSTRAINT WCKEY; do
      value=SBATCH_$name
      if [ -n "${!value:-}" ] && ! is_among "--${name,,}" "${GEOCHIP_DIRECTIVES[@]}"; then
        GEOCHIP_INHERITED+="--${name,,}=${!value}"$'\n'
      fi
    done
    export GEOCHIP_ACCOUNT GEOCHIP_QOS GEOCHIP_CPU_PARTITION GEOCHIP_GPU_PARTITION GEOCHIP_INHERITED
  fi
  while IFS= read -r option; do
    if [ -n "$option" ]; then GEOCHIP_DIRECTIVES+=("$option"); fi
  done <<<"${GEOCHIP_INHERITED:-}"
}

check_site() {
  local name value word
  for name in "${SITE_VARIABLES[@]}"; do
    local -n list=GEOCHIP_$name
    for word in "${list[@]}"; do
      # Lines of a shell may be some, divided by tabs.
      if [ "$name" = PROLOGUE ]; then word=${word//[$'\n\t']/}; fi
      [[ $word != *[[:cntrl:]]* ]] ||
        fail "GEOCHIP_$name=$(printf %q "$word") is not allowed: must be one line of text, without line breaks or other control characters"
    done
  done
  case $GEOCHIP_KIND in
    slurm | srun | local) ;;
    *) fail "GEOCHIP_KIND=$GEOCHIP_KIND is not allowed: must be slurm, srun or local" ;;
  esac
  case $GEOCHIP_DASHBOARD in
    yes | no) ;;
    *) fail "GEOCHIP_DASHBOARD=$GEOCHIP_DASHBOARD is not allowed: must be yes or no" ;;
  esac
  for name in CHIP_WORKERS INFER_WORKERS CPU_CORES GPU_CORES TRAIN_NODES TRAIN_RANKS; do
    value=GEOCHIP_$name
    [[ ${!value} =~ ^[1-9][0-9]*$ ]] || fail "$value=${!value} is not allowed: must be a whole number, at least 1"
  done
  [[ $GEOCHIP_MAX_REQUEUES =~ ^[0-9]+$ ]] ||
    fail "GEOCHIP_MAX_REQUEUES=$GEOCHIP_MAX_REQUEUES is not allowed: must be a whole number, at least 0"
  for name in CPU_MEMORY GPU_MEMORY DRIVER_MEMORY; do
    value=GEOCHIP_$name
    [[ ${!value} =~ ^[1-9][0-9]*[MG]$ ]] || fail "$value=${!value} is not allowed: must be a whole number with M or G, such as 8G"
  done
  for name in CPU_TIME GPU_TIME DRIVER_TIME; do
    value=GEOCHIP_$name
    [ "$(seconds_of "${!value}")" -ge $((2 * NOTICE)) ] ||
      fail "$value=${!value} is not allowed: must be a time as Slurm writes it (150, 02:30:00 or 1-12), at least $((2 * NOTICE / 60)) minutes, since jobs are told to stop $((NOTICE / 60)) minutes before their end"
  done
  if [ -n "$GEOCHIP_IMAGE" ] && [ "$GEOCHIP_KIND" != local ] && [ -z "$GEOCHIP_PYTHON" ]; then
    fail "GEOCHIP_IMAGE with GEOCHIP_KIND=$GEOCHIP_KIND needs GEOCHIP_PYTHON as well, a Python outside of the image that has geochip: Slurm's commands are not in the image; or use GEOCHIP_KIND=local"
  fi
  if [ "$GEOCHIP_KIND" = local ] && [ -n "$GEOCHIP_GPU_GRES" ] && [ "$GEOCHIP_INFER_WORKERS" -gt 1 ]; then
    fail "GEOCHIP_INFER_WORKERS=$GEOCHIP_INFER_WORKERS is not allowed with GEOCHIP_KIND=local: one process uses the GPU of the node; leave it out, or use slurm or srun"
  fi
  check_slices "$GEOCHIP_GPU_GRES" "GEOCHIP_GPU_GRES=$GEOCHIP_GPU_GRES is a MIG slice"
}

seconds_of() { # A walltime of Slurm: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S. 0 for anything else.
  local days=0 rest=$1 a b c
  [[ $rest =~ ^([0-9]+-)?[0-9]+(:[0-9]+){0,2}$ ]] || { echo 0; return; }
  if [[ $rest == *-* ]]; then days=${rest%%-*} rest=${rest#*-}; fi
  IFS=: read -r a b c <<<"$rest"
  if [[ $1 == *-* || -n $c ]]; then # hours first; 10#: 08 is no octal number
    echo $((10#$days * 86400 + 10#$a * 3600 + 10#${b:-0} * 60 + 10#${c:-0}))
  else
    echo $((10#$a * 60 + 10#${b:-0}))
  fi
}

gpus_in() { # GRES: how many GPUs it asks for; 1 when there is none
  local part total=0
  local IFS=,
  for part in $1; do
    case $part in
      gpu*:*[!0-9]* | gpu) total=$((total + $([[ ${part##*:} =~ ^[0-9]+$ ]] && echo "${part##*:}" || echo 1))) ;;
      gpu:*) total=$((total + ${part##*:})) ;;
    esac
  done
  echo $((total > 0 ? total : 1))
}

# NCCL takes two slices of one GPU for the same device and refuses; the seven slices of a card look like seven GPUs to Slurm.
check_slices() { # TEXT_WITH_THE_SLICE'S_NAME WHAT_IT_IS
  local ranks=$((GEOCHIP_TRAIN_NODES * GEOCHIP_TRAIN_RANKS))
  [[ $1 =~ [0-9]+g\.[0-9]+gb || $1 == *MIG* ]] || return 0
  [ "$ranks" -eq 1 ] ||
    fail "$2, and one slice is one rank: slices cannot add up their gradients (NCCL refuses), so $GEOCHIP_TRAIN_NODES x $GEOCHIP_TRAIN_RANKS = $ranks ranks cannot train together; ask for one slice with GEOCHIP_TRAIN_NODES=1 and GEOCHIP_TRAIN_RANKS=1, or for whole GPUs"
}

# ---- The run

read_arguments() { # "HOW IT IS CALLED" ARGUMENTS...: sets OUT and RUN_FILE
  local usage=$1
  shift
  if [ $# -lt 1 ] || [ $# -gt 2 ] || [ -z "$1" ] || [[ $1 == -* ]]; then
    cat >&2 <<TEXT
Usage: $usage OUT [RUN.yaml]
  OUT       directory of the run: all results go there, logs to OUT/logs. If the run is there already, it goes on.
  RUN.yaml  the run file; default: OUT/run.yaml, where there is one, else GEOCHIP_RUN_FILE of site.env
TEXT
    exit 2
  fi
  OUT=$(absolute "${1%/}")
  # Slurm replaces %j and the like in the names of logs, and takes a backslash for a quote.
  [[ $OUT != *[[:cntrl:]]* ]] || fail "$(printf %q "$OUT") has a line break or another control character in its path; choose another name"
  [[ $OUT != *[%\\]* ]] || fail "$OUT: Slurm's log files cannot be in a directory with % or \\ in its path; choose another name"
  RUN_FILE=${2:-}
  if [ -z "$RUN_FILE" ] && [ -e "$OUT/run.yaml" ]; then RUN_FILE=$OUT/run.yaml; fi
}

find_run_file() { # after load_site
  : "${RUN_FILE:=${GEOCHIP_RUN_FILE:-}}"
  [ -n "$RUN_FILE" ] || fail "no run file: name one after $OUT, or set GEOCHIP_RUN_FILE in site.env; examples/vegas.yaml is one"
  RUN_FILE=$(absolute "$RUN_FILE")
  [ -r "$RUN_FILE" ] && [ -f "$RUN_FILE" ] || fail "$RUN_FILE: there is no such run file, or it cannot be read"
}

# ---- Options and flags

# shellcheck disable=SC2153 # load_site sets them, from SITE_DEFAULTS
sbatch_options() { # STEP: sets OPTIONS, from resources to logs
  local option step=$1 memory=${GEOCHIP_CPU_MEMORY%[MG]} unit=${GEOCHIP_CPU_MEMORY: -1}
  local -a all one=(--nodes=1 --ntasks=1)
  local -a cpu=("--time=$GEOCHIP_CPU_TIME" ${GEOCHIP_CPU_PARTITION:+"--partition=$GEOCHIP_CPU_PARTITION"})
  local -a gpu=("--cpus-per-task=$GEOCHIP_GPU_CORES" "--mem=$GEOCHIP_GPU_MEMORY" "--time=$GEOCHIP_GPU_TIME"
    ${GEOCHIP_GPU_PARTITION:+"--partition=$GEOCHIP_GPU_PARTITION"} ${GEOCHIP_GPU_GRES:+"--gres=$GEOCHIP_GPU_GRES"})
  case $step-$GEOCHIP_KIND in
    train-*) all=("--nodes=$GEOCHIP_TRAIN_NODES" --ntasks-per-node=1 "${gpu[@]}") ;;
    evaluate-*) all=("${one[@]}" --cpus-per-task=1 "--mem=$GEOCHIP_DRIVER_MEMORY" "${cpu[@]}") ;;
    *-slurm) all=("${one[@]}" --cpus-per-task=1 "--mem=$GEOCHIP_DRIVER_MEMORY" "--time=$GEOCHIP_DRIVER_TIME"
      ${GEOCHIP_DRIVER_PARTITION:+"--partition=$GEOCHIP_DRIVER_PARTITION"}) ;;
    chip-srun) all=("--ntasks=$GEOCHIP_CHIP_WORKERS" "--cpus-per-task=$GEOCHIP_CPU_CORES"
      "--mem-per-cpu=$(megabytes_a_core)M" "${cpu[@]}") ;;
    chip-local) all=("${one[@]}" "--cpus-per-task=$((GEOCHIP_CPU_CORES * GEOCHIP_CHIP_WORKERS))"
      "--mem=$((memory * GEOCHIP_CHIP_WORKERS))$unit" "${cpu[@]}") ;;
    infer-srun) all=("--nodes=$GEOCHIP_INFER_WORKERS" --ntasks-per-node=1 "${gpu[@]}") ;;
    infer-local) all=("${one[@]}" "${gpu[@]}") ;;
  esac
  all+=(${GEOCHIP_ACCOUNT:+"--account=$GEOCHIP_ACCOUNT"} ${GEOCHIP_QOS:+"--qos=$GEOCHIP_QOS"}
    "--job-name=$step-geochip" "--output=$OUT/logs/$step-%j.out" --open-mode=append --requeue "--signal=B:USR2@$NOTICE"
    --export=ALL)
  OPTIONS=()
  for option in "${all[@]}"; do
    if ! skipped "$option"; then OPTIONS+=("$option"); fi
  done
  OPTIONS+=("${GEOCHIP_DIRECTIVES[@]}")
}

long_name() { # OPTION OF SBATCH: its name without a value; sets NAME. Ways to ask for memory are one.
  NAME=${1%%[= ]*}
  case $NAME in
    -A) NAME=--account ;;
    -c) NAME=--cpus-per-task ;;
    -C) NAME=--constraint ;;
    -J) NAME=--job-name ;;
    -n) NAME=--ntasks ;;
    -N) NAME=--nodes ;;
    -o) NAME=--output ;;
    -p) NAME=--partition ;;
    -q) NAME=--qos ;;
    -t) NAME=--time ;;
    --mem-per-cpu) NAME=--mem ;;
  esac
}

skipped() { # OPTION OF SBATCH: whether the site refuses it
  is_among "$1" "${GEOCHIP_SKIP_DIRECTIVES[@]}"
}

is_among() { # OPTION OF SBATCH, OTHERS...: whether one of the others is the same one, with whatever value
  local other option
  long_name "$1"
  option=$NAME
  shift
  for other in "$@"; do
    long_name "$other"
    if [ "$NAME" = "$option" ]; then return 0; fi
  done
  return 1
}

# The batch script without those of its #SBATCH lines that the site refuses: a copy, where there are any.
# shellcheck disable=SC2034 # for pipeline.sh
batch_script() { # STEP: sets SCRIPT, where it is or is to be, and SCRIPT_TEXT
  local line
  SCRIPT=$GEOCHIP_CLUSTER_DIR/$1.sbatch SCRIPT_TEXT=""
  while IFS= read -r line; do
    if [[ $line == "#SBATCH "* ]] && skipped "${line#"#SBATCH "}"; then
      SCRIPT=$OUT/logs/$1.sbatch
    else
      SCRIPT_TEXT+=$line$'\n'
    fi
  done <"$GEOCHIP_CLUSTER_DIR/$1.sbatch"
}

megabytes_a_core() { # of a chipping worker, rounded up
  local memory=${GEOCHIP_CPU_MEMORY%[MG]}
  if [[ $GEOCHIP_CPU_MEMORY == *G ]]; then memory=$((memory * 1024)); fi
  echo $(((memory + GEOCHIP_CPU_CORES - 1) / GEOCHIP_CPU_CORES))
}

python_command() { # [--driver]: sets PYTHON_COMMAND
  local path binds=""
  PYTHON_COMMAND=("${GEOCHIP_PYTHON:-python}")
  if [ -n "$GEOCHIP_IMAGE" ] && { [ "${1:-}" != --driver ] || [ "$GEOCHIP_KIND" = local ]; }; then
    local -a paths=("$OUT")
    if [ "$(dirname "$RUN_FILE")" != "$OUT" ]; then paths+=("$(dirname "$RUN_FILE")"); fi
    paths+=("${GEOCHIP_BINDS[@]}")
    # With a variable in it, it is known on the node only; those are below /tmp as a rule, which the image sees anyway.
    if [ -n "${GEOCHIP_LOCAL_DIRECTORY:-}" ] && [[ $GEOCHIP_LOCAL_DIRECTORY != *[\$~]* ]]; then
      paths+=("$GEOCHIP_LOCAL_DIRECTORY")
    fi
    # Where pretrained encoders were put, if that is not in the home directory.
    if [ -d "${HF_HOME:-}" ]; then paths+=("$(absolute "$HF_HOME")"); fi
    for path in "${paths[@]}"; do
      # With its own options it would be another path in the image; and a comma cannot be quoted.
      [[ $path != *[,:]* ]] || fail "$path: Apptainer cannot bind a directory with a comma or a colon in its path"
      binds+=",$path"
    done
    PYTHON_COMMAND=(apptainer exec --nv --bind "${binds#,}" "$GEOCHIP_IMAGE" python)
  fi
}

as_list() { # WORDS...: a YAML list of quoted strings
  local word list=""
  for word in "$@"; do
    word=${word//\\/\\\\} word=${word//$'\n'/\\n} word=${word//$'\t'/\\t}
    list+=", \"${word//\"/\\\"}\""
  done
  printf '[%s]' "${list#, }"
}

dask_flags() { # WORKERS: sets FLAGS
  local section launcher prefix value name interface
  local -a PYTHON_COMMAND # the workers'; that of the driver may be another
  FLAGS=("--cluster.kind=$GEOCHIP_KIND" "--cluster.workers=$1")
  if [ "$GEOCHIP_DASHBOARD" = yes ]; then FLAGS+=(--cluster.dashboard=true); fi
  if [ "$GEOCHIP_KIND" = local ]; then return; fi
  python_command
  printf -v launcher '%q ' "${PYTHON_COMMAND[@]}"
  FLAGS+=(
    ${GEOCHIP_WAIT_MINUTES:+"--cluster.wait_minutes=$GEOCHIP_WAIT_MINUTES"}
    ${GEOCHIP_PROFILES:+"--cluster.profiles=$GEOCHIP_PROFILES"}
    ${GEOCHIP_SCHEDULER_INTERFACE:+"--cluster.scheduler_interface=$GEOCHIP_SCHEDULER_INTERFACE"}
  )
  for section in cpu gpu; do
    prefix=--cluster.$section interface=${GEOCHIP_INTERFACE:-}
    if [ "$section" = gpu ]; then interface=$GEOCHIP_GPU_INTERFACE; fi
    for name in PARTITION GRES CORES MEMORY TIME; do
      value=GEOCHIP_${section^^}_$name
      value=${!value:-}
      if [ -n "${GEOCHIP_PROFILES:-}" ] && [[ $GIVEN != *" ${section^^}_$name "* ]]; then value=""; fi
      case $name in
        TIME) name=walltime ;;
        MEMORY) value+=${value:+iB} ;;
      esac
      if [ -n "$value" ]; then FLAGS+=("$prefix.${name,,}=$value"); fi
    done
    FLAGS+=(
      ${GEOCHIP_PROFILES:+"$prefix.profile=geochip-$section"}
      ${GEOCHIP_ACCOUNT:+"$prefix.account=$GEOCHIP_ACCOUNT"}
      ${GEOCHIP_QOS:+"$prefix.qos=$GEOCHIP_QOS"}
      ${interface:+"$prefix.interface=$interface"}
      ${GEOCHIP_LOCAL_DIRECTORY:+"$prefix.local_directory=$GEOCHIP_LOCAL_DIRECTORY"}
      "$prefix.log_directory=$OUT/logs"
    )
    if [ -z "${GEOCHIP_PROFILES:-}" ] || [ -n "$GEOCHIP_PYTHON$GEOCHIP_IMAGE" ]; then
      FLAGS+=("$prefix.python=${launcher% }")
    fi
    if [ ${#GEOCHIP_PROLOGUE[@]} -gt 0 ]; then FLAGS+=("$prefix.prologue=$(as_list "${GEOCHIP_PROLOGUE[@]}")"); fi
    # They are sbatch's. The workers of srun are in a job that has been given them, and srun does not know them all.
    if [ "$GEOCHIP_KIND" != slurm ]; then continue; fi
    if [ ${#GEOCHIP_DIRECTIVES[@]} -gt 0 ]; then FLAGS+=("$prefix.directives=$(as_list "${GEOCHIP_DIRECTIVES[@]}")"); fi
    if [ ${#GEOCHIP_SKIP_DIRECTIVES[@]} -gt 0 ]; then
      FLAGS+=("$prefix.skip_directives=$(as_list "${GEOCHIP_SKIP_DIRECTIVES[@]}")")
    fi
  done
}

# ---- In a job

enter_job() { # STEP: everything that a batch script does before its work
  [ -n "${SLURM_JOB_ID:-}" ] || fail "$1.sbatch runs in a Slurm job: sbatch cluster/$1.sbatch $OUT, or cluster/pipeline.sh $OUT"
  # Put back into the queue it goes on with what it began with, whatever became of the file that was named then.
  if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -e "$OUT/run.yaml" ]; then RUN_FILE=$OUT/run.yaml; fi
  find_run_file
  keep_run_file
  make_logs
  go_where_it_began
  sweep_keys
  # Where this was submitted alone: pipeline.sh knows its own jobs already.
  grep -qsFx "$1 $SLURM_JOB_ID" "$OUT/logs/jobs" || echo "$1 $SLURM_JOB_ID" >>"$OUT/logs/jobs"
  echo "geochip $1: job $SLURM_JOB_ID on ${SLURM_JOB_NODELIST:-$(hostname)}, start $((${SLURM_RESTART_COUNT:-0} + 1)), $(date '+%F %T')"
  prologue
}

# The run's own copy: the file that was named may be edited while the jobs wait in the queue.
keep_run_file() { # [--look]: write nothing
  local kept=$OUT/run.yaml
  if [ -e "$kept" ]; then
    [ "$RUN_FILE" -ef "$kept" ] || cmp -s "$RUN_FILE" "$kept" ||
      fail "$OUT was begun with another run file: $kept differs from $RUN_FILE. To go on with it, leave the run file out; to begin another run, choose another directory; to change this one, edit $kept"
  elif [ "${1:-}" != --look ]; then
    # Whole or not at all; another step of this run may be faster.
    { mkdir -p "$OUT" && cp -- "$RUN_FILE" "$kept.$$" && { mv -n -- "$kept.$$" "$kept" || [ -e "$kept" ]; } && rm -f -- "$kept.$$"; } ||
      fail "$OUT cannot be written; choose another directory" 1
  fi
  RUN_FILE=$kept
}

# Relative paths in a run file are meant from there, wherever the run is gone on with.
go_where_it_began() { # after make_logs
  local file=$OUT/logs/directory began
  if [ ! -e "$file" ]; then printf '%s\n' "$PWD" >"$file"; fi
  began=$(cat "$file")
  cd "$began" 2>/dev/null ||
    printf 'geochip: warning: %s\n' "this run was begun in $began, from which relative paths of its run file are meant, and which is not on $(hostname); if it has any, write where that is now into $file" >&2
}

# Keys of drivers that were killed: those that live touch theirs every minute. By the file server's clock.
sweep_keys() {
  local mark
  if [ ! -d "$OUT/.keys" ]; then return 0; fi
  if mark=$(mktemp "$OUT/.keys/.now_XXXXXX"); then
    touch -r "$mark" -d '-5 minutes' "$mark" &&
      find "$OUT/.keys" -mindepth 1 -maxdepth 1 ! -newer "$mark" -exec rm -rf {} + || true
    rm -f "$mark" || true
  fi
  rmdir "$OUT/.keys" || true
} 2>/dev/null

make_logs() {
  # Results have the rights that the person's umask gives. Logs may name machines and paths: nobody else's business.
  { mkdir -p "$OUT" && (umask 077 && mkdir -p "$OUT/logs"); } || fail "$OUT/logs cannot be made; choose another directory" 1
}

prologue() {
  local line
  for line in "${GEOCHIP_PROLOGUE[@]}"; do
    # Modules are seldom written for set -eu.
    set +eu
    eval "$line" || fail "GEOCHIP_PROLOGUE: this line of site.env failed on $(hostname): $line" 1
    set -eu
  done
}

TOLD=""
CHILD=""
on_notice() {
  if [ -n "$TOLD" ]; then return; fi
  TOLD=yes
  echo "geochip: told to stop; stopping where the work can go on from ($(date '+%F %T'))"
  "$STOP"
}
touch_stop_file() { mkdir -p "$OUT/train" && : >"$OUT/train/stop"; } # rank 0 looks for it at each step
interrupt_child() { kill -INT "$CHILD" 2>/dev/null || true; }

# Runs a command to its end while this shell can still be told to stop, with USR2, and sets STATUS.
run_until_told() { # HOW_TO_STOP COMMAND...
  STOP=$1
  shift
  # With job control: without it bash starts what runs in the background with SIGINT ignored.
  set -m
  "$@" </dev/null &
  CHILD=$!
  set +m
  trap on_notice USR2
  # Slurm sends TERM to every process of the job. This one stays to see how the others end.
  trap 'if [ "$STOP" != interrupt_child ]; then on_notice; fi' TERM
  # A trapped signal ends `wait`, not what it waits for.
  while kill -0 "$CHILD" 2>/dev/null; do wait "$CHILD" || true; done
  STATUS=0
  wait "$CHILD" || STATUS=$?
  trap - USR2 TERM
}

# Slurm's controller may be busy or restarting just when many jobs end.
patiently() { # COMMAND...: tries for two minutes
  local seconds said
  for seconds in 1 4 10 15 30 30 30; do
    if said=$("$@"); then
      printf '%s\n' "$said"
      return
    fi
    sleep "$seconds"
  done
  "$@"
}

# Puts the job back into the queue, where it goes on; ends the script.
requeue() { # REASON
  local state restarts=${SLURM_RESTART_COUNT:-0}
  state=$(patiently scontrol show job --oneliner "$SLURM_JOB_ID") ||
    fail "$1; not put back into the queue, since Slurm does not say how the job is, for the reason above; submitted again it goes on from here" 1
  state=$(sed -n 's/.* JobState=\([A-Z_]*\).*/\1/p' <<<"$state")
  # A job that a person cancels must not come back; one that was preempted Slurm puts back itself, where the site says so.
  [ "$state" = RUNNING ] ||
    fail "$1; not put back into the queue from here, since Slurm is ending the job (${state:-unknown}) and decides on that; submitted again it goes on from here" 1
  [ "$restarts" -lt "$GEOCHIP_MAX_REQUEUES" ] ||
    fail "$1; not put back into the queue a further time, after $restarts (GEOCHIP_MAX_REQUEUES=$GEOCHIP_MAX_REQUEUES); submitted again it goes on from here; consider a longer time limit" 1
  echo "geochip: $1; put back into the queue, to go on from here (restart $((restarts + 1)) of at most $GEOCHIP_MAX_REQUEUES)"
  patiently scontrol requeue "$SLURM_JOB_ID" || fail "the job could not be put back into the queue, for the reason above; submitted again it goes on from here" 1
  exit 0
}

# Runs one of geochip's commands that the driver of Dask's workers, or one process, does.
run_driver() { # MODULE FLAGS...
  python_command --driver
  run_until_told interrupt_child "${PYTHON_COMMAND[@]}" -m "geochip.$1" --config "$RUN_FILE" --run_dir "$OUT" "${@:2}"
  # What was told to stop may have been finished just then.
  if [ -n "$TOLD" ] && [ "$STATUS" -ne 0 ]; then requeue "stopped because the time was running out"; fi
  exit "$STATUS"
}
