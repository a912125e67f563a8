"""Reads TensorBoard event files with nothing but the standard library; prints one JSON line per event.

usage: tfevents.py FILE

Written from the format's definition, not from herd's writer: it checks both checksums of every record (CRC32C bit by
bit) and decodes the protobuf wire format in general.
"""

import json
import struct
import sys


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def check(data, stored):
    crc = crc32c(data)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert masked == stored, f"checksum {masked:08x}, stored {stored:08x}"


def records(raw):
    at = 0
    while at < len(raw):
        (length, crc) = struct.unpack_from("<QI", raw, at)
        check(raw[at : at + 8], crc)
        data = raw[at + 12 : at + 12 + length]
        assert len(data) == length, "truncated"
        check(data, *struct.unpack_from("<I", raw, at + 12 + length))
        yield data
        at += 16 + length


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def fields(data):
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = varint(data, at)
        elif kind == 2:
            size, at = varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            code, size = {1: ("<d", 8), 5: ("<f", 4)}[kind]
            (value,) = struct.unpack_from(code, data, at)
            at += size
        yield key >> 3, value


def event(data):
    out = {}
    for number, value in fields(data):
        if number == 1:
            out["wall_time"] = value
        elif number == 2:
            out["step"] = value
        elif number == 3:
            out["file_version"] = value.decode()
        elif number == 5:
            values = [dict(fields(v)) for n, v in fields(value) if n == 1]
            out["scalars"] = {v[1].decode(): v[2] for v in values}
        elif number == 7:
            out["session"] = dict(fields(value))[1]
        else:
            raise AssertionError(f"field {number} of Event")
    return out


for record in records(open(sys.argv[1], "rb").read()):
    print(json.dumps(event(record)))
