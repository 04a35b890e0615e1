"""Talking to a running BEAM node over Erlang's distribution protocol, without a BEAM of our own.

Named after the chapters of "Distribution Protocol" (ERTS User's Guide): flags, epmd, handshake,
framing and terms are functions of bytes; node.py alone has a socket.
"""
