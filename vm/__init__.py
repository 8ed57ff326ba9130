"""The ktap virtual machine: loads, verifies and runs bytecode with nothing but the standard library."""
