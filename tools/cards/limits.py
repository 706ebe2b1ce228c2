"""What differs between the cards that the pack's kernels are compiled for."""

from typing import NamedTuple


class Limits(NamedTuple):
    """Of a compute capability; NVIDIA's CUDA programming guide, table of technical specifications."""

    example: str
    program_kib: int
    """Shared memory that one program may have."""
    multiprocessor_kib: int
    """Shared memory of a multiprocessor; each program takes 1 KiB more than it asks for."""

    def part_of(self, other: "Limits", shared: int) -> int:
        """Return the bytes that take as large a part of `other`'s multiprocessor as `shared` bytes take of this."""
        return (shared + 1024) * other.multiprocessor_kib // self.multiprocessor_kib - 1024


# By 10 * major + minor.
LIMITS = {
    80: Limits("A100", 163, 164),
    86: Limits("RTX 30", 99, 100),
    89: Limits("RTX 40", 99, 100),
    90: Limits("H100, H200", 227, 228),
    120: Limits("RTX 50", 99, 100),
}
