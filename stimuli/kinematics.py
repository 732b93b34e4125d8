"""Closed-form kinematics of smooth balls on a level table: when and where two of them meet, and what they do then.

Motion is in the plane of the table. Balls without friction slide, so they keep their velocity between impacts, and an impact
changes velocities along the line of centres only. All functions take arrays whose leading axes broadcast.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def reach(radius: Floats | float, other: Floats | float) -> Floats:
    """Horizontal distance (...,) in metres between the centres of two balls that stand on the table and touch.

    Balls of different radii have their centres at different heights, so that this is less than the sum of the radii.

    Args:
        radius, other: (...,) metres.
    """
    return np.asarray(2 * np.sqrt(np.multiply(radius, other)))


def offset(place: Floats, velocity: Floats, other: Floats) -> Floats:
    """How far (...,) in metres a still ball at `other` lies to the right of the line on which a moving ball travels.

    Args:
        place: (..., 2) metres, where the moving ball is.
        velocity: (..., 2) its velocity, in any unit; not zero.
        other: (..., 2) metres, the centre of the still ball.
    """
    d = _unit(velocity)
    gap = np.asarray(other, dtype=float) - place
    return np.asarray(gap[..., 0] * d[..., 1] - gap[..., 1] * d[..., 0])


def meeting(place: Floats, velocity: Floats, other: Floats, distance: Floats | float) -> Floats:
    """Where (..., 2) the centre of a moving ball is when it first touches a still ball; NaN where it never does.

    Args:
        place: (..., 2) metres, where the moving ball is.
        velocity: (..., 2) its velocity, in any unit; not zero.
        other: (..., 2) metres, the centre of the still ball.
        distance: (...,) metres between the centres when the balls touch (see `reach`).
    """
    d = _unit(velocity)
    gap = np.asarray(other, dtype=float) - place
    along = (gap * d).sum(axis=-1)
    depth = np.asarray(distance) ** 2 - offset(place, velocity, other) ** 2
    with np.errstate(invalid="ignore"):
        travel = np.where((depth >= 0) & (along > 0), along - np.sqrt(depth), np.nan)
    return np.asarray(np.asarray(place, dtype=float) + travel[..., None] * d)


def struck_direction(place: Floats, velocity: Floats, other: Floats, distance: Floats | float) -> Floats:
    """Unit vector (..., 2) along which a still, smooth ball leaves when a moving ball strikes it; NaN where it is missed.

    It is the line of centres at the moment of touch, whatever the masses, the restitution and the speed are.

    Args:
        place, velocity, other, distance: As for `meeting`.
    """
    return _unit(np.asarray(other, dtype=float) - meeting(place, velocity, other, distance))


def impact(
    velocity: Floats, other: Floats, normal: Floats, mass: Floats | float, other_mass: Floats | float, share: float
) -> tuple[Floats, Floats]:
    """Velocities (..., 2) of two smooth balls of equal size after an impact.

    Args:
        velocity, other: (..., 2) velocities before, metres per second.
        normal: (..., 2) unit vector from the first ball to the second at the moment of touch.
        mass, other_mass: (...,) kilograms.
        share: Restitution of the pair, 0 to 1 (the product of theirs).
    """
    approach = ((np.asarray(velocity) - other) * normal).sum(axis=-1)
    impulse = (1 + share) * approach / (1 / np.asarray(mass, dtype=float) + 1 / np.asarray(other_mass, dtype=float))
    first = velocity - (impulse / mass)[..., None] * normal
    second = other + (impulse / other_mass)[..., None] * normal
    return np.asarray(first), np.asarray(second)


def crossing(place: Floats, direction: Floats, line: Floats | float) -> Floats:
    """The x (...,) in metres at which a path from `place` along `direction` crosses the line y = `line`.

    NaN where it does not, because it leads along the line or away from it.

    Args:
        place: (..., 2) metres.
        direction: (..., 2) in any unit.
        line: (...,) metres.
    """
    place, direction = np.asarray(place, dtype=float), np.asarray(direction, dtype=float)
    ahead = line - place[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = place[..., 0] + ahead * direction[..., 0] / direction[..., 1]
    return np.where(ahead * direction[..., 1] > 0, found, np.nan)


def heading(degrees: Floats | float) -> Floats:
    """Unit vector (..., 2) of a direction on the table: 0 is +y (away from the viewer), positive turns to +x (right)."""
    angle = np.radians(degrees)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1)


def degrees(direction: Floats) -> Floats:
    """Inverse of `heading`: degrees (...,) from -180 to 180."""
    direction = np.asarray(direction, dtype=float)
    return np.asarray(np.degrees(np.arctan2(direction[..., 0], direction[..., 1])))


def _unit(v: Floats) -> Floats:
    v = np.asarray(v, dtype=float)
    return np.asarray(v / np.linalg.norm(v, axis=-1, keepdims=True))
