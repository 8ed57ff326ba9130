"""Functions of this machine's own kernel: on one without kprobes, what it lacks and which tracepoints come near.

What works elsewhere is tested in tests/kernels.
"""

from __future__ import annotations

import pytest
from tracing import trace

from ktap.functions import KernelFunctions, kernel_functions, near_tracepoints
from vm.diagnostic import Refusal

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(kernel_functions().can_be_probed(), reason="this kernel can probe its functions"),
]


@pytest.mark.parametrize(
    ("event", "near"),
    [
        ("probe:vfs_read", "syscalls:sys_enter_read"),
        ("probe:do_sys_openat2 filename=+0(%si):ustring", "syscalls:sys_enter_openat2"),
        ("probe:vfs_write%return", "syscalls:sys_enter_write"),
        ("probe:finish_task_switch+0x10", "sched:sched_switch"),
        ("probe:vfs_*", "ktap list"),
        ("ftrace:function /ip==mutex*/", ""),
    ],
)
def test_what_the_kernel_lacks_and_what_comes_near(event: str, near: str) -> None:
    with pytest.raises(Refusal) as caught:
        trace(f"trace {event} {{ }}", duration_s=0.1)
    assert caught.value.status == 3
    (diagnostic,) = caught.value.diagnostics
    assert "this kernel cannot probe its functions: it was built without kprobes" in diagnostic.message
    assert near in str(diagnostic.hint)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ("ftrace:function", "needs a filter that says which functions"),
        ("probe:vfs_*+0x10", "only one function's entry has an offset"),
        ("probe:vfs_read%return+0x10", "names no function"),
    ],
)
def test_events_that_cannot_be(event: str, message: str) -> None:
    with pytest.raises(Refusal) as caught:
        trace(f"trace {event} {{ }}", duration_s=0.1)
    assert caught.value.status == 1
    assert message in caught.value.diagnostics[0].message


def test_a_file_alone_is_no_function() -> None:
    with pytest.raises(Refusal) as caught:
        trace("trace probe:/bin/true { }", duration_s=0.1)
    told = caught.value.diagnostics[0]
    assert (told.message, told.hint) == ("`probe:/bin/true` names no function", "as in probe:/bin/true:main")


def test_tracepoints_that_share_words_come_near() -> None:
    assert near_tracepoints("vfs_read")[0] == "syscalls:sys_enter_read"
    assert all(near.startswith("syscalls:sys_enter_read") for near in near_tracepoints("vfs_read"))
    assert near_tracepoints("tcp_connect") == ("syscalls:sys_enter_connect", "tcp:*")
    assert near_tracepoints("kmalloc") == ("kmem:kmalloc",)
    assert near_tracepoints("tcp_sendmsg_locked")[0] == "tcp:tcp_sendmsg_locked"
    assert near_tracepoints("xyzzy") == ()


def test_names_are_found_and_slips_are_seen() -> None:
    functions = kernel_functions()
    (address,) = functions.addresses(["vfs_read"])["vfs_read"]
    assert address > 1 << 63
    assert functions.near("vfs_raed") == ("vfs_read",)
    assert functions.addresses(["vfs_raed"]) == {}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("__rcu_read_lock", "for every probe"),
        ("_raw_spin_unlock_irqrestore", "could hang"),
        ("_raw_read_lock_bh", "could hang"),
        ("native_queued_spin_lock_slowpath", "could hang"),
        ("lock_acquire", "could hang"),
        ("smp_text_poke_batch_finish", "changes code"),
        ("vfs_read", None),
        ("file_lock_init", None),
        ("raw_recvmsg", None),
        ("lock_sock_nested", None),
    ],
)
def test_what_is_never_probed(name: str, why: str | None) -> None:
    functions = KernelFunctions()
    found = functions.why_refused(name)
    assert found is None if why is None else why in str(found)
    assert functions.why_refused(name, unsafe=True) is None


def test_code_that_serves_probes_is_known_without_debugfs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ktap.functions.BLACKLIST", "/nothing/there")
    functions = KernelFunctions()
    (address,) = functions.addresses(["exc_int3"])["exc_int3"]
    assert functions.is_forbidden(address)
    assert not functions.is_forbidden(functions.addresses(["vfs_read"])["vfs_read"][0])
