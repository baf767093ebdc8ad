"""The level of files: every defect that headers and JSON show, in a second or two."""

from __future__ import annotations

from collections.abc import Iterator

from glmquant.verify.files.access import check_byte_order_marks, check_modes, check_side_files
from glmquant.verify.files.anatomy import Anatomy, dissect
from glmquant.verify.files.described import check_description
from glmquant.verify.files.entries import check_entries
from glmquant.verify.files.kinds import check_kinds
from glmquant.verify.files.layout import check_layout
from glmquant.verify.files.linears import check_linears
from glmquant.verify.files.mtp import check_mtp
from glmquant.verify.files.names import check_names, unknown_tensors
from glmquant.verify.files.parallel import check_parallel
from glmquant.verify.files.rotation import check_rotation
from glmquant.verify.files.settings import check_settings
from glmquant.verify.findings import Finding
from glmquant.verify.subject import Subject


def check_files(
    subject: Subject, tensor_parallel: int | None = None, anatomy: Anatomy | None = None
) -> list[Finding]:
    """All findings of this level.

    Args:
        subject: The folder.
        tensor_parallel: The size that the model has to divide by, if one was named.
        anatomy: What was found in it, where that is known already.

    Returns:
        The findings, in no order that means anything.
    """
    return list(_findings(anatomy or dissect(subject), tensor_parallel))


def _findings(anatomy: Anatomy, tensor_parallel: int | None) -> Iterator[Finding]:
    yield from check_layout(anatomy)
    yield from check_entries(anatomy)
    yield from check_modes(anatomy.subject)
    yield from check_byte_order_marks(anatomy.subject)
    yield from check_side_files(anatomy.subject)
    yield from check_settings(anatomy)
    unknown = sorted(unknown_tensors(anatomy))
    yield from check_names(anatomy, unknown)
    yield from check_description(anatomy, unknown)
    yield from check_rotation(anatomy)
    yield from check_kinds(anatomy)
    yield from check_linears(anatomy)
    yield from check_mtp(anatomy)
    if tensor_parallel is not None:
        yield from check_parallel(anatomy, tensor_parallel)
