"""A coverage-guided fuzzer over what reads bytes of a peer: `python -m tests.fuzz`."""
