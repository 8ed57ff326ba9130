"""Formats of invented tracepoints, from a line a field."""

from __future__ import annotations

from ktap.event_format import EventFormat, parse_format

COMMON = """\
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;
"""


def made(*fields: str, print_format: str = '"x"') -> EventFormat:
    """A format with fields written `declaration@offset+size`, signed where a `-` follows."""
    lines = []
    for field in fields:
        declaration, _, place = field.partition("@")
        offset, _, size = place.rstrip("-").partition("+")
        lines.append(f"\tfield:{declaration};\toffset:{offset};\tsize:{size};\tsigned:{int(place[-1] == '-')};\n")
    text = f"name: made\nID: 7\nformat:\n{COMMON}\n{''.join(lines)}\nprint fmt: {print_format}\n"
    return parse_format("test", text)
