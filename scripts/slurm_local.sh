#!/usr/bin/env bash
# A Slurm cluster of one node on this machine, for tests: Debian's slurm-wlm and munge, run as root, without systemd.
#
#   scripts/slurm_local.sh start [FOLDER]    starts it, or finds it running; prints what to export
#   scripts/slurm_local.sh stop [FOLDER]     cancels its jobs and ends its daemons
#
#   FOLDER   configuration, key, state and logs, all of it; default /tmp/retable-slurm
#   CPUS     how many CPUs the node declares; default: as many as there are
#   GPUS     how many GPUs it declares (there need be none; jobs get CUDA_VISIBLE_DEVICES); default 0
#
#   eval "$(scripts/slurm_local.sh start)" && srun hostname
set -euo pipefail

usage() {
  sed -n '2,/^set/{s/^# \{0,1\}//;/^set/d;p}' "$0" >&2
  exit 2
}

fail() {
  echo "slurm_local.sh: $1" >&2
  exit 1
}

action=${1:-} folder=$(realpath -m "${2:-/tmp/retable-slurm}")
[[ $# -le 2 && $action =~ ^(start|stop)$ ]] || usage
PATH=$PATH:/usr/sbin:/sbin
for program in munged slurmctld slurmd scontrol; do
  command -v $program > /dev/null || fail "$program is missing: apt-get install slurm-wlm munge"
done
[[ $EUID == 0 ]] || fail "must run as root: slurmd starts jobs for other users"
# The longest path of a Unix socket has 107 characters.
((${#folder} <= 90)) || fail "FOLDER must have at most 90 characters, got ${#folder}: $folder"
export SLURM_CONF=$folder/slurm.conf

# alive NAME: whether the daemon that wrote FOLDER/NAME.pid is running.
alive() {
  local pid
  pid=$(cat "$folder/$1.pid" 2> /dev/null) && [[ $(cat "/proc/$pid/comm" 2> /dev/null) == "$1" ]]
}

# within SECONDS COMMAND...: try until it succeeds.
within() {
  local tries=$(($1 * 5))
  shift
  until "$@" &> /dev/null; do
    ((tries-- > 0)) || return 1
    sleep 0.2
  done
}

gone() { ! alive "$1"; }
no_jobs() { [[ -z $(squeue --noheader) ]]; }
idle() { [[ $(sinfo --noheader --format %T) == idle ]]; }

end_daemons() {
  local name
  for name in slurmd slurmctld munged; do
    alive $name || continue
    kill "$(cat "$folder/$name.pid")"
    within 10 gone $name || kill -KILL "$(cat "$folder/$name.pid")" || true
  done
}

stop() {
  if alive slurmctld && alive slurmd; then
    scancel --user root --full --signal KILL 2> /dev/null || true
    scancel --user root 2> /dev/null || true
    within 15 no_jobs || echo "slurm_local.sh: some jobs did not end" >&2
  fi
  end_daemons
}

# Two ports that are free now. Somebody may take one before the daemon does: start() then tries others.
free_ports() {
  python3 -c '
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*[each.getsockname()[1] for each in held])'
}

write_config() {
  local node cpus=${CPUS:-$(nproc)} gpus=${GPUS:-0} number
  node=$(hostname -s)
  local controller_port daemon_port
  read -r controller_port daemon_port < <(free_ports)
  rm -rf "$folder/state" "$folder/spool" # a former cluster's jobs would be run again
  mkdir -p "$folder/state" "$folder/spool"
  # Slurm wants a device for every GPU, and leaves it alone: those of /dev/null will do.
  rm -f "$folder"/gpu*
  for ((number = 0; number < gpus; number++)); do mknod "$folder/gpu$number" c 1 3; done
  : > "$folder/gres.conf"
  if ((gpus > 0)); then echo "Name=gpu File=$folder/gpu[0-$((gpus - 1))]" > "$folder/gres.conf"; fi
  cat > "$SLURM_CONF" << CONF
ClusterName=retable
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$controller_port
SlurmdPort=$daemon_port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A job that is requeued waits until its former credentials expire; the default is two minutes.
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
# No cgroups and no accounting: a container has neither.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
# The node has as many CPUs and GPUs as is said here, whatever the machine has.
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
MinJobAge=600
GresTypes=gpu
NodeName=$node NodeAddr=127.0.0.1 CPUs=$cpus Gres=gpu:$gpus State=UNKNOWN
PartitionName=local Nodes=$node Default=YES MaxTime=INFINITE State=UP
CONF
}

start_daemons() {
  # Run by root here, and in a folder that is: `--force` keeps munged from insisting on a user and paths of its own.
  munged --force --socket "$folder/munge.socket" --key-file "$folder/munge.key" --pid-file "$folder/munged.pid" \
    --log-file "$folder/munged.log" --seed-file "$folder/munge.seed" &&
    slurmctld -c && slurmd && within 15 idle
}

start() {
  if alive munged && alive slurmctld && alive slurmd && scontrol ping &> /dev/null; then
    return
  fi
  end_daemons # what is left of one that broke
  mkdir -p "$folder"
  chmod 755 "$folder"
  [[ -s $folder/munge.key ]] || (umask 077 && head -c 1024 /dev/urandom > "$folder/munge.key")
  local attempt
  for attempt in 1 2 3; do
    write_config
    if start_daemons > "$folder/start.log" 2>&1; then
      return
    fi
    end_daemons
  done
  tail -n 20 "$folder"/{start,munged,slurmctld,slurmd}.log >&2 || true
  fail "the cluster did not start in $attempt attempts; its logs are in $folder"
}

if [[ $action == start ]]; then
  start
  echo "export SLURM_CONF=$SLURM_CONF"
else
  stop
fi
