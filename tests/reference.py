"""The forward pass of one example in float64 numpy, written from the paper's equations (§3).

It shares no code with the package: no packing, no segments, no intervals, no schedule. Positions are counted here,
masks are dense comparisons of global positions, and post-fusion states call each other recursively.

Axis letters: T query tokens, S key tokens, N heads, K key/value heads, H head_dim, D embed_dim.
"""

import math

import numpy as np
from outside_fusions import one_way_effect, shared_keys_and_values, soft_tokens


def logits(config, params, example, layout, fused=True):
    """tower -> logits [tokens of the example in that tower, V], float64. ``fused=False``: each tower alone."""
    params = _tree(params)
    tokens = {tower: [] for tower in config.towers}
    places = {tower: [] for tower in config.towers}
    position = 0
    for span in example:
        where = layout[span.modality]
        for token in [where.begin, *span.tokens, where.end]:
            tokens[where.tower].append(where.offset + int(token))
            places[where.tower].append(position)
            position += 1
    model = _Model(config, params, tokens, {t: np.array(p, int) for t, p in places.items()}, fused)
    return {tower: model.logits(tower) for tower in config.towers}


def _tree(tree):
    return {k: _tree(v) if isinstance(v, dict) else np.asarray(v, np.float64) for k, v in tree.items()}


class _Model:
    def __init__(self, config, params, tokens, places, fused):
        self.config, self.params, self.tokens, self.places, self.fused = config, params, tokens, places, fused
        self.memo = {}

    def logits(self, tower):
        own, t = self.params["towers"][tower], self.config.towers[tower]
        x = tower_norm(t, self.own(tower, self.post(tower, t.num_layers), t.num_layers), own["final_norm"])
        table = own["embedding"]["table"] if t.tied_head else own["head"]["table"]
        added = self.params.get("added_embeddings", {}).get(tower) if self.fused else None
        if added is not None:
            table = np.concatenate([table, added["table"] if t.tied_head else added["head_table"]])
        return softcap(x @ table.T * t.logit_scale, t.logit_softcap)

    def post(self, tower, block):
        """m-tilde: the input of block + 1."""
        if block == 0:
            return self.start(tower)
        if ("post", tower, block) not in self.memo:
            m = self.pre(tower, block)
            _, own, _ = self.rows(tower, block)
            total = m.copy()
            for z in self.config.zips if self.fused else ():
                if placement(z) != "behind":
                    continue
                receivers = z.into or z.towers
                for member, pair in enumerate(self.pairs(z)):
                    at = dict(zip(z.towers, pair, strict=True))
                    if tower in receivers and at.get(tower) == block:
                        (source,) = set(z.towers) - {tower}
                        m_source = self.own(source, self.pre(source, at[source]), at[source])
                        total[own] += self.effect(z, member, tower, source, m[own], m_source)
            self.memo["post", tower, block] = total
        return self.memo["post", tower, block]

    def pre(self, tower, block):
        """m: the output of the block, counted from 1."""
        if ("pre", tower, block) not in self.memo:
            p = _member(self.params["towers"][tower]["blocks"], block - 1)
            t, x = self.config.towers[tower], self.input(tower, block)
            at, own, local = self.rows(tower, block)
            kind = np.where(own, np.cumsum(own), np.cumsum(~own))  # index among tokens of the same kind
            a = p["attention"]
            q, k, v = self.heads(tower, block)
            window = t.windows[block - 1] if t.windows else 0
            distance = local[:, None] - local[None, :]
            bias = None
            if t.positions == "relative":
                table = self.params["towers"][tower]["relative_bias"]["table"]
                bias = np.array([[table[bucket(d)] for d in row] for row in np.maximum(distance, 0)])
                bias = bias.reshape(*distance.shape, t.num_heads)
            near = (kind[:, None] - kind[None, :] < (window or len(x) + 1)) | (own[:, None] != own[None, :])
            mask = (at[:, None] >= at[None, :]) & near
            gated = []
            for k_more, v_more, mask_more, share in self.inside(tower, block):
                if share is None:
                    k, v, mask = np.concatenate([k, k_more]), np.concatenate([v, v_more]), np.hstack([mask, mask_more])
                else:
                    gated.append((k_more, v_more, mask_more, share))
            mixed = attend(q, k, v, mask, t.attention_scale, t.attention_softcap, bias)
            mixed = mixed + shared(q, (k, v, mask), gated, mixed, t.attention_scale, t.attention_softcap)
            out = np.einsum("tnh,nhd->td", mixed, a["output"]["kernel"]) + a["output"].get("bias", 0.0)
            if t.norm_placement == "both":
                out = tower_norm(t, out, p["attention_output_norm"])
            y = tower_norm(t, x if t.parallel else x + out, p["mlp_norm"])
            hidden = dense(y, p["mlp"]["up"])
            gate = dense(y, p["mlp"]["gate"]) if t.gated_mlp else hidden
            hidden = ACTIVATIONS[t.activation](gate) * (hidden if t.gated_mlp else 1.0)
            fed = dense(hidden, p["mlp"]["down"])
            if t.norm_placement == "both":
                fed = tower_norm(t, fed, p["mlp_output_norm"])
            self.memo["pre", tower, block] = x + out + fed
        return self.memo["pre", tower, block]

    def heads(self, tower, block):
        """Query, key and value of the block's input."""
        p, t = _member(self.params["towers"][tower]["blocks"], block - 1), self.config.towers[tower]
        x = self.input(tower, block)
        y, a, (_, _, local) = tower_norm(t, x, p["attention_norm"]), p["attention"], self.rows(tower, block)
        q, k, v = heads(y, a["query"]), heads(y, a["key"]), heads(y, a["value"])
        if t.query_key_norm:
            q, k = (rms_norm(z, a[n], t.norm_epsilon, t.norm_offset) for z, n in ((q, "query_norm"), (k, "key_norm")))
        if t.positions == "rotary":
            near = bool(t.windows and t.windows[block - 1]) and t.window_rope_base is not None
            base, scaling = (t.window_rope_base, None) if near else (t.rope_base, t.rope_scaling)
            q, k = (partial_rope(z, local, base, scaling, t.rope_fraction) for z in (q, k))
        return q, k, v

    def inside(self, tower, block):
        """Further keys, values and their mask of the block's attention, and the factor on their share (None: 1)."""
        for z in self.config.zips if self.fused else ():
            for member, pair in enumerate(self.pairs(z)):
                at = dict(zip(z.towers, pair, strict=True))
                if placement(z) == "inside" and tower in (z.into or z.towers) and at.get(tower) == block:
                    (source,) = set(z.towers) - {tower}
                    zips = self.params.get("zips", {})  # a fusion may have no parameters
                    p = _member(zips.get("-".join(sorted(z.towers)), {}).get(f"into_{tower}", {}), member)
                    _, k, v = (self.own(source, x, at[source]) for x in self.heads(source, at[source]))
                    positions, own, _ = self.rows(tower, block)  # soft tokens see their own sequence only
                    mask = (self.places[source][None, :] < positions[:, None]) & own[:, None]
                    if "key_map" in p:
                        k, v = shared_keys_and_values(p, k, v)
                    yield k, v, mask, np.tanh(p["attention_gate"]) if "attention_gate" in p else None

    def soft(self, tower):
        """(zip, source, block of the source, block of the tower in front of which they enter), or None."""
        for z in self.config.zips if self.fused else ():
            if placement(z) == "sequence" and tower in (z.into or z.towers):
                (pair,), (source,) = z.pairs, set(z.towers) - {tower}
                at = dict(zip(z.towers, pair, strict=True))
                return z, source, at[source], 1 if z.fusion == "projector" else at[tower]
        return None

    def groups(self, z, source):
        """Indices of the source tokens of each soft token: k neighbours of one run without other towers' tokens."""
        k, found, run = z.options.get("stack", {}).get(source, 1), [], []
        for index, place in enumerate(self.places[source]):
            run = [*run, index] if run and place == self.places[source][index - 1] + 1 else [index]
            if len(run) == k:
                found, run = [*found, run], []
        return np.array(found, int).reshape(-1, k)

    def rows(self, tower, block):
        """Of the sequence that goes through a block: global position, whether a token is the tower's own, position."""
        places = self.places[tower]
        soft = self.soft(tower)
        if soft is None:
            return places, np.ones(len(places), bool), np.arange(len(places))
        both = np.concatenate([places, self.places[soft[1]][self.groups(*soft[:2])[:, -1]]])
        order = np.argsort(both)
        own = order < len(places)
        present = own | (block >= soft[3])
        return both[order][present], own[present], np.arange(len(both))[present]

    def own(self, tower, x, block):
        return x[self.rows(tower, block)[1]]

    def input(self, tower, block):
        """Of a block: soft tokens that enter in front of it included."""
        x, soft = self.post(tower, block - 1), self.soft(tower)
        if soft is None or soft[3] != block:
            return x
        z, source, at, _ = soft
        p = _member(self.params["zips"]["-".join(sorted(z.towers))][f"into_{tower}"], 0)
        if z.fusion == "projector":
            alone = _Model(self.config, self.params, self.tokens, self.places, fused=False).pre(source, at)
            norm = layer_norm if z.norm == "layer" else rms_norm
            read = norm(alone, p["source_norm"]) if z.normalise_source else alone
            groups = self.groups(z, source)
            entering = project(
                z.projection, p["projection"], read[groups].reshape(len(groups), groups.shape[1] * read.shape[1])
            )
        else:
            entering = soft_tokens(p, self.own(source, self.pre(source, at), at))
        _, own, local = self.rows(tower, block)
        t = self.config.towers[tower]
        if t.positions == "learned":
            table = self.params["towers"][tower]["embedding"]["position_table"]
            entering = entering + table[local[~own] + t.position_offset]
        merged = np.zeros((len(own), x.shape[1]))
        merged[own], merged[~own] = x, entering
        return merged

    def start(self, tower):
        t, own = self.config.towers[tower], self.params["towers"][tower]["embedding"]
        table = own["table"]
        if tower in self.params.get("added_embeddings", {}):
            table = np.concatenate([table, self.params["added_embeddings"][tower]["table"]])
        x = table[np.array(self.tokens[tower], int)] * t.embedding_scale
        projection = self.config.input_projections.get(tower)
        if projection is not None and projection.form != "none" and self.fused:
            x = project(projection, self.params["input_projections"][tower], x)
        if t.positions == "learned":
            x = x + own["position_table"][self.rows(tower, 0)[2] + t.position_offset]
        return x

    def effect(self, z, member, receiver, source, m, m_source):
        """f_cross(m, h) - m."""
        p = _member(self.params["zips"]["-".join(sorted(z.towers))][f"into_{receiver}"], member)
        if z.fusion.endswith("OneWay"):
            mask = self.places[source][None, :] < self.places[receiver][:, None]
            return one_way_effect(z, p, m, m_source, mask, attend)
        h = m_source if z.projection.form == "none" else project(z.projection, p["projection"], m_source)
        norm = layer_norm if z.norm == "layer" else rms_norm
        if z.normalise_source:
            h = norm(h, p["source_norm"])
        if z.positions == "learned":
            h = h + p["source_position_table"][np.minimum(np.arange(len(h)), z.max_positions - 1)]
        a = p["attention"]
        x = norm(m, p["attention_norm"])
        if z.positions == "learned":
            x = x + p["query_position_table"][np.minimum(np.arange(len(x)), z.max_positions - 1)]
        q, k = heads(x, a["query"]), heads(h, a["key"])
        if z.positions == "rotary":
            scales = z.position_scales or {}
            q, k = q + a.get("query_offset", 0.0), k + a.get("key_offset", 0.0)
            q = turn(q, np.arange(len(q)) * scales.get(receiver, 1.0), z.rope_base)
            k = turn(k, np.arange(len(k)) * scales.get(source, 1.0), z.rope_base)
        mask = self.places[source][None, :] < self.places[receiver][:, None]
        mixed = attend(q, k, heads(h, a["value"]), mask)
        out = np.einsum("tnh,nhd->td", mixed, a["output"]["kernel"])
        sees = mask.any(axis=1)[:, None] if mask.shape[1] else np.zeros((len(m), 1), bool)
        if "bias" in a["output"]:
            out = out + a["output"]["bias"] * sees
        y = m + np.tanh(p["attention_gate"]) * out
        feed = dense(norm(y, p["mlp_norm"]), p["mlp"]["up"])
        feed = dense(ACTIVATIONS[z.mlp_activation](feed), p["mlp"]["down"])
        if z.feed_forward == "where_visible":
            feed = feed * sees
        return y + np.tanh(p["mlp_gate"]) * feed - m

    def pairs(self, z):
        if z.pairs is not None:
            return sorted(z.pairs)
        found, n = [], 1
        while True:
            pair = tuple(n * z.intervals[t] for t in z.towers)
            depths = [self.config.towers[t].num_layers for t in z.towers]
            if any(b > d or (b == d and not z.after_last_block) for b, d in zip(pair, depths, strict=True)):
                return found
            found.append(pair)
            n += 1


def _member(tree, index):
    return {k: _member(v, index) if isinstance(v, dict) else v[index] for k, v in tree.items()}


def attend(q, k, v, mask, scale=None, cap=None, bias=None):
    """Softmax attention, row by row; a row that sees nothing is 0. Query head n reads key head n // (N / K)."""
    scale = 1 / np.sqrt(q.shape[2]) if scale is None else scale
    out = np.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    for t in range(q.shape[0]):
        seen = np.flatnonzero(mask[t])
        for n in range(q.shape[1]):
            if len(seen):
                scores = softcap(k[seen, n // group] @ q[t, n] * scale, cap)
                scores = scores if bias is None else scores + bias[t, seen, n]
                weights = np.exp(scores - scores.max())
                out[t, n] = weights / weights.sum() @ v[seen, n // group]
    return out


def shared(q, own, gated, out, scale, cap):
    """What further keys change of ``out``, the attention over ``own``: of each its share of one softmax over all keys,
    times its factor, moves from ``out`` to its values."""
    keys = np.concatenate([own[0], *(k for k, *_ in gated)])
    mask = np.hstack([own[2], *(m for _, _, m, _ in gated)])
    change, start = np.zeros_like(out), len(own[0])
    for k, v, _, share in gated:
        values = np.zeros((len(keys), *v.shape[1:]))
        values[start : start + len(k)] = v
        ones = np.zeros_like(values)
        ones[start : start + len(k)] = 1
        weighted, weight = (attend(q, keys, x, mask, scale, cap) for x in (values, ones))
        change, start = change + share * (weighted - weight * out), start + len(k)
    return change


def placement(z):
    """Where the zip acts: its effect is added behind a block, or inside its attention, or in the tower's sequence."""
    return PLACEMENTS.get(z.fusion.split(":")[-1], "behind")


PLACEMENTS = {
    "SharedAttention": "inside", "shared_attention": "inside", "SoftTokens": "sequence", "projector": "sequence",
}  # fmt: skip


def heads(x, p):
    return np.einsum("td,dnh->tnh", x, p["kernel"]) + p.get("bias", 0.0)


def turn(x, positions, base):
    """RoPE of an even number of elements."""
    even = x.shape[-1] // 2 * 2
    return np.concatenate([rope(x[..., :even], positions, base), x[..., even:]], axis=-1)


def dense(x, p):
    return x @ p["kernel"] + p.get("bias", 0.0)


def project(config, p, x):
    y = x
    for number in range(config.depth):
        y = dense(y, p[f"layer_{number}"])
        if number < config.depth - 1:
            y = ACTIVATIONS[config.activation](y)
    final = config.final_activation or ("relu" if config.form == "mlp" else "none")
    y = np.maximum(y, 0) if final == "relu" else y
    return y if config.form == "mlp" else x + np.tanh(p["gate"]) * y


def rms_norm(x, p, epsilon=1e-6, offset=0.0):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * (p["scale"] + offset)


def tower_norm(t, x, p):
    if t.norm == "layer":
        return layer_norm(x, {**p, "scale": p["scale"] + t.norm_offset}, t.norm_epsilon)
    return rms_norm(x, p, t.norm_epsilon, t.norm_offset)


def softcap(x, cap):
    return x if cap is None else cap * np.tanh(x / cap)


def bucket(distance):
    """T5's bucket of a distance back: itself below 16, then 16 logarithmic ones up to 128 (arXiv 1910.10683)."""
    if distance < 16:
        return int(distance)
    return min(31, 16 + int(16 * np.log(distance / 16) / np.log(128 / 16)))


def layer_norm(x, p, epsilon=1e-6):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def partial_rope(x, positions, base, scaling, fraction):
    size = int(x.shape[-1] * fraction)
    return np.concatenate([rope(x[..., :size], positions, base, scaling), x[..., size:]], axis=-1)


def rope(x, positions, base, scaling=None):
    """Complex rotation of the pairs (i, i + H/2) by position * base ** (-2i / H), linear scaling slowing all alike.

    The other scalings are compared with transformers (tests/conversion)."""
    half = x.shape[-1] // 2
    assert scaling is None or scaling.kind == "linear"
    z = x[..., :half] + 1j * x[..., half:]
    slower = 1.0 if scaling is None else scaling.factor
    z = z * np.exp(1j * positions[:, None, None] / slower * base ** (-2 * np.arange(half) / (2 * half)))
    return np.concatenate([z.real, z.imag], axis=-1)


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu_exact": lambda x: 0.5 * x * (1 + np.vectorize(math.erf, otypes=[float])(x / np.sqrt(2))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "squared_relu": lambda x: np.maximum(x, 0) ** 2,
}


def cross_entropy(values, targets):
    """Negative log likelihood of each target, float64."""
    largest = values.max(-1, keepdims=True)
    log_z = np.log(np.exp(values - largest).sum(-1)) + largest[..., 0]
    return log_z - np.take_along_axis(values, targets[..., None], -1)[..., 0]
