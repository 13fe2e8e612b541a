"""The limits that a process of a sandbox puts on itself before it runs anything else: rlimits, and a user of its own.

bubblewrap sets no limits, and RLIMIT_NPROC does nothing for uid 0. A sandbox that root started therefore gives root up
for a user whom nobody else has. All limits are hard ones: without root they cannot be raised again.
"""

import os
import resource

_OPEN_FILES = 64  # each holds kernel memory that no other limit sees


def confine(limits: "dict[str, int]", user: int | None) -> None:
    """Limit this process and all that it starts.

    Args:
        limits: cpu_seconds (one more than asked, see below), memory_bytes (address space of each process), file_bytes,
        and processes, 0 for no limit
            (outside a sandbox it counts all processes of the user).
        user: uid and gid to become for good; None where there is no root to give up.
    """
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    hard = {
        resource.RLIMIT_CPU: limits["cpu_seconds"],
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    if limits["processes"]:
        hard[resource.RLIMIT_NPROC] = limits["processes"]
    for kind, most in hard.items():
        allowed = resource.getrlimit(kind)[1]
        most = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
        # Past the soft limit of CPU time comes a signal that says so, at the hard one SIGKILL.
        resource.setrlimit(kind, (max(1, most - 1) if kind == resource.RLIMIT_CPU else most, most))
