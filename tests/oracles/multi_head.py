"""Multi-head attention in float64 NumPy, from the parameters of the modules."""

import numpy as np

from tests.oracles import attention, rotary


def multi_head_attention(
    parameters,
    inputs_q,
    inputs_kv=None,
    *,
    key_value=None,
    positions=None,
    rotary_base=None,
    seen=True,
    soft_cap=None,
    added=0.0,
    scale=None,
    epsilon=1e-6,
):
    """Grouped heads, normalised by RMSNorm, rotated in halves, with sinks and a gate.

    Args:
      parameters: `query`, `key`, `value`, `out`, and those of `query_ln`, `key_ln`, `sink` and
        `gate` that there are.
      inputs_q: `[B, T, M]`.
      inputs_kv: `[B, S, M]`; by default `inputs_q`.
      key_value: Keys and values in place of projections.
      positions: Of the tokens, for self-attention; by default 0, 1, ...
      rotary_base: Base of the frequencies; None for no rotation.
      seen: Who sees whom, broadcasts to `[B, N, T, S]`.
      soft_cap: c of c · tanh(score / c).
      added: To the scores after that.
      scale: Factor of the scores.
      epsilon: Of RMSNorm.

    Returns:
      The output `[B, T, M]`, the keys and the values.
    """

    def project(name, x):
        layer = parameters[name]
        return np.einsum("btm,mnd->btnd", np.asarray(x, np.float64), layer["kernel"]) + np.asarray(
            layer["bias"], np.float64
        )

    def normalized_and_rotated(name, heads):
        if f"{name}_ln" in parameters:
            mean_square = np.mean(heads**2, axis=-1, keepdims=True)
            heads = heads / np.sqrt(mean_square + epsilon) * parameters[f"{name}_ln"]["scale"]
        if rotary_base is None:
            return heads
        places = np.arange(heads.shape[1]) if positions is None else positions
        frequencies = rotary.plain(heads.shape[-1], rotary_base)
        return rotary.rotate(heads, places, frequencies)

    inputs_kv = inputs_q if inputs_kv is None else inputs_kv
    query = normalized_and_rotated("query", project("query", inputs_q))
    if key_value is None:
        key_value = (
            normalized_and_rotated("key", project("key", inputs_kv)),
            project("value", inputs_kv),
        )
    key, value = key_value
    groups = query.shape[2] // key.shape[2]
    scale = 1 / np.sqrt(query.shape[-1]) if scale is None else scale
    scores = scale * np.einsum("btnd,bsnd->bnts", query, np.repeat(key, groups, axis=2))
    scores = scores if soft_cap is None else soft_cap * np.tanh(scores / soft_cap)
    scores = scores + added
    heads, _ = attention.attend(scores, value, seen, sink=parameters.get("sink"))
    if "gate" in parameters:
        heads = heads / (1 + np.exp(-project("gate", inputs_q)))
    out = parameters["out"]
    return np.einsum("btnd,ndm->btm", heads, out["kernel"]) + out["bias"], key, value
