"""What ``self.log`` collects: values, their reduction over an epoch, and the views of them."""

from __future__ import annotations

from leyden.results.collect import Results
from leyden.results.table import results_table
from leyden.results.views import Views

__all__ = ["Results", "Views", "results_table"]
