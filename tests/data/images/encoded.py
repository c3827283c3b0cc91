"""Encoders for images that Pillow reads and does not write."""

import struct
import zlib


def png(
    data: bytes, size: tuple[int, int], *chunks: tuple[bytes, bytes], depth: int, kind: int
) -> bytes:
    """A PNG of rows that are packed already; kind: 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""
    header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    stride = len(data) // size[1]
    rows = b"".join(b"\0" + data[row * stride : (row + 1) * stride] for row in range(size[1]))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
        for tag, body in parts
    )


def tiff(
    data: bytes,
    size: tuple[int, int],
    *,
    bits: int,
    photometric: int = 1,
    channels: int = 1,
    order: str = "<",
    **others: int,
) -> bytes:
    """An uncompressed TIFF; photometric: 0 grey with 0 as white, 1 grey, 2 RGB, 5 CMYK."""
    tags = {256: [size[0]], 257: [size[1]], 258: [bits] * channels, 259: [1], 262: [photometric]}
    tags |= {273: [16], 277: [channels], 278: [size[1]], 279: [len(data)]}
    tags |= {{"alpha": 338, "numbers": 339}[name]: [value] for name, value in others.items()}
    table = b""
    for tag, values in sorted(tags.items()):
        inline = struct.pack(f"{order}{len(values)}H", *values).ljust(4, b"\0")
        far = struct.pack(order + "I", 8)  # only the bits of many channels, behind the header
        table += struct.pack(order + "HHI", tag, 3, len(values)) + (inline, far)[len(values) > 2]
    data += b"\0" * (len(data) % 2)
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 16 + len(data))
    head += struct.pack(order + "4H", *[bits] * 4)
    return head + data + struct.pack(order + "H", len(tags)) + table + b"\0" * 4
