"""How much of the kernel's memory maps take."""

from __future__ import annotations

from compiler.lower.layouts import HASH, PERCPU_ARRAY, PERCPU_HASH, MapSpec

ELEMENT_BYTES, BUCKET_BYTES = 48, 16
"""Of a hash map, beside keys and values (kernel/bpf/hashtab.c: struct htab_elem, struct bucket)."""


def locked_bytes(spec: MapSpec, cpus: int) -> int:
    """About how much memory a map takes (kernel/bpf/hashtab.c: htab_map_mem_usage; arraymap.c)."""
    value = (spec.value_bytes + 7) & ~7
    if spec.kind in (HASH, PERCPU_HASH):
        values = value if spec.kind == HASH else 8 + cpus * value
        buckets = 1 << (spec.entries - 1).bit_length()
        size = spec.entries * (ELEMENT_BYTES + ((spec.key_bytes + 7) & ~7) + values) + buckets * BUCKET_BYTES
    else:
        size = spec.entries * value * (cpus if spec.kind == PERCPU_ARRAY else 1)
    return size * (2 if spec.swapped else 1)
