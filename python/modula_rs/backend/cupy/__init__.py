"""The maps on CuPy arrays: one array (count, rows, cols) for each leaf."""

from modula_rs.backend.cupy.cuda import apply, dual_norms, norms

__all__ = ["apply", "dual_norms", "norms"]
