"""Choosing the codes of one weight: nearest, clipped to the calibration data, or with the error compensated (GPTQ).

All work in float32 on one matrix `[out, in]`; the statistics of its inputs come as a second moment. Knows no models.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from athena_vla.models.weights.packed import SMALLEST_SCALE, Bits, Packed

LARGEST = {4: 7, 8: 127}  # the scale maps the largest weight here; -8 stays usable as a code by compensation
LOWEST = {4: -8, 8: -127}
CLIPS = tuple(1.0 - 0.04 * i for i in range(10))  # tried shares of a group's largest weight
DAMPING = 0.01  # of the mean diagonal, as in GPTQ's published setting
BLOCK = 128  # columns between two updates of the rest of the matrix


def nearest(weight: Float[Tensor, "out in"], bits: Bits, group: int) -> Packed:
    """Round to the nearest code; a scale maps the largest weight of its group to the largest code."""
    return _encode(weight, largest_scales(weight, bits, group), bits)


def clipped(weight: Float[Tensor, "out in"], bits: Bits, group: int, moment: Float[Tensor, " in"]) -> Packed:
    """Round to the nearest code with the scale that costs least, each input weighted by its second moment."""
    return _encode(weight, clip_scales(weight, bits, group, moment), bits)


def compensated(weight: Float[Tensor, "out in"], bits: Bits, group: int, moment: Float[Tensor, "in in"]) -> Packed:
    """GPTQ: column after column, the rounding error is spread over the columns that are still to come.

    `moment` is the inputs' second moment, X^T X / n. Frantar et al. 2022, Algorithm 1, with clipped scales.
    """
    rows, columns = weight.shape
    work = weight.float().t().contiguous()  # [in, out]: one input's weights lie together, which is all the speed
    factor = _inverse_factor(moment)
    diagonal = moment.diagonal()
    codes = torch.zeros(columns, rows, dtype=torch.int8, device=work.device)
    scales = torch.zeros(columns // group, rows, dtype=torch.float16, device=work.device)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors = torch.zeros(stop - start, rows, device=work.device)
        for k in range(start, stop):
            if k % group == 0:
                # The scale is chosen on the weights as they are now, with the errors already pushed into them.
                now = _pending(work, errors, factor, start, stop, k, k + group)
                scales[k // group] = clip_scales(now.t(), bits, group, diagonal[k : k + group])[:, 0]
            scale = scales[k // group].float()
            code = (work[k] / scale).round_().clamp_(LOWEST[bits], LARGEST[bits])
            codes[k] = code.to(torch.int8)
            errors[k - start] = (work[k] - code * scale) / factor[k, k]
            work[k + 1 : stop].addr_(factor[k, k + 1 : stop], errors[k - start], alpha=-1)
        work[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    return Packed(codes.t().contiguous(), scales.t().contiguous(), bits)


def largest_scales(weight: Float[Tensor, "out in"], bits: Bits, group: int) -> Tensor:
    """[out, groups] fp16."""
    top = weight.float().reshape(weight.shape[0], -1, group).abs().amax(dim=-1)
    return (top / LARGEST[bits]).clamp_min(SMALLEST_SCALE).half()


def clip_scales(weight: Float[Tensor, "out in"], bits: Bits, group: int, moment: Float[Tensor, " in"]) -> Tensor:
    """[out, groups] fp16: of the tried clips the one with the least weighted squared rounding error."""
    grouped = weight.float().reshape(weight.shape[0], -1, group)
    importance = moment.float().reshape(1, -1, group)
    full = grouped.abs().amax(dim=-1)
    best_scale = torch.zeros_like(full)
    best_cost = torch.full_like(full, torch.inf)
    for clip in CLIPS:
        scale = (full * clip / LARGEST[bits]).clamp_min(SMALLEST_SCALE).half().float()
        code = (grouped / scale[:, :, None]).round_().clamp_(LOWEST[bits], LARGEST[bits])
        cost = ((code * scale[:, :, None] - grouped).square_() * importance).sum(dim=-1)
        better = cost < best_cost
        best_scale = torch.where(better, scale, best_scale)
        best_cost = torch.where(better, cost, best_cost)
    return best_scale.half()


def output_error(weight: Tensor, packed: Packed, moment: Tensor) -> float:
    """Expected relative error of the layer's output, from the second moment `[in, in]` or its diagonal `[in]`."""
    delta = packed.dequantize() - weight.float()
    if moment.ndim == 1:
        cost, size = (delta.square() @ moment).sum(), (weight.float().square() @ moment).sum()
    else:
        cost, size = ((delta @ moment) * delta).sum(), ((weight.float() @ moment) * weight.float()).sum()
    return float((cost / size.clamp_min(1e-24)).clamp_min(0).sqrt())  # a weight of zeros has no error


def fitting_group(columns: int, wanted: int) -> int | None:
    """The wanted group, or the largest smaller power of two that divides the input; None below 32."""
    group = wanted
    while group >= 32:
        if columns % group == 0:
            return group
        group //= 2
    return None


def _encode(weight: Tensor, scales: Tensor, bits: Bits) -> Packed:
    rows, columns = weight.shape
    grouped = weight.float().reshape(rows, scales.shape[1], -1)
    codes = (grouped / scales.float()[:, :, None]).round_().clamp_(LOWEST[bits], LARGEST[bits])
    return Packed(codes.to(torch.int8).reshape(rows, columns), scales, bits)


def _inverse_factor(moment: Tensor) -> Tensor:
    """Upper Cholesky factor of the damped inverse."""
    damped = moment.float().clone()
    mean = damped.diagonal().mean().clamp_min(1e-12)
    damped.diagonal().add_(DAMPING * mean)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


def _pending(work: Tensor, errors: Tensor, factor: Tensor, start: int, stop: int, first: int, last: int) -> Tensor:
    """Rows first to last of `work` as they will be: those beyond the block have not seen this block's errors yet."""
    now = work[first:last].clone()
    if last > stop:
        now[stop - first :] -= factor[start:stop, stop:last].t() @ errors
    return now
