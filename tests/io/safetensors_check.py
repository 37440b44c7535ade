"""A second implementation of safetensors, by struct and json alone, for safetensors_test.cpp to be checked against.

  safetensors_check.py write FILE    writes CONTENT, packed by name, so that elements lie at odd addresses
  safetensors_check.py read FILE     exits with 1 and a reason unless FILE is well-formed and holds CONTENT
"""
import json
import struct
import sys

FORMATS = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i", "U8": "B"}
CONTENT = {  # name: (dtype, shape, values)
    "byte": ("U8", [3], [1, 2, 255]), "double": ("F64", [2], [1e300, -0.1]), "empty": ("F32", [0, 4], []),
    "half": ("F16", [2, 2], [1.5, -2.0, 0.25, 65504.0]), "matrix": ("F32", [2, 3], [0.5, -1.0, 3.0, 1e-30, 7.0, -0.0]),
    "scalar": ("I64", [], [-7]), "with \"quotes\" and \u03c0": ("I32", [1], [-2147483648])}


def write(path):
    header, data = {"__metadata__": {"format": "pt", "writer": "python"}}, b""
    for name, (dtype, shape, values) in sorted(CONTENT.items()):
        packed = struct.pack("<%d%s" % (len(values), FORMATS[dtype]), *values)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(packed)]}
        data += packed
    text = json.dumps(header).encode()
    text += b" " * (len(text) % 2 == 0)  # an odd length
    open(path, "wb").write(struct.pack("<Q", len(text)) + text + data)


def read(path):
    raw = open(path, "rb").read()
    (length,) = struct.unpack("<Q", raw[:8])
    assert length % 8 == 0, "header length %d is no multiple of 8" % length
    header, data, found, used = json.loads(raw[8:8 + length].decode()), raw[8 + length:], {}, []
    assert header.pop("__metadata__") == {"format": "pt"}, "metadata"
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        size = struct.calcsize("<" + FORMATS[entry["dtype"]])
        assert begin % size == 0, "%r lies at %d" % (name, begin)
        values = struct.unpack("<%d%s" % ((end - begin) // size, FORMATS[entry["dtype"]]), data[begin:end])
        found[name] = (entry["dtype"], entry["shape"], list(values))
        used.append((begin, end))
    assert sum(end - begin for begin, end in used) == len(data) == max(end for _, end in used), "size of the data"
    rounded = {k: (d, s, list(struct.unpack("<%d%s" % (len(v), FORMATS[d]), struct.pack("<%d%s" % (len(v), FORMATS[d]), *v))))
               for k, (d, s, v) in CONTENT.items()}
    assert repr(sorted(found.items())) == repr(sorted(rounded.items())), "got %r, want %r" % (found, rounded)


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](sys.argv[2])
