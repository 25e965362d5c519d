"""A sub-network as a model of its own, in a form that other tools open; every export is loaded back and compared."""

from __future__ import annotations

from dynabert.export.report import FORMATS, ExportReport
from dynabert.export.subnetwork import export_subnet

__all__ = ["FORMATS", "ExportReport", "export_subnet"]
