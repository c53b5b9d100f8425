"""The way onto the network's grid that a plan says: medseg's own, or that of the program which trained the network."""

from __future__ import annotations

from medseg.core.case import Case, PreparedCase
from medseg.core.labels import LabelSchema
from medseg.data.plan import Plan
from medseg.data.prepare import prepare
from medseg.data.prepare_nnunet import prepare_as_nnunet


def prepare_as_planned(case: Case, schema: LabelSchema, plan: Plan) -> PreparedCase:
    """Bring a case onto the network's grid.

    Args:
        case: As read.
        schema: The dataset's structures.
        plan: Grid, normalisation, and the way there.

    Raises:
        ReadError: The image has another number of channels than the plan.
    """
    if plan.preparation is None:
        return prepare(case, schema, plan.spacing_ijk_mm, plan.normalisation)
    return prepare_as_nnunet(case, plan, plan.preparation)
