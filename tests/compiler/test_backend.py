"""The back end in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from compiler import backend, bpf
from compiler.bpf import BackendError, Code, Reference

IR = """
@table = external global i8
define i32 @program(ptr %ctx) section "tracing" {
  %found = call ptr inttoptr (i64 1 to ptr)(ptr @table, ptr %ctx)
  %result = ptrtoint ptr %found to i32
  ret i32 %result
}
"""


@pytest.fixture(autouse=True)
def finished() -> Iterator[None]:
    backend.finish()
    yield
    backend.finish()


def test_it_gives_what_the_back_end_gives() -> None:
    assert backend.compiled(IR, "v4") == bpf.compile_program(IR, "v4")
    assert backend.compiled(IR, "v3").references[0].name == "table"


def test_what_is_wrong_is_told() -> None:
    with pytest.raises(BackendError, match="expected"):
        backend.compiled("define nonsense", "v4")
    assert backend.compiled(IR, "v4").instructions


def test_its_end_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the back end dies of is an error, and the next program is made by another one."""

    def ends(ir: str, cpu: str) -> Code:
        os._exit(3)

    with monkeypatch.context() as patched:
        patched.setattr(backend, "compile_program", ends)
        with pytest.raises(BackendError, match="no way to select"):
            backend.compiled(IR, "v4")
    assert backend.compiled(IR, "v4").instructions


def test_it_may_be_ended_while_it_loads() -> None:
    backend.start()
    backend.start()
    backend.finish()
    backend.finish()
    assert backend.compiled(IR, "v4").instructions


def test_llvm_is_not_loaded_here() -> None:
    code = "import sys; from compiler import backend; backend.compiled(sys.argv[1], 'v4'); print('llvmlite' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, IR], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "False\n"


def test_code_as_bytes() -> None:
    code = Code(b"12345678abcdefgh", (Reference(0, "table"), Reference(1 << 20, "own_process")))
    assert backend.unpack(backend.pack(code)) == code
    assert backend.unpack(backend.pack(Code(b"", ()))) == Code(b"", ())
    with pytest.raises(ValueError, match="not found"):
        backend.unpack(backend.pack(code)[:7])
