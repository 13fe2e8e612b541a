"""The system calls that a sandbox refuses, as a filter for the kernel (seccomp BPF).

Refused, with "operation not permitted", is what holds memory outside of any address space, where no limit of a process
and no look at its size finds it (memfd, System V shared memory and messages, file systems of one's own), and what only
widens the attack surface: tracing, keys, BPF, io_uring, new namespaces. Numbers are those of the kernel's tables,
`arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h`.
"""

import platform
import struct

_EITHER = (425, 428, 429, 430, 431, 432, 442, 447)  # io_uring_setup, open_tree ... fsmount, mount_setattr, memfd_secret
_REFUSED = {
    # shmget, msgget, ptrace, mount, umount2, add_key, request_key, keyctl, unshare, perf_event_open, setns,
    # process_vm_readv, process_vm_writev, memfd_create, bpf, userfaultfd
    "x86_64": (0xC000003E, (29, 68, 101, 165, 166, 248, 249, 250, 272, 298, 308, 310, 311, 319, 321, 323)),
    "aarch64": (0xC00000B7, (194, 186, 117, 40, 39, 217, 218, 219, 97, 241, 268, 270, 271, 279, 280, 282)),
}
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _KILL, _NOT_PERMITTED = 0x7FFF0000, 0x80000000, 0x00050001
_X32 = 0x40000000  # the second numbering of x86-64


def refusals(machine: str | None = None) -> bytes | None:
    """The filter for a machine (default: this one); None where the numbers of its system calls are not known here."""
    if (machine or platform.machine()) not in _REFUSED:
        return None
    architecture, numbers = _REFUSED[machine or platform.machine()]
    refused = (*numbers, *_EITHER)
    steps = [
        (_LOAD, 0, 0, 4),  # architecture
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # number
        (_AT_LEAST, len(refused) + 1, 0, _X32),
        *((_EQUAL, len(refused) - place, 0, number) for place, number in enumerate(refused)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _NOT_PERMITTED),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
