"""Lowering: handlers, as they are after the main chunk has run, to LLVM IR for the kernel."""
