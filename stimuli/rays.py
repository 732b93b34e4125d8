"""Compiled ray casting: what every pixel sees, how much light reaches it, and its colour. `vlm_probe.stimuli.raycast` prepares the arrays.

Bodies are made of convex pieces: polytopes, spheres and cylinders. A camera ray's direction has length 1 along the viewing
axis, so that its parameter is the depth. Only +, -, x, / and square roots are used, in a fixed order and without fast-math:
IEEE 754 defines their results to the last bit, so that the bytes of an image do not depend on the processor.

Numba recognises compiled code by the content of this one file: whatever is compiled has to be in it. Arrays are handed from function
to function one by one, because fields of a structure would be counted as references in every inner loop.

Arrays of n pieces and m things (bodies and markers), in metres, colours in linear light:
    camera: (5, 3) eye; directions into the image, to its right and up (these two as long as half the image at a depth of one metre); to the light.
    settings: (`SETTINGS`,) numbers of the whole scene.
    shape: (n, 4) kind, number of faces, the thing it belongs to, whether it casts shadows.
    planes: (n, FACES, 4) unit outward normal and offset of every face.
    solid: (n, 10) centre, radius, axis, half the length, radius of a sphere around it, how far it darkens what is around it.
    lens: (n, FACES, 4) the camera against every face, or the terms of the quadratic of a round piece.
    boxes: (n, 3, 4) columns and rows (from, from, to, to) of where a piece is seen, where its shadow falls on the floor, where it darkens it.
    way: (SUNS + AXES, 3) unit directions into the light, then axes all around.
    inverse: (n, SUNS + AXES, FACES) one over the speed at which a ray along each leaves each face.
    finish: (m, `FINISH`) of the things: place, own axes, colour, material.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

kernel = njit(cache=True, error_model="numpy")
inlined = njit(cache=True, error_model="numpy", forceinline=True)

POLYTOPE, SPHERE, CYLINDER = 0, 1, 2
"""Kinds of pieces."""
FACES = 8
"""A surface is numbered `FACES` times its piece plus its face; the floor and the background are negative."""
FLOOR, BACKGROUND = -1, -2
TILE = 4
"""Edge of a block of pixels that share one set of directions: each pixel takes its own part of it, and the parts are averaged."""
SUN, AROUND = 8, 4
"""Directions into the light, and axes (pairs of opposite directions) all around, that each pixel takes."""
SUNS, AXES = SUN * TILE * TILE, AROUND * TILE * TILE
SAMPLES = 16
"""Rays through a pixel in which surfaces meet."""
NOTHING = 1e30
"""Distance where nothing is hit, metres."""
PLAIN, PAINT, WOOD, METAL = 0, 1, 2, 3
"""Kinds of grain."""
STEPS = 160.0
"""Steps of brightness from black to full light."""
SPREAD, AMBIENT, DIFFUSE, SPECULAR, REACH, HAZE, LENS, SETTINGS = 0, 1, 2, 3, 4, 5, 6, 7
"""Tangent of the light's radius; Phong's coefficients; how far things darken, and at what depth the floor is half lost in the sky
(metres); half the image at a depth of one metre."""
PLACE, TURN, COLOUR, GRAIN, STRENGTH, WAVES, GLOSS, POLISH, MIRROR, TINTED, FINISH = (
    0,
    3,
    12,
    15,
    16,
    17,
    18,
    19,
    20,
    21,
    22,
)
"""Columns: place (3), own axes as rows, the longest first (9), colour (3), grain (kind, strength, waves per metre), highlight (strength, log2
of its exponent), share of the surroundings that is reflected, and how far reflections have the thing's own colour."""


@inlined
def _seen(shape, lens, i, gx, gy):
    """(depth, face) of a piece on the ray through the place (gx, gy) of the image; a depth of `NOTHING` if it misses."""
    if shape[i, 0] == POLYTOPE:
        enter, leave, face = 0.0, NOTHING, -1
        for j in range(shape[i, 1]):
            gap = lens[i, j, 0]
            along = lens[i, j, 1] + gx * lens[i, j, 2] + gy * lens[i, j, 3]
            if gap < 0.0:
                if along >= 0.0:
                    return NOTHING, 0
                t = gap / along
                if t > enter:
                    enter, face = t, j
            elif along > 0.0:
                t = gap / along
                leave = min(leave, t)
        if face < 0 or enter > leave:
            return NOTHING, 0
        return enter, face
    dd = 1.0 + (gx * gx + gy * gy) * lens[i, 3, 0]
    b = lens[i, 0, 1] + gx * lens[i, 0, 2] + gy * lens[i, 0, 3]
    if shape[i, 0] == SPHERE:
        root = b * b - dd * lens[i, 0, 0]
        if root <= 0.0 or b <= 0.0:
            return NOTHING, 0
        return (b - math.sqrt(root)) / dd, 0
    va, half = lens[i, 1, 0], lens[i, 2, 0]
    da = lens[i, 1, 1] + gx * lens[i, 1, 2] + gy * lens[i, 1, 3]
    across, b = dd - da * da, b - va * da
    best, face = NOTHING, 0
    root = b * b - across * lens[i, 0, 0]
    if root > 0.0:
        t = (b - math.sqrt(root)) / across
        if t > 0.0 and abs(t * da - va) <= half:
            best = t
    end = -1.0 if da > 0.0 else 1.0
    t = (va + end * half) / da
    # The square of the part of t d - v across the axis, less the radius squared.
    if 0.0 < t < best and t * t * across - 2.0 * t * b + lens[i, 0, 0] <= 0.0:
        best, face = t, 1 if end > 0.0 else 2
    return best, face


@kernel
def look(size: int, camera: Any, shape: Any, lens: Any, boxes: Any) -> Any:
    """Depth (metres) and surface of every pixel, seen through its centre: (size, size) each.

    Args:
        size: Edge of the image, pixels.
        camera, shape, lens, boxes: As above.
    """
    depth, surface = np.empty((size, size)), np.empty((size, size), dtype=np.int32)
    for y in range(size):
        # The horizon is level, because the right of the image is horizontal in space.
        far, back = _behind(camera, 1.0 - (2.0 * y + 1.0) / size)
        for x in range(size):
            depth[y, x], surface[y, x] = far, back
    for i in range(len(shape)):
        for y in range(boxes[i, 0, 1], boxes[i, 0, 3]):
            gy = 1.0 - (2.0 * y + 1.0) / size
            for x in range(boxes[i, 0, 0], boxes[i, 0, 2]):
                t, face = _seen(shape, lens, i, (2.0 * x + 1.0) / size - 1.0, gy)
                if t < depth[y, x]:
                    depth[y, x] = t
                    surface[y, x] = i * FACES + face
    return depth, surface


@inlined
def _dot(a, b):
    """The scalar product of two vectors."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@inlined
def _row(array, i, j):
    """Three numbers of a row as a vector: a slice of an array would be counted as a reference."""
    return array[i, j], array[i, j + 1], array[i, j + 2]


@inlined
def _from(p, q):
    """The vector from p to q."""
    return q[0] - p[0], q[1] - p[1], q[2] - p[2]


@inlined
def _unit(v):
    """The vector of length 1 in the direction of v."""
    length = math.sqrt(_dot(v, v))
    return v[0] / length, v[1] / length, v[2] / length


@inlined
def _ray(camera, gx, gy):
    """Direction of the ray through a place of the image."""
    return (
        camera[1, 0] + gx * camera[2, 0] + gy * camera[3, 0],
        camera[1, 1] + gx * camera[2, 1] + gy * camera[3, 1],
        camera[1, 2] + gx * camera[2, 2] + gy * camera[3, 2],
    )


@inlined
def _point(camera, s, gx, gy, t):
    """Where the ray through a place of the image is at a depth."""
    d = _ray(camera, gx, gy)
    return camera[0, 0] + t * d[0], camera[0, 1] + t * d[1], camera[0, 2] + t * d[2] if s >= 0 else 0.0


@inlined
def _normal(shape, planes, solid, s, p):
    """Outward normal of a surface at a point of it."""
    if s < 0:
        return 0.0, 0.0, 1.0
    i, face = s // FACES, s % FACES
    if shape[i, 0] == POLYTOPE:
        return planes[i, face, 0], planes[i, face, 1], planes[i, face, 2]
    ax, ay, az = _row(solid, i, 4)
    if face > 0:
        end = 1.0 if face == 1 else -1.0
        return end * ax, end * ay, end * az
    out = _from(_row(solid, i, 0), p)
    if shape[i, 0] == CYLINDER:
        along = _dot(out, (ax, ay, az))
        out = out[0] - along * ax, out[1] - along * ay, out[2] - along * az
    return _unit(out)


@inlined
def _met(shape, solid, way, inverse, gaps, i, q, sign, v):
    """Distance at which a ray along `sign` times direction q meets piece i; `NOTHING` if it does not.

    The piece's centre is at v from the start of the ray, which lies `gaps` (FACES,) inside its faces.
    """
    if shape[i, 0] == POLYTOPE:
        enter, leave = 0.0, NOTHING
        for j in range(shape[i, 1]):
            rate = sign * inverse[i, q, j]
            t = gaps[j] * rate
            if rate < 0.0:
                enter = max(enter, t)
            else:
                leave = min(leave, t)
        return enter if enter + 1e-7 < leave else NOTHING
    d = sign * way[q, 0], sign * way[q, 1], sign * way[q, 2]
    b, c = _dot(v, d), _dot(v, v) - solid[i, 3] * solid[i, 3]
    if shape[i, 0] == SPHERE:
        root = b * b - c
        return b - math.sqrt(root) if root > 0.0 and b > 0.0 else NOTHING
    axis, half = _row(solid, i, 4), solid[i, 7]
    da, va = _dot(d, axis), _dot(v, axis)
    across, b, c = 1.0 - da * da, b - va * da, c - va * va
    enter, leave = 0.0, NOTHING
    if across > 1e-12:
        root = b * b - across * c
        if root <= 0.0:
            return NOTHING
        root = math.sqrt(root)
        enter, leave = max(0.0, (b - root) / across), (b + root) / across
    elif c > 0.0:
        return NOTHING
    first, second = (va - half) / da, (va + half) / da
    enter, leave = max(enter, min(first, second)), min(leave, max(first, second))
    return enter if enter + 1e-7 < leave else NOTHING


@inlined
def _gaps(shape, planes, gaps, i, p):
    """How far a point lies inside every face of a piece, metres, into `gaps`."""
    for j in range(shape[i, 1]):
        gaps[j] = planes[i, j, 3] - planes[i, j, 0] * p[0] - planes[i, j, 1] * p[1] - planes[i, j, 2] * p[2]


@kernel
def _sunlit(camera, settings, shape, planes, solid, way, inverse, gaps, near, row, count, p, first):
    """Share of `SUN` directions into the light, from `first` on, in which none of the pieces in near[row] lies."""
    hit, blocked = 0, 0
    for k in range(count):
        i = near[row, k]
        v, bound = _from(p, _row(solid, i, 0)), solid[i, 8]
        along = _dot(v, _row(camera, 4, 0))
        wide = bound + settings[SPREAD] * (along + bound)
        if along < -bound or _dot(v, v) - along * along > wide * wide:
            continue
        _gaps(shape, planes, gaps, i, p)
        for r in range(SUN):
            if hit >> r & 1 == 0 and _met(shape, solid, way, inverse, gaps, i, first + r, 1.0, v) < NOTHING:
                hit |= 1 << r
                blocked += 1
        if blocked == SUN:
            break
    return 1.0 - blocked / SUN


@kernel
def _occluded(settings, shape, planes, solid, way, inverse, gaps, found, near, row, count, p, n, first):
    """How much of `AROUND` axes, from `first` on, the floor and the pieces in near[row] hide, and the sum of their weights."""
    for r in range(AROUND):
        found[r] = 0.0
    for k in range(count):
        i = near[row, k]
        v, reach = _from(p, _row(solid, i, 0)), solid[i, 9]
        far = reach + solid[i, 8]
        if _dot(n, v) < -solid[i, 8] or _dot(v, v) > far * far:
            continue
        _gaps(shape, planes, gaps, i, p)
        for r in range(AROUND):
            sign = 1.0 if _dot(n, _row(way, first + r, 0)) > 0.0 else -1.0
            share = 1.0 - _met(shape, solid, way, inverse, gaps, i, first + r, sign, v) / reach
            if share > found[r]:
                found[r] = share
    hidden = weights = 0.0
    for r in range(AROUND):
        weight = _dot(n, _row(way, first + r, 0))
        down = way[first + r, 2] if weight > 0.0 else -way[first + r, 2]
        weight = abs(weight)
        dark = found[r] * found[r]
        if down < 0.0:
            # The floor is bright itself: it hides half as much.
            share = max(0.0, 1.0 + p[2] / (down * settings[REACH]))
            dark = max(dark, 0.5 * share * share)
        hidden += weight * dark
        weights += weight
    return hidden, weights


@kernel
def _neighbours(camera, settings, shape, solid):
    """The pieces that can shade every piece, (n + 1, n), and how many (n,); and likewise those that can darken it.

    The last row is scratch space for the floor.
    """
    n = len(shape)
    shading, darkening = np.empty((n + 1, n), dtype=np.int64), np.empty((n + 1, n), dtype=np.int64)
    shades, darkens = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    for i in range(n):
        for j in range(n):
            if i == j or shape[j, 3] == 0:
                continue
            v = _from(_row(solid, i, 0), _row(solid, j, 0))
            away, bound = _dot(v, v), solid[i, 8] + solid[j, 8]
            far = bound + solid[j, 9]
            if away < far * far:
                darkening[i, darkens[i]] = j
                darkens[i] += 1
            along = _dot(v, _row(camera, 4, 0))
            wide = bound + settings[SPREAD] * (along + bound)
            if along > -bound and away - along * along < wide * wide:
                shading[i, shades[i]] = j
                shades[i] += 1
    return shading, shades, darkening, darkens


@inlined
def _inside(boxes, i, which, x, y):
    return boxes[i, which, 0] <= x < boxes[i, which, 2] and boxes[i, which, 1] <= y < boxes[i, which, 3]


@inlined
def _near_floor(boxes, which, active, count, x, y, near):
    """How many of the `active` pieces have a pixel of the floor in their boxes; their numbers go into the last row of `near`."""
    n = 0
    for k in range(count):
        if _inside(boxes, active[k], which, x, y):
            near[len(near) - 1, n] = active[k]
            n += 1
    return n


@inlined
def _part(x, y):
    """The part of the directions that a pixel takes, from 0: in the order of a dither, so that neighbours' parts are far apart."""
    a, b = x ^ y, y
    return (a & 1) << 3 | (b & 1) << 2 | (a & 2) | (b & 2) >> 1


@kernel
def light(
    depth: Any,
    surface: Any,
    camera: Any,
    settings: Any,
    shape: Any,
    planes: Any,
    solid: Any,
    boxes: Any,
    way: Any,
    inverse: Any,
) -> Any:
    """Share of the sun, and of the surroundings, that reaches what every pixel shows: (size, size) each.

    Args:
        depth, surface: From `look`.
        camera, settings, shape, planes, solid, boxes, way, inverse: As above.
    """
    size, pieces = len(depth), len(shape)
    lit, hidden, weights = np.ones((size, size)), np.zeros((size, size)), np.ones((size, size))
    touched = np.zeros((size, size), dtype=np.bool_)
    shading, shades, darkening, darkens = _neighbours(camera, settings, shape, solid)
    gaps, found, active = np.empty(FACES), np.empty(AROUND), np.empty(pieces, dtype=np.int64)
    for y in range(size):
        gy, count = 1.0 - (2.0 * y + 1.0) / size, 0
        for i in range(pieces):
            if shape[i, 3] and (boxes[i, 1, 1] <= y < boxes[i, 1, 3] or boxes[i, 2, 1] <= y < boxes[i, 2, 3]):
                active[count] = i
                count += 1
        for x in range(size):
            s = surface[y, x]
            if s == BACKGROUND or (s == FLOOR and count == 0):
                continue
            if s == FLOOR:
                row = pieces
                n_shading = _near_floor(boxes, 1, active, count, x, y, shading)
                n_darkening = _near_floor(boxes, 2, active, count, x, y, darkening)
                if n_shading + n_darkening == 0:
                    continue
            else:
                row = s // FACES
                n_shading, n_darkening = shades[row], darkens[row]
            p = _point(camera, s, (2.0 * x + 1.0) / size - 1.0, gy, depth[y, x])
            n, part = _normal(shape, planes, solid, s, p), _part(x, y)
            touched[y, x] = True
            if n_shading > 0 and _dot(n, _row(camera, 4, 0)) > 0.0:
                lit[y, x] = _sunlit(
                    camera, settings, shape, planes, solid, way, inverse, gaps, shading, row, n_shading, p, part * SUN
                )
            if n_darkening > 0 or s >= 0:
                first = SUNS + part * AROUND
                hidden[y, x], weights[y, x] = _occluded(
                    settings, shape, planes, solid, way, inverse, gaps, found, darkening, row, n_darkening, p, n, first
                )
    return _averaged(surface, touched, lit, hidden, weights)


@kernel
def _averaged(surface, touched, lit, hidden, weights):
    """The shares of `light` from the pixels of a tile around each that show the same surface."""
    size = len(surface)
    sun, around = np.ones((size, size)), np.ones((size, size))
    for y in range(size):
        for x in range(size):
            if not touched[y, x]:
                continue
            s = surface[y, x]
            total, n, dark, weight = 0.0, 0, 0.0, 0.0
            for v in range(max(0, y - 1), min(size, y + TILE - 1)):
                for u in range(max(0, x - 1), min(size, x + TILE - 1)):
                    if surface[v, u] == s:
                        total += lit[v, u]
                        n += 1
                        dark += hidden[v, u]
                        weight += weights[v, u]
            sun[y, x], around[y, x] = total / n, 1.0 - dark / weight
    return sun, around


@kernel
def _noise(noise, order, x, y, z):
    """Lattice noise from -1 to 1: random values at whole points, joined smoothly."""
    bx, by, bz = math.floor(x), math.floor(y), math.floor(z)
    fx, fy, fz = x - bx, y - by, z - bz
    fx, fy, fz = fx * fx * (3.0 - 2.0 * fx), fy * fy * (3.0 - 2.0 * fy), fz * fz * (3.0 - 2.0 * fz)
    ix, iy, iz = int(bx) & 255, int(by) & 255, int(bz) & 255
    total = 0.0
    for a in range(2):
        for b in range(2):
            row = order[order[ix + a] + iy + b]
            low, high = noise[order[row + iz]], noise[order[row + iz + 1]]
            total += (fx if a else 1.0 - fx) * (fy if b else 1.0 - fy) * (low + (high - low) * fz)
    return 2.0 * total - 1.0


@kernel
def _grain(finish, noise, order, m, p, pixel):
    """What the grain of a thing multiplies its colour by at a point, where a pixel spans that many metres."""
    kind, waves = finish[m, GRAIN], finish[m, WAVES]
    fade = min(1.0, 2.0 - 4.0 * pixel * waves)
    if kind == PLAIN or fade <= 0.0:
        return 1.0
    d = _from(_row(finish, m, PLACE), p)
    d = waves * d[0], waves * d[1], waves * d[2]
    a = _dot(_row(finish, m, TURN), d) + 17.3 * m
    b = _dot(_row(finish, m, TURN + 3), d)
    c = _dot(_row(finish, m, TURN + 6), d)
    if kind == WOOD:
        ring = math.sqrt((b + 1.9) * (b + 1.9) + (c - 2.3) * (c - 2.3))
        ring += 0.7 * _noise(noise, order, 0.12 * a, 0.5 * b, 0.5 * c)
        ring = abs(2.0 * (ring - math.floor(ring)) - 1.0)
        value = 1.6 * ring * ring * (3.0 - 2.0 * ring) - 0.8 + 0.5 * _noise(noise, order, 0.25 * a, 3.0 * b, 3.0 * c)
    else:
        value = _noise(noise, order, (0.06 if kind == METAL else 0.15) * a, b, c)
    return 1.0 + fade * finish[m, STRENGTH] * value


@inlined
def _stepped(value):
    """Light in steps too small to be seen: all channels then change together, which halves the size of the file."""
    level = math.floor(STEPS * math.sqrt(value) + 0.5) / STEPS
    return level * level


@kernel
def _backdrop(camera, settings, tint, s, gy, t, sun, around):
    """Colour of the floor or the background, which is the same all along a row of pixels where nothing is near."""
    if s == BACKGROUND:
        up = camera[1, 2] + gy * camera[3, 2]
        gain = 1.0 - 0.2 * min(0.5, max(0.0, up))
        return tint[1, 0] * gain, tint[1, 1] * gain, tint[1, 2] * gain
    far = t / settings[HAZE]
    haze = 0.6 * far * far / (1.0 + far * far)
    keep = (1.0 - haze) * _stepped(settings[AMBIENT] * around + settings[DIFFUSE] * max(0.0, camera[4, 2]) * sun)
    return (
        keep * tint[0, 0] + haze * tint[1, 0],
        keep * tint[0, 1] + haze * tint[1, 1],
        keep * tint[0, 2] + haze * tint[1, 2],
    )


@kernel
def _shaded(camera, settings, tint, finish, noise, order, m, p, n, gx, gy, t, size, sun, around):
    """Colour of a thing at a point: Lambert's law, light from above and from the floor, a highlight, a reflection of the backdrop."""
    d, toward = _unit(_ray(camera, gx, gy)), _row(camera, 4, 0)
    key = settings[DIFFUSE] * max(0.0, _dot(n, toward)) * sun
    fill = settings[AMBIENT] * around * (0.81 + 0.19 * n[2])
    half = _from(d, toward)
    shine = max(0.0, _dot(n, half) / math.sqrt(_dot(half, half) + 1e-30))
    for _ in range(int(finish[m, POLISH])):
        shine *= shine
    shine *= settings[SPECULAR] * finish[m, GLOSS] * sun
    facing, mirror = -_dot(d, n), finish[m, MIRROR]
    edge = 1.0 - max(0.0, facing)
    mirror += (1.0 - mirror) * 0.18 * edge * edge * edge if mirror > 0.0 else 0.0
    # The direction of the reflection above the horizon says whether it shows the sky or the floor.
    sky = min(1.0, max(0.0, (d[2] + 2.0 * facing * n[2] + 0.15) / 0.4))
    sky = sky * sky * (3.0 - 2.0 * sky)
    surroundings = mirror * around * (settings[AMBIENT] + 0.35)
    matte = _stepped(_grain(finish, noise, order, m, p, 2.0 * t * settings[LENS] / size) * (key + fill))
    matte *= 1.0 - mirror
    return (
        _channel(finish, tint, m, 0, matte, surroundings, sky, shine),
        _channel(finish, tint, m, 1, matte, surroundings, sky, shine),
        _channel(finish, tint, m, 2, matte, surroundings, sky, shine),
    )


@inlined
def _channel(finish, tint, m, k, matte, surroundings, sky, shine):
    """One channel of the colour of a thing, from its share of light and of what it reflects."""
    own, tinted = finish[m, COLOUR + k], finish[m, TINTED]
    seen = surroundings * (0.7 * tint[0, k] + (tint[1, k] - 0.7 * tint[0, k]) * sky) + shine
    return own * matte + seen * (1.0 - tinted + tinted * own)


@inlined
def _byte(value):
    """Linear light as a byte: the square root stands in for the curve of sRGB, which needs a power."""
    return np.uint8(255.0 * math.sqrt(min(1.0, max(0.0, value))) + 0.5)


@kernel
def _meeting(surface):
    """Whether a pixel or one of its eight neighbours shows another surface: (size, size)."""
    size = len(surface)
    found = np.zeros((size, size), dtype=np.bool_)
    for y in range(size):
        for x in range(size):
            s = surface[y, x]
            for k in range(4):
                v, u = (y, x + 1) if k == 3 else (y + 1, x + k - 1)
                if v < size and 0 <= u < size and surface[v, u] != s:
                    found[y, x] = found[v, u] = True
    return found


@kernel
def colours(
    depth: Any,
    surface: Any,
    sun: Any,
    around: Any,
    camera: Any,
    settings: Any,
    shape: Any,
    planes: Any,
    solid: Any,
    lens: Any,
    boxes: Any,
    finish: Any,
    tint: Any,
    spots: Any,
    noise: Any,
    order: Any,
) -> Any:
    """The image, (size, size, 3) bytes.

    Args:
        depth, surface: From `look`.
        sun, around: From `light`.
        camera, settings, shape, planes, solid, lens, boxes, finish: As above.
        tint: (2, 3) colours of the floor and the sky.
        spots: (SAMPLES, 2) where in a pixel rays go through, pixels from its upper left corner.
        noise: (256,) values of a lattice.
        order: (513,) its permutation.
    """
    size = len(depth)
    rgb = np.empty((size, size, 3), dtype=np.uint8)
    meeting = _meeting(surface)
    found, sums = np.empty(SAMPLES, dtype=np.int32), np.empty((SAMPLES, 4))
    for y in range(size):
        gy = 1.0 - (2.0 * y + 1.0) / size
        far, back = _behind(camera, gy)
        r, g, b = _backdrop(camera, settings, tint, back, gy, far, 1.0, 1.0)
        red, green, blue = _byte(r), _byte(g), _byte(b)
        for x in range(size):
            s, gx, lit, unhidden = surface[y, x], (2.0 * x + 1.0) / size - 1.0, sun[y, x], around[y, x]
            if meeting[y, x]:
                n = _sampled(x, y, size, camera, shape, lens, boxes, spots, found, sums)
                r = g = b = 0.0
                for k in range(n):
                    other, weight = found[k], sums[k, 3]
                    gx_, gy_, t = sums[k, 0] / weight, sums[k, 1] / weight, sums[k, 2] / weight
                    lit, unhidden = _light_near(surface, sun, around, other, x, y)
                    c = _surface_colour(
                        camera,
                        settings,
                        shape,
                        planes,
                        solid,
                        finish,
                        tint,
                        noise,
                        order,
                        other,
                        gx_,
                        gy_,
                        t,
                        size,
                        lit,
                        unhidden,
                    )
                    r, g, b = r + weight * min(1.0, c[0]), g + weight * min(1.0, c[1]), b + weight * min(1.0, c[2])
                r, g, b = r / SAMPLES, g / SAMPLES, b / SAMPLES
            elif s < 0 and lit == 1.0 and unhidden == 1.0:
                rgb[y, x, 0], rgb[y, x, 1], rgb[y, x, 2] = red, green, blue
                continue
            else:
                r, g, b = _surface_colour(
                    camera,
                    settings,
                    shape,
                    planes,
                    solid,
                    finish,
                    tint,
                    noise,
                    order,
                    s,
                    gx,
                    gy,
                    depth[y, x],
                    size,
                    lit,
                    unhidden,
                )
            rgb[y, x, 0], rgb[y, x, 1], rgb[y, x, 2] = _byte(r), _byte(g), _byte(b)
    return rgb


@inlined
def _behind(camera, gy):
    """Depth and surface of what is behind everything in a row of the image: the floor or the background."""
    down = camera[1, 2] + gy * camera[3, 2]
    return (-camera[0, 2] / down, FLOOR) if down < 0.0 else (NOTHING, BACKGROUND)


@kernel
def _surface_colour(
    camera, settings, shape, planes, solid, finish, tint, noise, order, s, gx, gy, t, size, sun, around
):
    """Colour of a surface at a place of the image."""
    if s < 0:
        return _backdrop(camera, settings, tint, s, gy, t, sun, around)
    p = _point(camera, s, gx, gy, t)
    n = _normal(shape, planes, solid, s, p)
    return _shaded(
        camera, settings, tint, finish, noise, order, shape[s // FACES, 2], p, n, gx, gy, t, size, sun, around
    )


@kernel
def _sampled(x, y, size, camera, shape, lens, boxes, spots, found, sums):
    """How many surfaces the rays through a pixel hit: into `found`; and sums over the rays of each, place, depth and 1, into `sums`."""
    n = 0
    for k in range(SAMPLES):
        gx, gy = 2.0 * (x + spots[k, 0]) / size - 1.0, 1.0 - 2.0 * (y + spots[k, 1]) / size
        t, s = _behind(camera, gy)
        for i in range(len(shape)):
            if _inside(boxes, i, 0, x, y):
                there, face = _seen(shape, lens, i, gx, gy)
                if there < t:
                    t, s = there, i * FACES + face
        at = 0
        while at < n and found[at] != s:
            at += 1
        if at == n:
            found[n] = s
            sums[n, 0] = sums[n, 1] = sums[n, 2] = sums[n, 3] = 0.0
            n += 1
        sums[at, 0] += gx
        sums[at, 1] += gy
        sums[at, 2] += t
        sums[at, 3] += 1.0
    return n


@kernel
def _light_near(surface, sun, around, s, x, y):
    """Shares of sun and surroundings on a surface, from the pixels around that show it at their centres.

    What is thinner than a pixel, so that none does, is in the light of whatever is next to it.
    """
    size = len(surface)
    lit = unhidden = any_lit = any_unhidden = 0.0
    many = others = 0
    for v in range(max(0, y - 1), min(size, y + 2)):
        for u in range(max(0, x - 1), min(size, x + 2)):
            if surface[v, u] == s:
                lit, unhidden, many = lit + sun[v, u], unhidden + around[v, u], many + 1
            any_lit, any_unhidden, others = any_lit + sun[v, u], any_unhidden + around[v, u], others + 1
    return (lit / many, unhidden / many) if many else (any_lit / others, any_unhidden / others)
