"""The sandbox: what a program gets, and what it does not get however it tries.

What is attempted here is chosen to do no harm where it succeeds.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from dataclasses import replace

import psutil
import pytest

from effopd.sandbox.client import Sandbox
from sandboxes import FALLBACK, FULL, LIMITS, SOURCES, sandbox_with


@pytest.fixture(params=[FULL, FALLBACK], ids=["namespaces", "fallback"])
def sandbox(request):
    with sandbox_with(request.param) as sandbox:
        yield sandbox


def run(sandbox, program, **more):
    return sandbox.run(textwrap.dedent(program), **more)


def printed(sandbox, program, **more):
    outcome = run(sandbox, program, **more)
    assert (outcome.ended, outcome.code) == ("", 0), outcome
    return outcome.output.decode()


def left_over(sandbox):
    """Processes below the sandbox's that are not its own."""
    own = (2 if "namespaces" in sandbox.isolation else 0) + (not isinstance(sandbox, Sandbox))
    first = psutil.Process((sandbox._process if isinstance(sandbox, Sandbox) else sandbox.process).pid)
    return len([p for p in first.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]) - own


def test_a_program_runs_as_python_runs_it(sandbox):
    text = printed(
        sandbox,
        """
        import os, sys, math, heapq, collections, decimal, threading, subprocess, tempfile
        print(__name__, sys.argv, sorted(os.environ), os.listdir())
        print(sum(map(int, sys.stdin.read().split())))
        done = []
        thread = threading.Thread(target=lambda: done.append(math.comb(40, 20)))
        thread.start(); thread.join()
        print(done, subprocess.run(["echo", "child"], capture_output=True, text=True).stdout.strip())
        with tempfile.TemporaryFile() as file:
            print(file.write(b"12345"))
        exit()
        """,
        given=b"1 2\n3\n",
    )
    lines = text.splitlines()
    assert lines[0] == "__main__ ['program.py'] ['LC_CTYPE', 'PYTHONHASHSEED', 'PYTHONUTF8'] ['program.py']"
    assert lines[1:] == ["6", "[137846528820] child", "5"]


def test_each_program_starts_afresh(sandbox):
    printed(sandbox, "open('kept', 'w').write('x'); import os; os.mkdir('locked', 0)")
    assert printed(sandbox, "import os; print(os.listdir())") == "['program.py']\n"
    assert {printed(sandbox, "print(hash('seed'))") for _ in range(3)} == {printed(sandbox, "print(hash('seed'))")}


def test_how_a_program_ended_is_told(sandbox):
    assert run(sandbox, "import sys; sys.exit(7)").code == 7
    assert run(sandbox, "import ctypes; ctypes.string_at(0)").code == -11
    failed = run(sandbox, "print('before'); 1 / 0")
    assert (failed.code, failed.output) == (1, b"before\n")
    assert failed.error.decode().splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert run(sandbox, "this is no Python").error.decode().splitlines()[-1].startswith("SyntaxError")
    assert run(sandbox, "import os; os.write(3, b'result')").result == b"result"


def test_large_input_that_nobody_reads_and_output_that_somebody_reads(sandbox):
    assert printed(sandbox, "print('done')", given=b"x" * 10**6) == "done\n"
    assert printed(sandbox, "print(len(input()))", given=b"x" * 10**6 + b"\n") == "1000000\n"


def test_what_comes_later_comes_after_a_first_result(sandbox):
    outcome = run(
        sandbox,
        """
        import os, select, sys
        print(input(), bool(select.select([0], [], [], 0.2)[0]))
        os.write(3, b"!")
        print(input())
        """,
        given=b"first\n",
        later=b"second\n",
    )
    assert outcome.output == b"first False\nsecond\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "ended"),
    [
        ("while True: pass", "cpu time"),
        ("import time; time.sleep(60)", "wall time"),
        ("import signal\nfor n in range(1, 65):\n  try: signal.signal(n, signal.SIG_IGN)\n  except (OSError, ValueError): pass\nwhile True: pass", "cpu time"),
        ("while True:\n  try:\n    while True: pass\n  except BaseException: pass", "cpu time"),
        ("while True: print('x' * 1000)", "output"),
        ("import os\nwhile True: os.write(3, b'x' * 1000)", "output"),
        ("import os, time\nfor _ in range(4):\n  if os.fork() == 0:\n    x = bytearray(os.urandom(1)) * (100 << 20)\n    time.sleep(60)\ntime.sleep(60)", "memory"),
        ("import os\nos.close(0); os.close(1); os.close(2); os.close(3)\nwhile True: pass", "cpu time"),
    ],
)  # fmt: skip
def test_limits_end_a_program(sandbox, program, ended):
    started = time.monotonic()
    outcome = sandbox.run(program)
    assert outcome.ended == ended, outcome
    assert len(outcome.output) <= LIMITS.output_kb * 1024
    assert outcome.seconds < LIMITS.wall_seconds + 3, "it was watched, not waited for"
    assert time.monotonic() - started < LIMITS.wall_seconds + 10
    assert printed(sandbox, "print('still here')") == "still here\n"
    assert left_over(sandbox) == 0


def test_memory_files_and_descriptors_are_limited(sandbox):
    assert b"MemoryError" in run(sandbox, "x = bytearray(1 << 30)").error
    text = printed(
        sandbox,
        """
        import os
        def attempt(what):
            try:
                what()
                print("done")
            except OSError as error:
                print("refused")
        attempt(lambda: open("large", "wb").write(b"x" * (5 << 20)))
        os.remove("large")
        attempt(lambda: [os.open("program.py", 0) for _ in range(40)])
        """,
    )
    assert text == "refused\nrefused\n"


def test_the_work_folder_in_memory_is_limited_as_a_whole():
    with sandbox_with(FULL) as sandbox:
        text = "for n in range(4): open(str(n), 'wb').write(b'x' * (2 << 20))"
        assert b"No space left on device" in run(sandbox, text).error


@pytest.mark.slow
@pytest.mark.parametrize(
    "bomb",
    [
        "import os\nwhile True: os.fork()",
        "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
        "import subprocess, sys\nwhile True:\n  try: subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n  except OSError: pass",
        "import threading, time\nwhile True:\n  try: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n  except RuntimeError: pass",
    ],
)  # fmt: skip
def test_a_fork_bomb_is_contained(sandbox, bomb):
    outcome = sandbox.run(bomb)
    assert outcome.ended or outcome.code != 0
    assert left_over(sandbox) == 0
    assert printed(sandbox, "print('still here')") == "still here\n"


def test_a_daemon_does_not_outlive_its_program(sandbox, tmp_path):
    program = """
        import os, sys, time
        if os.fork():
            print("parent done", flush=True)
            sys.exit()
        os.setsid()
        if os.fork():
            os._exit(0)
        for descriptor in range(4):
            os.close(descriptor)
        time.sleep(60)
        """
    assert printed(sandbox, program) == "parent done\n"
    assert left_over(sandbox) == 0


def test_nothing_outside_the_work_folder_can_be_written(sandbox, tmp_path):
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o777)
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    kept.chmod(0o666)
    new = f"effopd-test-{secrets.token_hex(8)}"
    text = printed(
        sandbox,
        f"""
        import os
        def attempt(*changes):
            for change in changes:
                try:
                    change()
                    print("done")
                except OSError:
                    pass
        kept, new, folder = {str(kept)!r}, {new!r}, {str(tmp_path)!r}
        for mode in ("w", "a", "r+"):
            attempt(lambda: open(kept, mode).write("altered"))
        attempt(lambda: os.truncate(kept, 0), lambda: os.remove(kept), lambda: os.rename(kept, kept + "x"),
                lambda: os.rename(kept, new), lambda: os.link(kept, new), lambda: os.chmod(kept, 0),
                lambda: os.chown(kept, os.getuid(), -1), lambda: os.utime(kept, (0, 0)),
                lambda: os.setxattr(kept, "user.x", b"x"), lambda: os.replace("program.py", kept))
        for place in (folder, "/", "/etc", "/usr", "/dev", "/proc", "/dev/shm", "/var/tmp", "/home", "/root"):
            if os.path.realpath(place) == os.getcwd():
                continue
            attempt(lambda: open(f"{{place}}/{{new}}", "w"), lambda: os.mkdir(f"{{place}}/{{new}}"),
                    lambda: os.symlink("x", f"{{place}}/{{new}}"), lambda: os.mkfifo(f"{{place}}/{{new}}"))
        """,
    )
    assert text == ""
    assert kept.read_text() == "as it was"
    assert kept.stat().st_mode & 0o777 == 0o666
    assert kept.stat().st_mtime > 0
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_secrets_of_others_cannot_be_read(sandbox, tmp_path):
    """Neither in files, nor in the environment or memory of a process: of the test's own, for one."""
    secret = f"secret-{secrets.token_hex(16)}"
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o777)
    (tmp_path / "secret").write_text(secret)
    (tmp_path / "secret").chmod(0o666)
    with subprocess.Popen(["sleep", "60"], env={"SECRET": secret}) as holder:
        try:
            text = printed(
                sandbox,
                f"""
                import glob, os, re
                others = ["{holder.pid}", "{os.getpid()}", str(os.getppid()), "1"]
                def search(content):
                    print(*re.findall(b"secret" + b"-[0-9a-f]{{32}}", content))
                for place in [{str(tmp_path / "secret")!r}, *glob.glob("/proc/*/environ"), *glob.glob("/proc/*/cwd/*"),
                              *glob.glob("/proc/*/root/*"), *(f"/proc/{{other}}/environ" for other in others)]:
                    try:
                        search(open(place, "rb").read())
                    except OSError:
                        pass
                for other in others:
                    try:
                        with open(f"/proc/{{other}}/mem", "rb") as memory, open(f"/proc/{{other}}/maps") as maps:
                            print("opened the memory of", other)
                            for line in maps:
                                low, high = (int(x, 16) for x in line.split()[0].split("-"))
                                memory.seek(low)
                                search(memory.read(high - low))
                    except (OSError, OverflowError, ValueError):
                        pass
                """,
            )
        finally:
            holder.kill()
    assert "secret" not in text
    assert "opened" not in text


@pytest.mark.parametrize("layers", [FULL, ("namespaces",), ("namespaces", "landlock"), FALLBACK], ids="+".join)
def test_the_network_and_other_processes_sockets_are_out_of_reach(layers):
    with sandbox_with(layers) as sandbox, closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        name = f"\0effopd-test-{secrets.token_hex(8)}"
        with closing(socket.socket(socket.AF_UNIX)) as abstract:
            abstract.bind(name)
            abstract.listen()
            text = printed(
                sandbox,
                f"""
                import socket
                for family, place in ((socket.AF_INET, {listener.getsockname()!r}), (socket.AF_UNIX, {name!r})):
                    try:
                        socket.socket(family).connect(place)
                        print("connected")
                    except OSError:
                        print("refused")
                """,
            )
    assert text == "refused\nrefused\n"


def test_no_signal_reaches_a_process_outside(sandbox):
    """Signal 0 asks whether a signal might be sent, and sends none."""
    text = printed(
        sandbox,
        f"""
        import os
        for process in ({os.getpid()}, {os.getppid()}, -1, 0, os.getppid(), 1):
            try:
                os.kill(process, 0)
                print(process)
            except OSError:
                pass
        """,
    )
    if "namespaces" in sandbox.isolation:  # there, its own group is all there is
        text = "".join(line for line in text.splitlines() if line not in ("0", "-1"))
    assert text == ""


def test_not_even_the_first_process_of_its_namespace_can_be_killed():
    with sandbox_with(FULL) as sandbox:
        text = "import os\ntry: os.kill(1, 9)\nexcept OSError: print('refused')\nos.kill(-1, 9)"
        sandbox.run(text)
        assert printed(sandbox, "print('still here')") == "still here\n"


def test_replies_cannot_be_forged(sandbox):
    """A program writes replies of its own to every descriptor that it can guess."""
    outcome = run(
        sandbox,
        """
        import json, os, struct
        text = json.dumps({"ended": "", "code": 0, "output": "Zm9yZ2Vk", "error": "", "result": "", "seconds": 0}).encode()
        for place in [*range(3, 300), *(f"/proc/{p}/fd/{n}" for p in (1, os.getppid()) for n in range(20))]:
            try:
                descriptor = place if isinstance(place, int) else os.open(place, os.O_WRONLY)
                os.write(descriptor, struct.pack("!I", len(text)) + text)
            except OSError:
                pass
        raise SystemExit(3)
        """,
    )
    assert (outcome.code, outcome.output) == (3, b"")
    assert printed(sandbox, "print('next')") == "next\n"


def test_no_rights_are_held_and_none_can_be_had(sandbox):
    text = printed(
        sandbox,
        """
        import ctypes, os
        facts = dict(line.split(":", 1) for line in open("/proc/self/status")) if os.path.exists("/proc/1") else {}
        print(*(facts.get(name, "").strip() for name in ("CapEff", "CapPrm", "CapBnd", "NoNewPrivs")))
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.unshare(0x10000000), libc.mount(b"none", b"/tmp", b"tmpfs", 0, None), libc.ptrace(0, 0, 0, 0))
        try:
            os.setuid(0)
            print("root", os.getuid())
        except OSError:
            print("nobody")
        """
        if "namespaces" in sandbox.isolation
        else """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        print(*(libc.prctl(23, capability) for capability in range(3)), libc.prctl(39, 0, 0, 0, 0))
        print(libc.unshare(0x10000000), libc.mount(b"none", b"/tmp", b"tmpfs", 0, None), libc.ptrace(0, 0, 0, 0))
        """,
    )
    rights, calls, *user = text.splitlines()
    assert calls == "-1 -1 -1"
    if "namespaces" in sandbox.isolation:
        assert rights.split()[:2] == ["0000000000000000", "0000000000000000"]
        assert rights.split()[3] == "1"
        assert user == ["nobody"]
    else:
        assert rights.endswith(" 1")


@pytest.mark.slow
def test_all_ends_when_the_caller_is_killed(tmp_path):
    """kill -9 of the caller in the middle of a program."""
    script = tmp_path / "caller.py"
    script.write_text(
        textwrap.dedent("""
        from effopd.sandbox.client import Limits, Sandbox
        Sandbox(Limits(60, 60, 256, 4, 8, 32, 64)).run("import time\\ntime.sleep(50)")
        """)
    )
    with subprocess.Popen([sys.executable, str(script)]) as caller:
        process = psutil.Process(caller.pid)
        until = time.monotonic() + 60
        while not any("program.py" in " ".join(_arguments(p)) for p in process.children(recursive=True)):
            assert time.monotonic() < until
            time.sleep(0.05)
        family = process.children(recursive=True)
        caller.kill()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []


def _arguments(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _report(*user, program, more_namespaces=8):
    """What a program prints in a user namespace, as a user of it, where so many more namespaces are permitted."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    limit = f'echo {more_namespaces} > /proc/sys/user/max_user_namespaces && exec "$@"'
    as_user = ["unshare", "--user", *user] if user else []
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", limit, "sh", *as_user, sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCES},
    )
    if done.returncode and "unshare:" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    return done.stdout


REPORT = f"""
from effopd.sandbox.client import Limits, Sandbox, SandboxError
try:
    with Sandbox({LIMITS!r}) as sandbox:
        print(sandbox.isolation, sandbox.refusal)
        print(sandbox.run("import os; print(os.getuid(), sum(map(int, input().split())))", b"1 2").output)
except SandboxError as error:
    print(error)
"""


KERNELS_WORDS = "unshare: No space left on device"  # for: no more user namespaces


def test_an_ordinary_user_gets_the_same_walls():
    """A user that is not root, and maps its own number as the kernel permits anybody."""
    with sandbox_with(FULL):
        pass
    out = _report("--map-user=1000", "--map-group=1000", program=REPORT)
    assert out == f"{FULL} \nb'65534 3\\n'\n"


def test_an_ordinary_user_cannot_reach_the_supervisor():
    """It has the same user as the programs: limits, signals and priorities of process 1 are refused all the same."""
    with sandbox_with(FULL):
        pass
    attack = textwrap.dedent("""
        import ctypes, os, resource, signal
        libc = ctypes.CDLL(None)
        for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
            try: print(resource.prlimit(1, limit, (1, 1)))
            except OSError: pass
        for number in range(1, 65):
            try: os.kill(1, number)
            except OSError: pass
        print(libc.setpriority(0, 1, 19), libc.ptrace(16, 1, 0, 0))
        for path in ("/proc/1/mem", "/proc/1/fd/0", "/proc/1/fd/1"):
            try: print(open(path, "r+b", 0))
            except OSError: pass
        """)
    program = REPORT.replace(
        "print(sandbox.isolation", f"print(sandbox.run({attack!r}).output); print(sandbox.isolation"
    )
    out = _report("--map-user=1000", "--map-group=1000", program=program)
    assert out == f"b'-1 -1\\n'\n{FULL} \nb'65534 3\\n'\n"


def test_without_namespaces_the_next_best_stands_and_says_so():
    """Where an administrator has turned user namespaces off."""
    with sandbox_with(FALLBACK):
        pass
    out = _report("--map-user=1000", program=REPORT, more_namespaces=1)
    assert out == f"{FALLBACK} {KERNELS_WORDS}\nb'1000 3\\n'\n"


def test_what_cannot_be_held_is_not_run():
    """A configuration that insists on namespaces, and a root without them."""
    required = REPORT.replace(f"{LIMITS!r}", f"{LIMITS!r}, required=True")
    out = _report("--map-user=1000", program=required, more_namespaces=1)
    assert out.startswith(f"the sandbox cannot be set up: {KERNELS_WORDS}. Permit user namespaces, or run as")
    out = _report(program=REPORT, more_namespaces=0)
    assert f"{KERNELS_WORDS}; without them root cannot be held" in out


def test_a_program_larger_than_its_folder_gets_nothing_and_the_next_one_runs():
    with sandbox_with(FULL, replace(LIMITS, file_mb=1)) as sandbox:
        assert "No space left" in sandbox.run("#" * (2 << 20)).ended
        assert printed(sandbox, "print('still here')") == "still here\n"
