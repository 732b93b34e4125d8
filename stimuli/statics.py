"""Closed-form statics of stacks of rigid bodies."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def stack_overshoot(x: Floats, width: Floats | float, mass: Floats | float = 1.0) -> tuple[Floats, Floats]:
    """How far the centre of mass above every interface lies beyond the contact interval, to the left and to the right.

    A stack with one body per level stands if and only if, at every interface, the centre of mass of everything above
    lies within the contact interval, which is the overlap of the two footprints.

    Args:
        x: (..., n) horizontal centres from the bottom body to the top one, metres.
        width: (..., n) or scalar footprints, metres.
        mass: (..., n) or scalar, any unit.

    Returns:
        (left, right), each (..., n - 1): signed overshoot divided by the half width of the supporting body; positive
        where the stack topples to that side. Both may be positive when two bodies do not overlap.
    """
    x = np.asarray(x, dtype=float)
    width = np.broadcast_to(np.asarray(width, dtype=float), x.shape)
    mass = np.broadcast_to(np.asarray(mass, dtype=float), x.shape)
    above = np.cumsum((mass * x)[..., ::-1], axis=-1)[..., ::-1] / np.cumsum(mass[..., ::-1], axis=-1)[..., ::-1]
    centre = above[..., 1:]
    low, high = x - width / 2, x + width / 2
    left_edge = np.maximum(low[..., :-1], low[..., 1:])
    right_edge = np.minimum(high[..., :-1], high[..., 1:])
    half = width[..., :-1] / 2
    return (left_edge - centre) / half, (centre - right_edge) / half


def stack_margin(x: Floats, width: Floats | float, mass: Floats | float = 1.0) -> Floats:
    """Signed stability margin (...,) of stacks: positive stands, negative falls, in half widths of the supporting body.

    The smallest distance, over the interfaces, of the centre of mass above from the nearer edge of the contact interval.

    Args:
        x, width, mass: As for `stack_overshoot`; a stack of one body has margin 1.
    """
    left, right = stack_overshoot(x, width, mass)
    if left.shape[-1] == 0:
        return np.ones(left.shape[:-1])
    return -np.maximum(left, right).max(axis=-1)


def centre_of_mass(x: Floats, mass: Floats) -> Floats:
    """Common centre of mass (...,) of bodies, metres.

    Args:
        x: (..., n) their centres, metres.
        mass: (..., n) any unit.
    """
    x, mass = np.asarray(x, dtype=float), np.asarray(mass, dtype=float)
    return np.asarray((x * mass).sum(axis=-1) / mass.sum(axis=-1))


def seesaw_margin(centre: Floats | float, half_width: Floats | float) -> Floats:
    """Signed margin (...,) of a loaded plank on a flat-topped fulcrum: positive stays level, negative tilts.

    The plank stays level if and only if the common centre of mass of the plank and all that stands on it lies over the
    top of the fulcrum; else it turns about the edge on that side.

    Args:
        centre: (...,) common centre of mass, from the fulcrum's middle, metres.
        half_width: Half the width of the fulcrum's top, metres.

    Returns:
        1 - |centre| / half_width: how far inside the edge the centre of mass lies, in half widths of the fulcrum.
    """
    return np.asarray(1 - np.abs(np.asarray(centre, dtype=float)) / half_width)
