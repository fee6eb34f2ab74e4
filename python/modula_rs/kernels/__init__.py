"""CUDA kernels as sources, which are compiled on the user's machine at first use. Importing this package compiles nothing."""
