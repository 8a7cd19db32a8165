"""Checks: from facts to findings, each with the command that mends it. Pure."""

import re
from collections.abc import Iterator
from typing import Literal

import msgspec

from mlbench_exec.backends import apparmor
from mlbench_exec.backends.daemons import kind_of, refusal
from mlbench_exec.doctor.facts import Facts, Host

GIB = 1 << 30
KERNEL_FLOOR = (6, 6)  # docs/decisions/0003-kernel-floor.md
LITTLE_DISK_BYTES = 20 * GIB
OK, NO_BACKEND = 0, 3


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line: `bad` stops a backend, `note` is good to know or costs something."""

    about: str
    state: Literal["ok", "note", "bad"]
    text: str
    mend: str | None = None


def findings(facts: Facts) -> list[Finding]:
    """Everything there is to say, in the order in which to read it."""
    found: list[Finding] = []
    for check in (_kernel, _namespaces, _apparmor, _selinux, _cgroups, _docker, _tries, _images):
        found += check(facts)
    for check in (_weights, _gpus, _disks, _memory):
        found += check(facts)
    return found


def exit_code(facts: Facts) -> int:
    """0: a program ran through at least one backend; 3: through none."""
    return OK if any(one.was_tried and one.problem is None for one in facts.tries) else NO_BACKEND


def _kernel(facts: Facts) -> Iterator[Finding]:
    host = facts.host
    if host.system != "Linux":
        yield Finding(
            about="kernel",
            state="bad",
            text=f"{host.system}: the local backend needs Linux",
            mend="use Docker: --backend docker",
        )
        return
    numbers = re.match(r"(\d+)\.(\d+)", host.kernel)
    version = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if version >= KERNEL_FLOOR:
        yield Finding(about="kernel", state="ok", text=f"Linux {host.kernel}")
    else:
        yield Finding(
            about="kernel",
            state="bad",
            text=f"Linux {host.kernel}: the local backend and warm containers need 6.6; Docker "
            "still works, with one fresh container a snippet",
            mend="install a kernel of 6.6 or later, or use --backend docker",
        )


def _namespaces(facts: Facts) -> Iterator[Finding]:
    host = facts.host
    if host.system != "Linux":
        return
    blocked = list(_blocking(host))
    for name, value in blocked:
        yield Finding(
            about="user namespaces",
            state="bad",
            text=f"{name} forbids them",
            mend=f"sudo sysctl -w {name}={value}",
        )
    if not blocked:
        yield Finding(about="user namespaces", state="ok", text="allowed")


def _blocking(host: Host) -> Iterator[tuple[str, int]]:
    """Settings that forbid user namespaces, and the values that allow them."""
    if host.sysctls.get("user.max_user_namespaces", 1) == 0:
        yield "user.max_user_namespaces", 10000
    if host.uid != 0:  # the other two don't bind root
        if host.sysctls.get("kernel.unprivileged_userns_clone", 1) == 0:
            yield "kernel.unprivileged_userns_clone", 1
        if host.sysctls.get("kernel.apparmor_restrict_unprivileged_userns", 0) == 1:
            yield "kernel.apparmor_restrict_unprivileged_userns", 0


def _apparmor(facts: Facts) -> Iterator[Finding]:
    options = facts.daemon.info.get("SecurityOptions") or ()
    if not any("apparmor" in str(option) for option in options):
        text = "in the kernel, and not asked of containers" if facts.host.apparmor else "not here"
        yield Finding(about="AppArmor", state="ok", text=text)
    elif any(one.backend == "docker" and "nested" in one.level for one in facts.tries):
        yield Finding(about="AppArmor", state="ok", text="lets warm containers nest")
    else:
        yield Finding(
            about="AppArmor",
            state="note",
            text="Docker's own profile forbids namespaces in containers: without ours it is one "
            "fresh container a snippet, which is slower",
            mend=apparmor.LOAD,
        )


def _selinux(facts: Facts) -> Iterator[Finding]:
    if facts.host.selinux == "enforcing":
        yield Finding(
            about="SELinux",
            state="note",
            text="enforcing (never tried here): containers read mounted folders only if they are "
            "labelled for them",
            mend=f"sudo chcon -Rt container_file_t {facts.weights_folder or 'FOLDER'}",
        )
    else:
        yield Finding(about="SELinux", state="ok", text=facts.host.selinux or "not here")


def _cgroups(facts: Facts) -> Iterator[Finding]:
    host = facts.host
    if host.own_cgroups:
        yield Finding(
            about="cgroups",
            state="ok",
            text=f"version {host.cgroup_version}, the local backend may make its own",
        )
        return
    yield Finding(
        about="cgroups",
        state="note",
        text="the local backend may make none: processes are limited by rlimit, memory is watched",
        mend="systemd-run --user --scope -p Delegate=yes mlbench-exec run …",
    )


def _docker(facts: Facts) -> Iterator[Finding]:
    daemon = facts.daemon
    if daemon.error is not None:
        yield Finding(
            about="Docker",
            state="note",
            text=f"no daemon answers at {daemon.where}: {daemon.error}",
            mend="sudo systemctl start docker, or install it; or set DOCKER_HOST",
        )
        return
    kind, reason = kind_of(daemon.version, daemon.info), refusal(daemon.version, daemon.info)
    if reason is not None:
        what, _, mend = reason.partition(": ")
        yield Finding(about="Docker", state="bad", text=what, mend=mend or None)
        return
    text = f"{kind} {daemon.version.get('Version')}, API {daemon.version.get('ApiVersion')}"
    if kind in {"Docker Desktop", "rootless Docker"}:
        text += " (supported, never tried by the authors)"
    yield Finding(about="Docker", state="ok", text=text)
    if daemon.info.get("SwapLimit") is False:
        yield Finding(
            about="Docker",
            state="note",
            text="can't limit swap: a program that is over its memory swaps before it is ended",
            mend="boot with swapaccount=1, or without swap",
        )


def _tries(facts: Facts) -> Iterator[Finding]:
    for one in facts.tries:
        about = f"backend {one.backend}"
        if one.problem is None:
            text = f"ran a program in {one.seconds:.1f} s: {one.level}"
            yield Finding(about=about, state="ok", text=text)
        elif one.was_tried:
            yield Finding(about=about, state="bad", text=one.problem)
        else:
            yield Finding(about=about, state="note", text=one.problem)


def _images(facts: Facts) -> Iterator[Finding]:
    if facts.daemon.error is not None:
        return
    for image in facts.images:
        users = ", ".join(image.environments)
        if image.size is None:
            yield Finding(
                about="images",
                state="note",
                text=f"{image.name} is not here; for {users}",
                mend="mlbench-exec images pull",
            )
        else:
            yield Finding(
                about="images", state="ok", text=f"{image.name}: {_gb(image.size)}, for {users}"
            )


def _weights(facts: Facts) -> Iterator[Finding]:
    text = f"{facts.weights_here} of {facts.weights_known} in {facts.weights_folder}"
    if facts.weights_here < facts.weights_known:
        mend = "mlbench-exec weights pull"
        yield Finding(about="weights", state="note", text=text, mend=mend)
    else:
        yield Finding(about="weights", state="ok", text=text)


def _gpus(facts: Facts) -> Iterator[Finding]:
    if facts.gpu_problem is not None:
        yield Finding(about="GPUs", state="note", text=facts.gpu_problem)
    for gpu in facts.gpus:
        yield Finding(about="GPUs", state="ok", text=gpu)


def _disks(facts: Facts) -> Iterator[Finding]:
    for disk in facts.disks:
        text = f"{_gb(disk.free)} free at {disk.path}, for {disk.use}"
        if disk.free < LITTLE_DISK_BYTES:
            yield Finding(
                about="disk",
                state="note",
                text=f"{text}: little",
                mend="make room; weights can lie elsewhere (MLBENCH_WEIGHTS)",
            )
        else:
            yield Finding(about="disk", state="ok", text=text)


def _memory(facts: Facts) -> Iterator[Finding]:
    host, each = facts.host, facts.sandbox_memory_bytes
    text = (
        f"{_gb(host.memory_bytes)} and {host.cores} cores: {facts.sandboxes} sandboxes at once, "
        f"each of {_gb(each)}"
    )
    if facts.sandboxes * each > host.memory_bytes:
        yield Finding(
            about="memory",
            state="note",
            text=f"{text}: more than there is",
            mend="mlbench-exec run --memory 4g, say",
        )
    elif facts.sandboxes < host.cores:
        mend = (
            f"--concurrency {host.cores} --memory {max(1, host.memory_bytes // host.cores // GIB)}g"
        )
        yield Finding(about="memory", state="ok", text=f"{text}; for more: {mend}")
    else:
        yield Finding(about="memory", state="ok", text=text)


def _gb(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
