"""`diagnose`: why the reader's own step moves nothing, or not where it should.

    report = diagnose(step, variables=model, optimizer=optimizer)

The step is run a few dozen times on the reader's own objects, watched from inside, and
everything that it touched is put back.
"""

from shared.diagnose.causes import Cause
from shared.diagnose.diagnosis import diagnose
from shared.diagnose.loops import diagnosed, diagnosing
from shared.diagnose.report import Evidence, Finding, Note, Proof, Report

__all__ = [
    "Cause",
    "Evidence",
    "Finding",
    "Note",
    "Proof",
    "Report",
    "diagnose",
    "diagnosed",
    "diagnosing",
]
