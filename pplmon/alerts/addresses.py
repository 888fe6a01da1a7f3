"""The address of a token or a sequence in words: one vocabulary for the terminal, the page and every logger.

A *sequence* is a row of the batch, a *sample* a row of the dataset, a *position* the column of the target.
"""

from __future__ import annotations

from pplmon.report.worst import WorstSequence, WorstToken

Culprit = WorstToken | WorstSequence


def address(culprit: Culprit) -> str:
    """Return "step 360, sequence 3, position 17, sample 6823"; micro-batch and rank are left out where they are 0."""
    parts = [f"step {culprit.step}"]
    parts += [f"micro-batch {culprit.micro_batch}"] if culprit.micro_batch else []
    parts += [f"rank {culprit.rank}"] if culprit.rank else []
    parts += [f"sequence {culprit.sequence}"]
    parts += [f"position {culprit.position}"] if isinstance(culprit, WorstToken) else []
    return ", ".join([*parts, *_names(culprit)])


def sequence_of(culprit: Culprit) -> str:
    """Return the part of an address that names the sequence: "sequence 3, sample 6823"."""
    return ", ".join([f"sequence {culprit.sequence}", *_names(culprit)])


def _names(culprit: Culprit) -> list[str]:
    """Return what the user's data call it, where they gave ids."""
    document = culprit.document_id if isinstance(culprit, WorstSequence) else None
    named = (("document", document), ("sample", culprit.sample_id))
    return [f"{what} {identity}" for what, identity in named if identity is not None]
