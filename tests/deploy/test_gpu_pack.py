"""What of a fat binary travels to a GPU machine, on a library written by hand."""

import struct

from tests.gpu.pack import entry_points, fat_sections, prune


def make_entry(kind: int, architecture: int, content: bytes) -> bytes:
    header = struct.pack("<HHIQ", kind, 1, 64, len(content))
    return header.ljust(28, b"\1") + struct.pack("<I", architecture) + bytes(32) + content


def make_library(*entries: bytes) -> bytes:
    """ELF: header, GPU code, section names, section headers."""
    body = b"".join(entries)
    fat = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body
    names = b"\0.nv_fatbin\0.shstrtab\0"
    table = 64 + len(fat) + len(names)
    header = bytearray(64)
    struct.pack_into("<Q", header, 0x28, table)
    struct.pack_into("<HHH", header, 0x3A, 64, 3, 2)

    def section(name: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQ", name, 1, 0, 0, offset, size).ljust(64, b"\0")

    sections = section(0, 0, 0) + section(1, 64, len(fat)) + section(12, 64 + len(fat), len(names))
    return bytes(header) + fat + names + sections


def test_code_of_other_gpus_and_ptx_beside_code_are_zeroed_and_nothing_moves():
    library = make_library(make_entry(2, 80, b"a" * 16), make_entry(2, 90, b"b" * 16), make_entry(1, 90, b"c" * 16))
    assert list(fat_sections(library)) == [(64, 16 + 3 * 80)]
    pruned = prune(library)
    assert len(pruned) == len(library)
    assert [pruned.count(letter * 16) for letter in (b"a", b"b", b"c")] == [0, 1, 0]
    kept = prune(make_library(make_entry(2, 80, b"a" * 16), make_entry(1, 90, b"c" * 16)))
    assert kept.count(b"c" * 16) == 1, "PTX is all that there is for this GPU"


def test_the_plugins_travel():
    name, content = entry_points()
    assert name.endswith(".dist-info/entry_points.txt")
    assert b"terse_kv_sharing = actors.kv_sharing:register" in content
