"""Vectors of floats as LLVM values: arithmetic on them, and the activation functions made of it."""
