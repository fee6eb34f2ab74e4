"""The maps on CuPy arrays: one array (count, rows, cols) for each leaf."""

from modula_rs.backend.cupy.cuda import dual_norms, dualize, normalize, norms, project

__all__ = ["dual_norms", "dualize", "normalize", "norms", "project"]
