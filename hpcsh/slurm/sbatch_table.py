"""sbatch's options as a table: names, whether they take a value, and which of them hpcsh does not pass on.

Source: sbatch(1) of 21.08 to 25.11. An option that is not here is refused: it may be misspelt, or mean
something that nobody has looked at.
"""

from __future__ import annotations

FLAG = "flag"
OPTIONAL = "optional"
VALUE = "value"

_VALUES = (
    "account acctg-freq array batch bbf begin bb cluster-constraint chdir clusters comment constraint "
    "container container-id context core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task "
    "deadline delay-boot dependency distribution error exclude export export-file extra extra-node-info "
    "gid gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task gres gres-flags hint input "
    "job-name kill-on-invalid-dep licenses mail-type mail-user mcs-label mem mem-bind mem-per-cpu "
    "mem-per-gpu mincpus network nodefile nodelist nodes ntasks ntasks-per-core ntasks-per-gpu "
    "ntasks-per-node ntasks-per-socket open-mode output partition power prefer priority profile qos "
    "reservation segment signal sockets-per-node switches thread-spec threads-per-core time time-min tmp "
    "tres-bind tres-per-task uid wait-all-nodes wckey wrap "
)

_OPTIONALS = "exclusive get-user-env nice no-kill oom-kill-step propagate resv-ports"

_FLAGS = (
    "contiguous help hold ignore-pbs no-requeue overcommit oversubscribe parsable quiet reboot requeue "
    "spread-job stepmgr test-only usage use-min-nodes verbose version wait "
)

SBATCH: dict[str, str] = {
    **dict.fromkeys(_VALUES.split(), VALUE),
    **dict.fromkeys(_OPTIONALS.split(), OPTIONAL),
    **dict.fromkeys(_FLAGS.split(), FLAG),
}
"""Every long option, and whether it takes a value."""

SYNONYMS: dict[str, str] = {
    "workdir": "chdir",
    "cluster": "clusters",
    "tasks-per-node": "ntasks-per-node",
    "share": "oversubscribe",
    "ntasks-per-tres": "ntasks-per-gpu",
}

SHORT: dict[str, str] = {
    "-A": "account", "-a": "array", "-b": "begin", "-B": "extra-node-info", "-C": "constraint",
    "-c": "cpus-per-task", "-D": "chdir", "-d": "dependency", "-e": "error", "-F": "nodefile", "-G": "gpus",
    "-H": "hold", "-h": "help", "-i": "input", "-J": "job-name", "-k": "no-kill", "-L": "licenses",
    "-M": "clusters", "-m": "distribution", "-N": "nodes", "-n": "ntasks", "-O": "overcommit", "-o": "output",
    "-p": "partition", "-Q": "quiet", "-q": "qos", "-S": "core-spec", "-s": "oversubscribe", "-t": "time",
    "-V": "version", "-v": "verbose", "-W": "wait", "-w": "nodelist", "-x": "exclude",
}  # fmt: skip
"""Short options and their long names; the front ends' parser uses the same table."""

REFUSED: dict[str, str] = {
    "uid": "jobs run as the user of the session",
    "gid": "jobs run with the groups of the session's user",
    "wrap": "the script is given as a file",
    "clusters": "a session belongs to one cluster; use another profile for another cluster",
    "test-only": "it would submit nothing; use --dry-run",
    "wait": "submit returns at once; use `wait`",
    "export-file": "variables are staged in files of their own",
    "comment": "hpcsh marks its jobs with the comment, so that none is ever submitted twice",
    "help": "it would submit nothing",
    "usage": "it would submit nothing",
    "version": "it would submit nothing",
    "parsable": "hpcsh sets it",
    "quiet": "hpcsh reads what sbatch says",
    "verbose": "hpcsh reads what sbatch says",
}
"""Options that are never passed on, and why."""

OWNED: dict[str, str] = {
    "output": "hpcsh keeps the log of this workload in its own directory",
    "error": "hpcsh keeps the log of this workload in its own directory",
    "input": "the script of this workload is written by hpcsh",
    "array": "an array is possible for batch scripts only",
    "container": "the script of this workload runs on the node itself",
    "container-id": "the script of this workload runs on the node itself",
}
"""Options that are not passed on for a script that hpcsh itself wrote, and why."""

HEADER_REFUSED: frozenset[str] = frozenset(
    ["uid", "gid", "wrap", "clusters", "test-only", "wait", "help", "usage", "version"]
)
"""Options that are refused in a user's script too: with them sbatch submits nothing, submits elsewhere, or
does not return."""
