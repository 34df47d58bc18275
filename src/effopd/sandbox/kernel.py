"""What the Linux kernel offers an unprivileged process to shut others in: thin wrappers of its system calls.

Imports the standard library alone: it runs in the sandbox's own interpreter, without any environment.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterable

_LIBC = ctypes.CDLL(None, use_errno=True)

# clone(2), unshare(2)
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
# mount(2), mount_setattr(2)
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID = 0x1, 0x2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
# prctl(2)
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 4, 22, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
# landlock(7): the system calls have these numbers on every architecture
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_EXECUTE, _LANDLOCK_WRITE_FILE, _LANDLOCK_READ_FILE, _LANDLOCK_READ_DIR = 1, 2, 4, 8
_LANDLOCK_TRUNCATE, _LANDLOCK_IOCTL_DEV = 1 << 14, 1 << 15
_LANDLOCK_OF_FILES = _LANDLOCK_EXECUTE | _LANDLOCK_WRITE_FILE | _LANDLOCK_READ_FILE
_LANDLOCK_OF_FILES |= _LANDLOCK_TRUNCATE | _LANDLOCK_IOCTL_DEV
_LANDLOCK_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_MOUNT_SETATTR = 442

# seccomp(2): what is refused, and the numbers of these system calls on x86-64 and on 64-bit ARM (None: it has no such)
_REFUSED = {
    # the network, other processes, more rights, rarely used parts of the kernel
    "socket": (41, 198), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "pidfd_getfd": (438, 438), "kcmp": (312, 272),
    "migrate_pages": (256, 238), "move_pages": (279, 239),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fspick": (433, 433),
    "mount_setattr": (442, 442), "open_by_handle_at": (304, 265),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    # memory that belongs to no process, and outlives programs or escapes their limits
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    # priorities of other processes, the supervisor's among them
    "setpriority": (141, 140), "sched_setaffinity": (203, 122), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274), "ioprio_set": (251, 30),
}  # fmt: skip
# Refused too if processes and files of the same user are in sight: signals, and changes to files that Landlock does
# not govern.
_REFUSED_IN_SIGHT = {
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466),
    "file_setattr": (469, 469),
}  # fmt: skip
# Refused by the value of an argument: the call's numbers, the argument, a mask, and the masked values that are refused.
_NEW_NAMESPACES = 0x7E020080
_MAP_SHARED_ANONYMOUS = 0x21  # MAP_SHARED and MAP_ANONYMOUS
_REFUSED_IF = (
    ((9, 222), 3, _MAP_SHARED_ANONYMOUS, (_MAP_SHARED_ANONYMOUS,)),  # mmap: memory of no process
    ((72, 25), 1, 0xFFFFFFFF, (8, 10, 15)),  # fcntl: F_SETOWN, F_SETSIG, F_SETOWN_EX send signals to anybody
    ((16, 29), 1, 0xFFFFFFFF, (0x8901, 0x8902, 0x5412)),  # ioctl: FIOSETOWN, SIOCSPGRP likewise; TIOCSTI types
)
_CLONE = (56, 220)  # refused if it makes a namespace
_CLONE3 = (435, 435)  # its flags are out of a filter's sight: it is "not there", and clone is used instead
_PRLIMIT64 = (302, 261)  # refused for any process but the caller
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, audit number
_X32_BIT = 0x40000000
_EPERM, _ENOSYS = 1, 38


def _checked(name: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def _syscall(name: str, number: int, *arguments: object) -> int:
    return _checked(name, _LIBC.syscall(number, *arguments))


def _prctl(name: str, option: int, *arguments: object) -> None:
    _checked(name, _LIBC.prctl(option, *[ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]))


def unshare(flags: int) -> None:
    """Leave the namespaces of `flags` for new ones."""
    _checked("unshare", _LIBC.unshare(ctypes.c_int(flags)))


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount a file system (mount(2)). Raises OSError."""
    result = _LIBC.mount(
        source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), options.encode() or None
    )
    _checked(f"mount {target}", result)


def make_read_only(target: str) -> None:
    """Make a mount and all mounts below it read-only, without set-user-ID programs."""
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0, 0, 0)
    _syscall(
        f"mount_setattr {target}", _MOUNT_SETATTR, _AT_FDCWD, target.encode(), _AT_RECURSIVE, attributes,
        ctypes.c_size_t(len(attributes)),
    )  # fmt: skip


def unmount(target: str) -> None:
    """Detach a mount at once (umount2(2)). Raises OSError."""
    _checked(f"umount {target}", _LIBC.umount2(target.encode(), MNT_DETACH))


def change_root(new: str) -> None:
    """Make the mount `new` the root of this namespace, and let go of the old one."""
    os.chdir(new)
    _checked("pivot_root", _LIBC.pivot_root(b".", b"."))
    _checked("umount /", _LIBC.umount2(b".", MNT_DETACH))
    os.chdir("/")


def die_with_parent() -> None:
    """Be killed when the parent ends."""
    _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, 9)


def hide_memory() -> None:
    """Let no process of the same user trace this one or read its memory, files or environment."""
    _prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, 0)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that none can slip away."""
    _prctl("PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, 1)


def drop_capabilities() -> None:
    """Give up every capability, now and for programs started from here."""
    for capability in range(64):
        if _LIBC.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            break  # beyond the last capability, or not permitted: then there is none to drop
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _checked("capset", _LIBC.capset(header, struct.pack("=6I", *[0] * 6)))


def no_new_privileges() -> None:
    """No program started from here gains rights, whatever its file says."""
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def landlock_version() -> int:
    """The kernel's Landlock ABI; 0 if it has none."""
    return max(0, int(_LIBC.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)))


def landlock(readable: Iterable[str], writable: Iterable[str], listable: Iterable[str] = ()) -> None:
    """Confine this process and its descendants to these paths; they can then trace none outside.

    `readable` may be read and executed, `writable` changed too, and of `listable` folders the names in them be read.
    Newer kernels also refuse TCP, and signals and connections to abstract sockets of processes outside.
    """
    version = landlock_version()
    rights = _LANDLOCK_FILE_RIGHTS[min(version, 5)]
    network = 0b11 if version >= 4 else 0
    scopes = 0b11 if version >= 6 else 0
    attributes = struct.pack("=QQQ", rights, network, scopes)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _syscall("landlock", _LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    read = _LANDLOCK_EXECUTE | _LANDLOCK_READ_FILE | _LANDLOCK_READ_DIR
    for paths, allowed in ((readable, read), (writable, rights), (listable, _LANDLOCK_READ_DIR)):
        for path in paths:
            try:
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue  # a folder that this system does not have
            mask = rights if os.path.isdir(path) else rights & _LANDLOCK_OF_FILES
            rule = struct.pack("=Qi", allowed & mask, place)
            _syscall(f"landlock {path}", _LANDLOCK_ADD_RULE, rules, 1, rule, 0)
            os.close(place)
    _syscall("landlock", _LANDLOCK_RESTRICT_SELF, rules, 0)
    os.close(rules)


def seccomp_supported() -> bool:
    """Whether the numbers of this processor's system calls are known."""
    return platform.machine() in _ARCHITECTURES


def refuse_system_calls(in_sight: bool) -> None:
    """Refuse this process and its descendants what `_REFUSED` and the tables after it list.

    `in_sight`: other processes and files of its user are in sight; refuse what would reach them as well.
    """
    code = _filter(in_sight)
    buffer = ctypes.create_string_buffer(code, len(code))
    filters = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer)))
    _prctl("PR_SET_SECCOMP", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filters, 0, 0)


def _filter(in_sight: bool) -> bytes:
    """The seccomp filter, a program of the Berkeley packet filter."""
    column, audit = _ARCHITECTURES[platform.machine()]
    load, masked, equal, any_bit, at_least, give = 0x20, 0x54, 0x15, 0x45, 0x35, 0x06
    number, architecture, arguments = 0, 4, 16  # where these lie in what a filter sees; an argument has 8 bytes
    allow, error, kill = (give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x00050000 | _EPERM), (give, 0, 0, 0x80000000)
    missing = (give, 0, 0, 0x00050000 | _ENOSYS)
    # each line: what to do, lines to skip if true, lines to skip if false, the operand
    program = [(load, 0, 0, architecture), (equal, 1, 0, audit), kill, (load, 0, 0, number)]
    if platform.machine() == "x86_64":  # the same calls by their other numbers
        program += [(at_least, 0, 1, _X32_BIT), kill]
    for numbers in (_REFUSED | (_REFUSED_IN_SIGHT if in_sight else {})).values():
        if (refused := numbers[column]) is not None:
            program += [(equal, 0, 1, refused), error]
    program += [(equal, 0, 1, _CLONE3[column]), missing]
    program += [(equal, 0, 4, _CLONE[column]), (load, 0, 0, arguments), (any_bit, 0, 1, _NEW_NAMESPACES), error, allow]
    program += [(equal, 0, 4, _PRLIMIT64[column]), (load, 0, 0, arguments), (equal, 1, 0, 0), error, allow]
    for calls, argument, mask, values in _REFUSED_IF:
        tests = [line for value in values for line in ((equal, 0, 1, value), error)]
        program += [(equal, 0, len(tests) + 3, calls[column]), (load, 0, 0, arguments + 8 * argument)]
        program += [(masked, 0, 0, mask), *tests, allow]
    return b"".join(struct.pack("=HBBI", *line) for line in [*program, allow])
