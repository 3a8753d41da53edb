"""Benchmarks: `core.py` (the core alone, no I/O) and `wire.py` (real frames over veth, beside the kernel and a bare forwarder)."""
