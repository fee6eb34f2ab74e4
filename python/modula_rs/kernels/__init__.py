"""CUDA kernels as source, compiled on the user's machine at first use. Importing this costs nothing."""
