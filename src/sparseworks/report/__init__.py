"""One-file HTML reports, tables and plots from a result (plain data)."""

from sparseworks.report.page import Report, render

__all__ = ["Report", "render"]
