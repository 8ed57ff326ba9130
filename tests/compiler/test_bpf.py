"""IR to BPF instructions: what comes out, and what is kept from the back end."""

from __future__ import annotations

import struct

import pytest

from compiler.bpf import BackendError, Code, MapFd, Reference, compile_program, forbidden, link

PROGRAM = 'define i32 @capture(ptr %ctx) section "tracing" {\n'
EXIT = b"\x95" + bytes(7)


def body(text: str, head: str = "") -> str:
    return f"{head}{PROGRAM}{text}\n}}\n"


def test_a_small_program() -> None:
    code = compile_program(body("  ret i32 7"), "v3")
    assert code == Code(struct.pack("<BBhi", 0xB4, 0, 0, 7) + EXIT, ())


def test_references_are_filled_in() -> None:
    text = """
  %n = ptrtoint ptr @number to i64
  %p = call ptr inttoptr (i64 1 to ptr)(ptr @table, ptr %ctx)
  %q = ptrtoint ptr %p to i64
  %s = add i64 %q, %n
  %t = trunc i64 %s to i32
  ret i32 %t"""
    code = compile_program(body(text, "@number = external global i8\n@table = external global i8\n"), "v4")
    assert sorted(reference.name for reference in code.references) == ["number", "table"]
    out = link(code, {"number": 0x1122334455667788, "table": MapFd(42)})
    for name, offset in ((reference.name, reference.offset) for reference in code.references):
        opcode, registers, low = struct.unpack_from("<BBxxI", out, offset)
        (high,) = struct.unpack_from("<I", out, offset + 12)
        assert opcode == 0x18
        wanted = (0, 0x55667788, 0x11223344) if name == "number" else (1, 42, 0)
        assert (registers >> 4, low, high) == wanted


def test_what_is_added_to_a_number_is_kept() -> None:
    code = Code(struct.pack("<BBhi", 0x18, 0, 0, 5) + bytes(8), (Reference(0, "number"),))
    assert struct.unpack_from("<I", link(code, {"number": 10}), 4)[0] == 15


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(KeyError):
        link(Code(bytes(16), (Reference(0, "number"),)), {})


@pytest.mark.parametrize(
    ("text", "cpu", "reason"),
    [
        ("  %a = sdiv i64 4, 2\n  ret i32 0", "v3", "signed division"),
        ("  %a = srem i64 4, 2\n  ret i32 0", "v3", "signed division"),
        ("  %a = fadd double 1.0, 2.0\n  ret i32 0", "v4", "floating point"),
        ("  %a = add i128 1, 2\n  ret i32 0", "v4", "128-bit integers"),
        ("  %a = alloca [65 x i64], align 8\n  ret i32 0", "v4", "stack for more than 512 bytes"),
        ("  %a = alloca i8, i64 %n\n  ret i32 0", "v4", "an alloca of variable size"),
        (
            "  call void inttoptr (i64 1 to ptr)(i64 1, i64 2, i64 3, i64 4, i64 5, i64 6)\n  ret i32 0",
            "v4",
            "calls of more than five arguments",
        ),
    ],
)
def test_what_would_end_the_process_is_refused_before(text: str, cpu: str, reason: str) -> None:
    with pytest.raises(BackendError, match=reason):
        compile_program(body(text), cpu)


def test_signed_division_is_fine_on_v4() -> None:
    text = "  %a = load i64, ptr %ctx, align 8\n  %b = sdiv i64 %a, 3\n  %c = trunc i64 %b to i32\n  ret i32 %c"
    assert forbidden(body(text), "v4") is None
    assert compile_program(body(text), "v4").instructions.endswith(EXIT)


def test_a_function_named_as_its_section() -> None:
    assert forbidden('define i32 @same(ptr %ctx) section "same" {', "v4") is not None


@pytest.mark.parametrize("text", ["  ret i32 %nothing", "  nonsense", "  %a = add i64 1, 2"])
def test_invalid_ir(text: str) -> None:
    with pytest.raises(BackendError):
        compile_program(body(text), "v4")


def test_a_call_of_a_function_that_is_not_there() -> None:
    with pytest.raises(BackendError, match="other"):
        compile_program(body("  %a = call i32 @other()\n  ret i32 %a", "declare i32 @other()\n"), "v4")
