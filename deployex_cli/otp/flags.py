"""Distribution flags: what each side of a connection understands (ERTS, Distribution Protocol).

Those marked 25 and 26 are demanded by peers of that OTP release and later. What is left off keeps
every message in the plain form: no atom cache, no fragments, no sender in a SEND.
"""

from __future__ import annotations

EXTENDED_REFERENCES = 0x4  # 25: references of several words
DIST_MONITOR = 0x8  # a monitor of a process here or there
FUN_TAGS = 0x10  # 25: funs have tags of their own
DIST_MONITOR_NAME = 0x20  # a monitor of a registered name
NEW_FUN_TAGS = 0x80  # 25: NEW_FUN_EXT
EXTENDED_PIDS_PORTS = 0x100  # 25: the whole range of pids and ports
EXPORT_PTR_TAG = 0x200  # 25: fun M:F/A
BIT_BINARIES = 0x400  # 25: bitstrings
NEW_FLOATS = 0x800  # 25: floats in IEEE format
UNICODE_IO = 0x1000  # the I/O protocol in Unicode
SMALL_ATOM_TAGS = 0x4000  # atoms with a length of one byte
UTF8_ATOMS = 0x10000  # 25: atoms in UTF-8
MAP_TAG = 0x20000  # 25: maps
BIG_CREATION = 0x40000  # 25: a creation of 32 bits
HANDSHAKE_23 = 0x1000000  # 25: this handshake, version 6
UNLINK_ID = 0x2000000  # 26: the new way of unlinking
MANDATORY_25_DIGEST = 0x4000000  # stands for all that 25 demands
NAME_ME = 0x2_0000_0000  # the peer names us, and uses that name again: no atom is left there
V4_NC = 0x4_0000_0000  # 26: pids, ports and references with 64 bits

# Without PUBLISHED (0x1) we are a hidden node: nodes() and global do not know us.
OURS = (
    EXTENDED_REFERENCES
    | DIST_MONITOR
    | FUN_TAGS
    | DIST_MONITOR_NAME
    | NEW_FUN_TAGS
    | EXTENDED_PIDS_PORTS
    | EXPORT_PTR_TAG
    | BIT_BINARIES
    | NEW_FLOATS
    | UNICODE_IO
    | SMALL_ATOM_TAGS
    | UTF8_ATOMS
    | MAP_TAG
    | BIG_CREATION
    | HANDSHAKE_23
    | UNLINK_ID
    | MANDATORY_25_DIGEST
    | NAME_ME
    | V4_NC
)
