"""Numba kernels of the renderer: deform, turn, light, z-buffer, resolve. Single-threaded, without the GIL.

Frames are drawn one after another into buffers of SUPERSAMPLE² samples a pixel. Depth grows away from the camera.
"""

import numba
import numpy as np

_jit = numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz", "arcp"})


@_jit
def deform(neutral, start, index, value, coefficients, out):
    """out (V,3) = neutral + Σ coefficient · displacement."""
    out[:] = neutral
    for e in range(len(coefficients)):
        c = coefficients[e]
        if c != 0:
            for k in range(start[e], start[e + 1]):
                i = index[k]
                out[i, 0] += c * value[k, 0]
                out[i, 1] += c * value[k, 1]
                out[i, 2] += c * value[k, 2]


@_jit
def keep_lids_out(points, lids, eyes, gap):
    """Push lid vertices (2, n) that a linear blink carried into the eyeball back to its surface (times gap)."""
    for side in range(2):
        radius = eyes[side, 3] * gap
        for i in lids[side]:
            x, y, z = points[i, 0] - eyes[side, 0], points[i, 1] - eyes[side, 1], points[i, 2] - eyes[side, 2]
            d = np.sqrt(x * x + y * y + z * z)
            if d < radius:
                points[i, 0] = eyes[side, 0] + x * radius / d
                points[i, 1] = eyes[side, 1] + y * radius / d
                points[i, 2] = eyes[side, 2] + z * radius / d


@_jit
def turn_eyes(points, eye_start, eye_size, eyes, gaze):
    """Rotate each eyeball's vertices about its centre to gaze (2, 2): radians to +x, radians down."""
    for side in range(2):
        ch, sh = np.cos(-gaze[side, 0]), np.sin(-gaze[side, 0])
        cv, sv = np.cos(gaze[side, 1]), np.sin(gaze[side, 1])
        for i in range(eye_start[side], eye_start[side] + eye_size):
            x, y, z = points[i, 0] - eyes[side, 0], points[i, 1] - eyes[side, 1], points[i, 2] - eyes[side, 2]
            y, z = cv * y - sv * z, sv * y + cv * z
            points[i, 0] = eyes[side, 0] + ch * x + sh * z
            points[i, 1] = eyes[side, 1] + y
            points[i, 2] = eyes[side, 2] - sh * x + ch * z


@_jit
def turn_head(points, follow, pose, size, out):
    """Sample coordinates and depth (V,3) of canonical points; where follow < 1, shoulders stay half upright."""
    scale = np.sqrt(pose[0, 0] ** 2 + pose[1, 0] ** 2 + pose[2, 0] ** 2)
    half = np.float32(size * 0.5)
    m = np.empty((3, 3), np.float32)
    for i in range(len(points)):
        f = np.float32(0.3) + np.float32(0.7) * follow[i]
        g = (1 - f) * scale
        for r in range(3):
            for c in range(3):
                m[r, c] = f * pose[r, c] + (g if r == c else np.float32(0))
        x, y, z = points[i, 0], points[i, 1], points[i, 2]
        px = m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + pose[0, 3]
        py = m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + pose[1, 3]
        out[i, 0] = (px + 1) * half - np.float32(0.5)
        out[i, 1] = (py + 1) * half - np.float32(0.5)
        out[i, 2] = (m[2, 0] * x + m[2, 1] * y + m[2, 2] * z) * half


@_jit
def vertex_normals(points, faces, out):
    """Area-weighted normals (V,3), not normalised."""
    out[:] = 0
    for f in range(len(faces)):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ux, uy, uz = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1], points[b, 2] - points[a, 2]
        vx, vy, vz = points[c, 0] - points[a, 0], points[c, 1] - points[a, 1], points[c, 2] - points[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for i in (a, b, c):
            out[i, 0] += nx
            out[i, 1] += ny
            out[i, 2] += nz


@_jit
def shade(normals, turned_in, albedo, gloss, light, out):
    """Lit vertex colours (V,6): albedo times wrapped Lambert light, and a white highlight in the last three."""
    lx, ly, lz = light[2, 0], light[2, 1], light[2, 2]
    hx, hy, hz = lx, ly, lz - 1
    h = np.sqrt(hx * hx + hy * hy + hz * hz)
    for i in range(len(normals)):
        nx, ny, nz = normals[i, 0], normals[i, 1], normals[i, 2]
        d = np.float32(1) / np.sqrt(nx * nx + ny * ny + nz * nz + np.float32(1e-20))
        if turned_in[i] and nz > 0:
            d = -d
        nx, ny, nz = nx * d, ny * d, nz * d
        lambert = max((nx * lx + ny * ly + nz * lz + np.float32(0.15)) / np.float32(1.15), np.float32(0))
        sky = np.float32(0.86) - np.float32(0.14) * ny
        for c in range(3):
            out[i, c] = albedo[i, c] * (light[0, c] * sky + light[1, c] * lambert)
        shine = max((nx * hx + ny * hy + nz * hz) / h, np.float32(0)) ** 2
        shine = shine * shine
        shine = shine * shine
        out[i, 3] = gloss[i] * shine * shine


@_jit
def narrow(low, high, at, value, slope, inverse):
    """Part of the columns low…high where value + slope·(x − at) ≥ 0, a hair wider so that neighbours leave no crack."""
    slack = np.float32(1e-3)
    if slope > 0:
        low = max(low, at - value * inverse - slack)
    elif slope < 0:
        high = min(high, at - value * inverse + slack)
    elif value < 0:
        high = low - 1
    return low, high


@_jit
def fill(points, faces, two_sided, depth, owner, w0, w1):
    """Z-buffer all triangles: nearest depth, its triangle and two barycentric weights per sample."""
    size, one = depth.shape[0], np.float32(1)
    edge = np.float32(size - 1)
    depth[:] = np.float32(1e30)
    owner[:] = -1
    for f in range(len(faces)):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay, bx, by, cx, cy = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0 or (area > 0 and not two_sided[f]):
            continue
        left, right = max(min(ax, bx, cx), np.float32(0)), min(max(ax, bx, cx), edge)
        upper, lower = max(min(ay, by, cy), np.float32(0)), min(max(ay, by, cy), edge)
        if not (left <= right and upper <= lower):
            continue
        inv = one / area
        ux, uy, vx, vy = (by - cy) * inv, (cx - bx) * inv, (cy - ay) * inv, (ax - cx) * inv
        wx = -ux - vx
        iu, iv, iw = one / (ux if ux != 0 else one), one / (vx if vx != 0 else one), one / (wx if wx != 0 else one)
        zc = points[c, 2]
        zu, zv = points[a, 2] - zc, points[b, 2] - zc
        zx = ux * zu + vx * zv
        for y in range(int(np.ceil(upper)), int(lower) + 1):
            dy = np.float32(y) - cy
            u, v = (left - cx) * ux + dy * uy, (left - cx) * vx + dy * vy
            low, high = narrow(left, right, left, u, ux, iu)
            low, high = narrow(low, high, left, v, vx, iv)
            low, high = narrow(low, high, left, one - u - v, wx, iw)
            if not low <= high:
                continue
            start = int(np.ceil(low))
            ahead = np.float32(start) - left
            u += ahead * ux
            v += ahead * vx
            z = zc + u * zu + v * zv
            row = depth[y]
            for x in range(np.uint64(start), np.uint64(int(high) + 1)):
                if z < row[x]:
                    row[x] = z
                    owner[y, x] = f
                    w0[y, x] = u
                    w1[y, x] = v
                u += ux
                v += vx
                z += zx


@_jit
def between(layer, x, y):
    """Bilinear colour of a texture layer (n, n, 3) at texel coordinates."""
    n, half = layer.shape[0], np.float32(0.5)
    x, y = max(x - half, np.float32(0)), max(y - half, np.float32(0))
    i, j = min(int(y), n - 2), min(int(x), n - 2)
    fx, fy = min(x - np.float32(j), np.float32(1)), min(y - np.float32(i), np.float32(1))
    a, b, c, d = (1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy
    p, q, r, s = layer[i, j], layer[i, j + 1], layer[i + 1, j], layer[i + 1, j + 1]
    return (
        a * p[0] + b * q[0] + c * r[0] + d * s[0],
        a * p[1] + b * q[1] + c * r[1] + d * s[1],
        a * p[2] + b * q[2] + c * r[2] + d * s[2],
    )


@_jit
def resolve(owner, w0, w1, faces, label, material, lit, uv, textures, labels, background, step, image, mask):
    """Colour each sample from its triangle, average step² samples a pixel; the mask takes the highest label.

    Skin, texture layer 0, is labelled by its texel, other triangles as a whole.
    """
    size, n = image.shape[0], textures.shape[1]
    close = size > 160  # texels larger than samples
    share = np.float32(1) / np.float32(step * step)
    for i in range(size):
        for j in range(size):
            r, g, b, top = np.float32(0), np.float32(0), np.float32(0), 0
            for y in range(i * step, (i + 1) * step):
                for x in range(j * step, (j + 1) * step):
                    f = owner[y, x]
                    if f < 0:
                        r += background[i, j, 0]
                        g += background[i, j, 1]
                        b += background[i, j, 2]
                        continue
                    p, q, s = faces[f, 0], faces[f, 1], faces[f, 2]
                    u, v = w0[y, x], w1[y, x]
                    w = 1 - u - v
                    m, tr, tg, tb = material[f], np.float32(255), np.float32(255), np.float32(255)
                    found = label[f]
                    if m >= 0:
                        tx = (u * uv[p, 0] + v * uv[q, 0] + w * uv[s, 0]) * n
                        ty = (u * uv[p, 1] + v * uv[q, 1] + w * uv[s, 1]) * n
                        cx, cy = min(max(int(tx), 0), n - 1), min(max(int(ty), 0), n - 1)
                        if m == 0:
                            found = labels[cy, cx]
                        if close:
                            tr, tg, tb = between(textures[m], tx, ty)
                        else:
                            tr, tg, tb = textures[m, cy, cx, 0], textures[m, cy, cx, 1], textures[m, cy, cx, 2]
                    shine = np.float32(255) * (u * lit[p, 3] + v * lit[q, 3] + w * lit[s, 3])
                    r += min(tr * (u * lit[p, 0] + v * lit[q, 0] + w * lit[s, 0]) + shine, np.float32(255))
                    g += min(tg * (u * lit[p, 1] + v * lit[q, 1] + w * lit[s, 1]) + shine, np.float32(255))
                    b += min(tb * (u * lit[p, 2] + v * lit[q, 2] + w * lit[s, 2]) + shine, np.float32(255))
                    top = max(top, found)
            image[i, j, 0] = np.uint8(r * share + np.float32(0.5))
            image[i, j, 1] = np.uint8(g * share + np.float32(0.5))
            image[i, j, 2] = np.uint8(b * share + np.float32(0.5))
            mask[i, j] = top


@_jit
def paint_background(rows, size):
    """Background (size, size, 3) in 0–255 of a head's scenery rows: gradient, then soft boxes (1) and discs (2)."""
    out = np.empty((size, size, 3), np.float32)
    unit, full, zero, one = np.float32(2 / size), np.float32(255), np.float32(0), np.float32(1)
    for i in range(size):
        for j in range(size):
            x, y = (np.float32(j) + np.float32(0.5)) * unit - one, (np.float32(i) + np.float32(0.5)) * unit - one
            t = min(max(np.float32(0.5) + np.float32(0.4) * y + np.float32(0.3) * rows[0, 1] * x, zero), one)
            for c in range(3):
                out[i, j, c] = full * (rows[0, 6 + c] * (one - t) + rows[1, 6 + c] * t)
    for k in range(2, len(rows)):
        reach = one + np.float32(0.5) * rows[k, 5]
        x0, x1 = rows[k, 1] - reach * rows[k, 3], rows[k, 1] + reach * rows[k, 3]
        y0, y1 = rows[k, 2] - reach * rows[k, 4], rows[k, 2] + reach * rows[k, 4]
        for i in range(max(int((y0 + one) / unit), 0), min(int((y1 + one) / unit) + 1, size)):
            dy = abs((np.float32(i) + np.float32(0.5)) * unit - one - rows[k, 2]) / rows[k, 4]
            for j in range(max(int((x0 + one) / unit), 0), min(int((x1 + one) / unit) + 1, size)):
                dx = abs((np.float32(j) + np.float32(0.5)) * unit - one - rows[k, 1]) / rows[k, 3]
                d = max(dx, dy) if rows[k, 0] == 1 else np.sqrt(dx * dx + dy * dy)
                a = min(max((one - d) / rows[k, 5] + np.float32(0.5), zero), one) * np.float32(0.8)
                for c in range(3):
                    out[i, j, c] += a * (full * rows[k, 6 + c] - out[i, j, c])
    return out


@_jit
def draw_frames(
    neutral, start, index, value, lids, gap, eye_start, eye_size, eyes, follow, faces, label, material, two_sided,
    turned_in, albedo, gloss, light, uv, textures, labels, scenery, expression, gaze, pose, step, image, mask,
):  # fmt: skip
    """Draw every frame of expression (N,E), gaze (N,2,2), pose (N,3,4) into image (N,S,S,3) and mask (N,S,S)."""
    size, count = image.shape[1], len(neutral)
    wide = size * step
    points, turned = np.empty((count, 3), np.float32), np.empty((count, 3), np.float32)
    normals, lit = np.empty((count, 3), np.float32), np.empty((count, 4), np.float32)
    depth, owner = np.empty((wide, wide), np.float32), np.empty((wide, wide), np.int32)
    w0, w1 = np.empty((wide, wide), np.float32), np.empty((wide, wide), np.float32)
    background = paint_background(scenery, size)
    for k in range(len(pose)):
        deform(neutral, start, index, value, expression[k], points)
        keep_lids_out(points, lids, eyes, gap)
        turn_eyes(points, eye_start, eye_size, eyes, gaze[k])
        turn_head(points, follow, pose[k], wide, turned)
        vertex_normals(turned, faces, normals)
        shade(normals, turned_in, albedo, gloss, light, lit)
        fill(turned, faces, two_sided, depth, owner, w0, w1)
        resolve(owner, w0, w1, faces, label, material, lit, uv, textures, labels, background, step, image[k], mask[k])


@_jit
def sharpness(image, box):
    """Variance of the Laplacian of the 8-bit luma inside boxes (T,4) x0 y0 x1 y1 of pictures (T,S,S,3); (T,)."""
    out = np.zeros(len(image), np.float32)
    size = image.shape[1]
    luma = np.empty((size, size), np.float32)
    for t in range(len(image)):
        for i in range(size):
            for j in range(size):
                r, g, b = image[t, i, j, 0], image[t, i, j, 1], image[t, i, j, 2]
                luma[i, j] = np.float32(0.299) * r + np.float32(0.587) * g + np.float32(0.114) * b
        total, square, count = 0.0, 0.0, 0
        for i in range(max(box[t, 1], 1), min(box[t, 3], size - 1)):
            for j in range(max(box[t, 0], 1), min(box[t, 2], size - 1)):
                v = luma[i - 1, j] + luma[i + 1, j] + luma[i, j - 1] + luma[i, j + 1] - 4 * luma[i, j]
                total += v
                square += v * v
                count += 1
        if count:
            out[t] = square / count - (total / count) ** 2
    return out
