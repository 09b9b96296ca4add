"""PyTorch's layers and losses, written in tapegrad's ops. See `torch_table.py`."""

import math

import numpy as np

import tapegrad as tg
from torch_functions import bare, length, reduced


def cross_entropy(a, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    logs = tg.log_softmax(a, axis=1 if np.ndim(a) > 1 else 0)
    if np.asarray(bare(target)).dtype.kind == "f":
        w = 1.0 if weight is None else weight.reshape((-1,) + (1,) * (a.ndim - 2))
        loss = -tg.sum(logs * target * w, axis=1 if a.ndim > 1 else 0)
        return tg.sum(loss) / loss.size if reduction == "mean" else reduced(reduction, loss)
    return nll_loss(logs, target, weight, ignore_index, reduction)


def nll_loss(logs, target, weight=None, ignore_index=-100, reduction="mean"):
    classes = logs.shape[1 if logs.ndim > 1 else 0]
    kept = target != ignore_index
    safe = np.where(kept, target, 0)
    weights = kept * (np.ones(classes) if weight is None else weight)[safe]
    if logs.ndim == 1:
        loss = -logs[int(safe)] * weights
    else:
        loss = -tg.moveaxis(logs, 1, -1)[(*np.indices(safe.shape), safe)] * weights
    return tg.sum(loss) / weights.sum() if reduction == "mean" else reduced(reduction, loss)


def normalized(a, over, weight=None, bias=None, eps=1e-5, center=True):
    """Layer normalization over the axes `over`."""
    centered = a - tg.mean(a, axis=over, keepdims=True) if center else a
    y = centered / tg.sqrt(tg.mean(centered * centered, axis=over, keepdims=True) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def layer_norm(a, shape, weight=None, bias=None, eps=1e-5):
    return normalized(a, tuple(range(-len(shape), 0)), weight, bias, eps)


def rms_norm(a, shape, weight=None, eps=None):
    eps = np.finfo(np.float64).eps if eps is None else eps
    return normalized(a, tuple(range(-len(shape), 0)), weight, None, eps, center=False)


def group_norm(a, groups, weight=None, bias=None, eps=1e-5):
    parts = a.reshape((a.shape[0], groups, -1)) if a.size else a.reshape((0, groups, a.shape[1] // groups))
    y = normalized(parts, (2,), eps=eps).reshape(a.shape)
    wide = (-1,) + (1,) * (a.ndim - 2)
    y = y if weight is None else y * weight.reshape(wide)
    return y if bias is None else y + bias.reshape(wide)


def batch_norm(a, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    wide = (-1,) + (1,) * (a.ndim - 2)
    if training:
        y = normalized(a, (0, *range(2, a.ndim)), eps=eps)
    else:
        y = (a - mean.reshape(wide)) / np.sqrt(var.reshape(wide) + eps)
    y = y if weight is None else y * weight.reshape(wide)
    return y if bias is None else y + bias.reshape(wide)


def instance_norm(
    a,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
):
    wide = (-1,) + (1,) * (a.ndim - 2)
    if use_input_stats:
        y = normalized(a, tuple(range(2, a.ndim)), eps=eps)
    else:
        y = (a - running_mean.reshape(wide)) / np.sqrt(running_var.reshape(wide) + eps)
    y = y if weight is None else y * weight.reshape(wide)
    return y if bias is None else y + bias.reshape(wide)


def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    if enable_gqa:
        k, v = (tg.repeat(x, q.shape[-3] // x.shape[-3], axis=-3) for x in (k, v))
    scores = (q @ k.mT) * (1.0 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = np.tri(q.shape[-2], k.shape[-2]) > 0
    if attn_mask is not None:
        boolean = bare(attn_mask).dtype == bool
        scores = tg.where(attn_mask, scores, -np.inf) if boolean else scores + attn_mask
    return tg.softmax(scores) @ v


def channel_shuffle(a, groups):
    n, c, *rest = a.shape
    return tg.swapaxes(a.reshape((n, groups, c // groups, *rest)), 1, 2).reshape(a.shape)


def pdist(a, p=2.0):
    first, second = np.triu_indices(a.shape[0], 1)
    return length(a[first] - a[second], p, -1)


def normalize(a, p=2.0, dim=1, eps=1e-12):
    return a / tg.maximum(length(a, p, dim if a.ndim else None, True), eps)


def cosine_similarity(a, b, dim=1, eps=1e-8):
    dim = dim if max(a.ndim, b.ndim) else None
    shape = np.broadcast_shapes(a.shape, b.shape)
    a, b = tg.broadcast_to(a, shape), tg.broadcast_to(b, shape)
    return tg.sum(
        a / tg.maximum(length(a, 2, dim, True), eps) * b / tg.maximum(length(b, 2, dim, True), eps), axis=dim
    )


def cosine_embedding_loss(a, b, target, margin=0, reduction="mean"):
    def squares(x):
        return tg.sum(x * x, axis=-1) + 1e-12

    cosine = tg.sum(a * b, axis=-1) / tg.sqrt(squares(a) * squares(b))
    return reduced(reduction, tg.where(target == 1, 1.0 - cosine, tg.relu(cosine - margin)))


def pairwise_distance(a, b, p=2.0, eps=1e-6, keepdim=False):
    d = a - b + eps
    return length(d, p, -1 if d.ndim else None, keepdim)


def triplet_margin_loss(
    anchor,
    positive,
    negative,
    margin=1.0,
    p=2.0,
    eps=1e-6,
    swap=False,
    reduction="mean",
    distance_function=None,
):
    def distance(a, b):  # PyTorch's samples give none but the one of this name
        return pairwise_distance(a, b, p, eps)

    far = distance(anchor, negative)
    if swap:
        far = tg.minimum(far, distance(positive, negative))
    return reduced(reduction, tg.relu(distance(anchor, positive) - far + margin))


def binary_cross_entropy(a, target, weight=None, reduction="mean"):
    # PyTorch stops each logarithm at -100.
    loss = -(target * tg.maximum(tg.log(a), -100.0) + (1.0 - target) * tg.maximum(tg.log1p(-a), -100.0))
    return reduced(reduction, loss if weight is None else loss * weight)


def binary_cross_entropy_with_logits(a, target, weight=None, reduction="mean", pos_weight=None):
    if pos_weight is None:
        loss = tg.softplus(a) - target * a
    else:
        loss = (1.0 - target) * a + (1.0 + (pos_weight - 1.0) * target) * tg.softplus(-a)
    return reduced(reduction, loss if weight is None else loss * weight)


def huber_loss(a, b, reduction="mean", delta=1.0):
    d = a - b
    return reduced(reduction, tg.where(abs(d) <= delta, d * d * 0.5, delta * (abs(d) - delta * 0.5)))


def smooth_l1_loss(a, b, reduction="mean", beta=1.0):
    return reduced(reduction, abs(a - b)) if beta == 0 else huber_loss(a, b, reduction, beta) / beta


def kl_div(a, target, reduction="mean", log_target=False):
    loss = tg.exp(target) * (target - a) if log_target else tg.special.xlogy(target, target) - target * a
    return tg.sum(loss) / a.shape[0] if reduction == "batchmean" else reduced(reduction, loss)


def poisson_nll_loss(a, target, log_input=True, full=False, eps=1e-8, reduction="mean"):
    loss = tg.exp(a) - target * a if log_input else a - target * tg.log(a + eps)
    if full:
        stirling = target * tg.log(target) - target + tg.log(target * (2.0 * math.pi)) * 0.5
        loss = loss + tg.where(target <= 1, 0.0, stirling)
    return reduced(reduction, loss)


def gaussian_nll_loss(a, target, var, full=False, eps=1e-6, reduction="mean"):
    if np.shape(var) != a.shape and np.ndim(var):
        var = var if np.ndim(var) == a.ndim else var[..., None]
    clamped = tg.stop_gradient(tg.maximum(var, eps)) - tg.stop_gradient(var) + var
    loss = 0.5 * (tg.log(clamped) + (a - target) * (a - target) / clamped)
    return reduced(reduction, loss + 0.5 * math.log(2 * math.pi) if full else loss)


def gelu(a, approximate="none"):
    if approximate == "tanh":
        return a * 0.5 * (1.0 + tg.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a * a * a)))
    return a * tg.special.ndtr(a)


def elu(a, alpha=1.0, scale=1.0):
    return tg.where(a > 0, a, tg.expm1(tg.minimum(a, 0.0)) * alpha) * scale


def prelu(a, weight):
    weight = weight.reshape(
        (-1,) + (1,) * (a.ndim - 2) if a.ndim > 1 else () if a.ndim == 0 else weight.shape
    )
    return tg.where(a > 0, a, weight * a)


def softplus(a, beta=1.0, threshold=20.0):
    return tg.where(a * beta > threshold, a, tg.softplus(a * beta) / beta)


def glu(a, dim=-1):
    half, gate = tg.split(a, 2, dim)
    return half * tg.sigmoid(gate)


def linear(x, w, bias=None):
    y = x @ w.T if w.ndim > 1 else x @ w
    return y if bias is None else y + bias


def bilinear(x, y, w, bias=None):
    z = tg.einsum("...i,oij,...j->...o", x, w, y)
    return z if bias is None else z + bias


def pixel_shuffle(a, upscale_factor):
    r, (*lead, c, h, w) = upscale_factor, a.shape
    split = a.reshape((*lead, c // (r * r), r, r, h, w))
    n = len(lead)
    return tg.transpose(split, (*range(n + 1), n + 3, n + 1, n + 4, n + 2)).reshape(
        (*lead, c // (r * r), h * r, w * r)
    )


def pixel_unshuffle(a, downscale_factor):
    r, (*lead, c, h, w) = downscale_factor, a.shape
    split = a.reshape((*lead, c, h // r, r, w // r, r))
    n = len(lead)
    return tg.transpose(split, (*range(n + 1), n + 2, n + 4, n + 1, n + 3)).reshape(
        (*lead, c * r * r, h // r, w // r)
    )
