#!/usr/bin/env bash
# Bring up a throw-away Slurm on this machine: a munged, a slurmctld and a few slurmd that play the nodes. See README.md.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: cluster/dev/up.sh DIR        then: . DIR/env.sh; sinfo; ...; cluster/dev/down.sh DIR

DIR is made, short (sockets lie in it), and removed by down.sh. From the environment:
  SLURM_DEV_NODES=2    nodes, named node1, node2, ...
  SLURM_DEV_CPUS=4     CPUs that each node claims to have; may be more than there are
  SLURM_DEV_MEM=8000   memory that each node claims to have, MB
  SLURM_DEV_GPUS=1     GPUs that each node claims to have
  SLURM_DEV_GRACE=0    seconds that a preempted job is given (GraceTime of the partition preempt)
  SLURM_DEV_ACCOUNTS=0 1: with accounting: only who has an account may submit, within its limits
  SLURM_DEV_STRICT=1   1: a job that its partition can never run is refused; 0: it waits for ever, as on many sites
  SLURM_DEV_PORT       first of NODES + 2 ports in a row; default: free ones, chosen at random
TEXT
}
fail() {
  printf 'up.sh: %s\n' "$1" >&2
  exit "${2:-2}"
}

[ $# -eq 1 ] || { usage >&2; exit 2; }
dir=$(readlink -m -- "$1")
nodes=${SLURM_DEV_NODES:-2}
cpus=${SLURM_DEV_CPUS:-4}
memory=${SLURM_DEV_MEM:-8000}
gpus=${SLURM_DEV_GPUS:-1}
grace=${SLURM_DEV_GRACE:-0}
accounts=${SLURM_DEV_ACCOUNTS:-0}
strict=${SLURM_DEV_STRICT:-1}

for setting in "SLURM_DEV_NODES=$nodes" "SLURM_DEV_CPUS=$cpus" "SLURM_DEV_MEM=$memory" "SLURM_DEV_GPUS=$gpus" \
  "SLURM_DEV_GRACE=$grace" "SLURM_DEV_ACCOUNTS=$accounts" "SLURM_DEV_STRICT=$strict" "SLURM_DEV_PORT=${SLURM_DEV_PORT:-0}"; do
  [[ $setting =~ =[0-9]+$ ]] || fail "$setting must be a whole number"
done
[ "$nodes" -ge 1 ] || fail "SLURM_DEV_NODES=$nodes must be at least 1"
[ "$(id -u)" = 0 ] || fail "run as root: slurmd makes namespaces and device files"
for program in munged slurmctld slurmd sinfo unshare; do
  command -v "$program" >/dev/null ||
    fail "$program is missing: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
done
if [ "$accounts" -gt 0 ]; then
  for program in slurmdbd mariadbd sacctmgr; do
    command -v "$program" >/dev/null ||
      fail "$program is missing: apt-get install --no-install-recommends slurmdbd mariadb-server-core"
  done
fi
[ "${#dir}" -le 80 ] || fail "$dir is too long: the path of a socket has at most 107 bytes; use something like /tmp/slurm"
[[ $dir != *[[:space:]\",%]* ]] || fail "$dir: Slurm's configuration takes no spaces, quotes, commas or % in it"
[ ! -e "$dir/pids" ] || fail "$dir is in use; cluster/dev/down.sh $dir first" 3

# Slurm has no way to ask the system for a port. Below 32768 the system gives none of them to others.
free_ports() {
  local port
  for ((port = $1; port <= $1 + nodes + 1; port++)); do
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then return 1; fi
  done
}
port=${SLURM_DEV_PORT:-}
if [ -z "$port" ]; then
  for _ in {1..50}; do
    port=$((24000 + RANDOM % 8000))
    if free_ports "$port"; then break; fi
  done
fi
free_ports "$port" || fail "ports $port to $((port + nodes + 1)) are taken; choose another SLURM_DEV_PORT" 3

umask 022
mkdir -p "$dir"/{etc,munge,spool,state,log,dev}
: >"$dir/pids"
: >"$dir/namespaces"
# By this down.sh knows the daemons.
export SLURM_DEV_DIRECTORY="$dir"

# What has been started is stopped again when not all of it comes up.
give_up() {
  trap - ERR
  echo "up.sh: $1; the logs are in $dir/log" >&2
  tail -n 5 "$dir"/log/*.out >&2 || true
  "$(dirname "$(readlink -f "$0")")/down.sh" "$dir" --keep
  exit 1
}
trap 'give_up "line $LINENO failed"' ERR
# Until the command succeeds, up to 20 s.
wait_for() {
  local attempt
  for ((attempt = 0; attempt < 100; attempt++)); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.2
  done
  give_up "nothing came of: $*"
}

# munge, with a key and a socket of its own: the system's are not touched.
(umask 077 && head -c 1024 /dev/urandom >"$dir/munge/key")
setsid munged --foreground --force --num-threads=2 --key-file="$dir/munge/key" --socket="$dir/munge/sock" \
  --pid-file="$dir/munge/munged.pid" --log-file="$dir/log/munged.log" --seed-file="$dir/munge/seed" \
  </dev/null >>"$dir/log/munged.out" 2>&1 &
echo "munged $!" >>"$dir/pids"

node_list="node[1-$nodes]" port_list="[$((port + 1))-$((port + nodes))]"
if [ "$nodes" = 1 ]; then node_list=node1 port_list=$((port + 1)); fi
gres_types="" node_gres=""
: >"$dir/etc/gres.conf"
if [ "$gpus" -gt 0 ]; then
  gres_types="GresTypes=gpu" node_gres="Gres=gpu:$gpus"
  for ((gpu = 0; gpu < gpus; gpu++)); do
    # A character device, since slurmd takes nothing else for a GPU; this one is /dev/null's.
    mknod "$dir/dev/nvidia$gpu" c 1 3
    echo "Name=gpu File=$dir/dev/nvidia$gpu" >>"$dir/etc/gres.conf"
  done
fi

accounting="AccountingStorageType=accounting_storage/none"
if [ "$accounts" -gt 0 ]; then
  accounting="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + nodes + 1))
AccountingStoragePass=$dir/munge/sock
AccountingStorageEnforce=associations,limits,qos"
fi

# FirstJobId: ports of trainings derive from job ids, and those of two such clusters on one machine must not meet.
# cred_expire: a requeued job waits for it, by default for two minutes.
# The partition members refuses every job for its account, since there is no accounting to say who is a member.
cat >"$dir/etc/slurm.conf" <<CONF
ClusterName=dev
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge/sock,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
EnforcePartLimits=$([ "$strict" -gt 0 ] && echo ALL || echo NO)
FirstJobId=$((RANDOM * 10 + 1))
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=512
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
KillWait=5
MinJobAge=600
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=60
$accounting
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/log/jobcomp.log
$gres_types
NodeName=$node_list NodeHostname=$node_list NodeAddr=127.0.0.1 Port=$port_list CPUs=$cpus RealMemory=$memory $node_gres State=UNKNOWN
PartitionName=DEFAULT Nodes=$node_list DefaultTime=00:30:00 MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=batch Default=YES
PartitionName=gpu
PartitionName=short MaxTime=00:10:00 DefaultTime=00:05:00
PartitionName=members AllowAccounts=members
PartitionName=preempt PriorityTier=1 PreemptMode=REQUEUE GraceTime=$grace
CONF
export SLURM_CONF="$dir/etc/slurm.conf"
echo "export SLURM_CONF=$SLURM_CONF" >"$dir/env.sh"

wait_for test -S "$dir/munge/sock"
if [ "$accounts" -gt 0 ]; then
  # A database of its own that asks nobody for a password, and slurmdbd before it: only its socket leads to it, in a
  # directory that is nobody else's.
  export MYSQL_UNIX_PORT="$dir/database/sock"
  (umask 077 && mkdir -p "$dir/database/data")
  # slurmdbd has a procedure stored: without the tables for that all limits would read as 0.
  { printf 'create database mysql;\nuse mysql;\n' && cat /usr/share/mysql/mysql_system_tables.sql; } |
    mariadbd --no-defaults --bootstrap --user=root --datadir="$dir/database/data" >"$dir/log/mariadb-bootstrap.out" 2>&1
  setsid mariadbd --no-defaults --user=root --datadir="$dir/database/data" --socket="$MYSQL_UNIX_PORT" \
    --pid-file="$dir/database/mariadbd.pid" --skip-networking --skip-grant-tables --innodb-buffer-pool-size=32M \
    --innodb-flush-log-at-trx-commit=0 </dev/null >"$dir/log/mariadbd.out" 2>&1 &
  echo "mariadbd $!" >>"$dir/pids"
  (umask 077 && cat >"$dir/etc/slurmdbd.conf") <<CONF
AuthType=auth/munge
AuthInfo=socket=$dir/munge/sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((port + nodes + 1))
SlurmUser=root
PidFile=$dir/slurmdbd.pid
LogFile=$dir/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
CommunicationParameters=NoInAddrAnyDBD
CONF
  wait_for test -S "$MYSQL_UNIX_PORT"
  # It looks for its configuration beside slurm.conf.
  setsid slurmdbd -D </dev/null >"$dir/log/slurmdbd.out" 2>&1 &
  echo "slurmdbd $!" >>"$dir/pids"
  wait_for sacctmgr --noheader list cluster
  sacctmgr --immediate --quiet add cluster dev >/dev/null
  sacctmgr --immediate --quiet add account science Description=science Organization=dev >/dev/null
  sacctmgr --immediate --quiet add user root Account=science >/dev/null
fi
setsid slurmctld -D -f "$SLURM_CONF" </dev/null >"$dir/log/slurmctld.out" 2>&1 &
echo "slurmctld $!" >>"$dir/pids"

# Each slurmd, and with it each job, in UTS and mount namespaces of its own: a host name and an /etc/hosts that knows the
# nodes. Nothing changes outside of them.
{
  cat /etc/hosts
  for ((n = 1; n <= nodes; n++)); do echo "127.0.0.1 node$n"; done
} >"$dir/etc/hosts"
for ((n = 1; n <= nodes; n++)); do
  mkdir -p "$dir/spool/node$n"
  # shellcheck disable=SC2016 # expanded by that bash, inside the namespaces
  setsid unshare --uts --mount --propagation slave bash -c \
    'hostname "$1" && mount --bind "$2/etc/hosts" /etc/hosts && exec slurmd -D -N "$1" -f "$SLURM_CONF"' \
    slurmd-start "node$n" "$dir" </dev/null >"$dir/log/slurmd.node$n.out" 2>&1 &
  echo "slurmd.node$n $!" >>"$dir/pids"
done

all_idle() {
  [ "$(sinfo --noheader --Node --partition=batch --states=idle --format=%N 2>/dev/null | sort -u | wc -l)" = "$nodes" ]
}
for _ in {1..150}; do
  if all_idle; then
    while read -r name pid; do
      # For down.sh: where left-over processes are to be looked for.
      case $name in slurmd.*) echo "$(readlink "/proc/$pid/ns/uts") $(readlink "/proc/$pid/ns/mnt")" >>"$dir/namespaces" ;; esac
    done <"$dir/pids"
    echo "Slurm is up: $nodes nodes; . $dir/env.sh"
    exit 0
  fi
  while read -r name pid; do
    kill -0 "$pid" 2>/dev/null || { echo "up.sh: $name ended" >&2; break 2; }
  done <"$dir/pids"
  sleep 0.2
done
give_up "the nodes did not come up"
