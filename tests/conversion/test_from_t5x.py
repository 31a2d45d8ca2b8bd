"""T5X's decoder-only checkpoints: against T5X itself where it is importable (it is on no index), else against files
that the test writes in T5X's layouts.

Axis letters: L layers, D embed_dim, V vocabulary, F mlp_dim, N heads, H head_dim.
"""

import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import tensorstore
from flax.serialization import msgpack_restore, msgpack_serialize
from passes import unimodal

from gin import config_parser
from zipper_jax.conversion import t5x, t5x_checkpoint
from zipper_jax.conversion.t5x_gin import GinFiles
from zipper_jax.models.config import ModalityConfig, ZipperConfig
from zipper_jax.sequences import TowerBatch
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.trees import unflatten

V, D, N, H, F, L = 96, 48, 8, 4, 56, 3  # N * H is not D; all divide over 8 devices
GATED, PLAIN = ("gelu", "linear"), ("relu",)
LENGTH = 160  # beyond 128, from where on all distances are in the last bucket


def gin_text(activations=GATED, tied=True, **fields):
    """A model's gin file in T5X's manner: modules that are not installed, macros, references."""
    fields = {
        "vocab_size": "%ROWS", "dtype": "'bfloat16'", "emb_dim": D, "num_heads": N, "num_layers": L, "head_dim": H,
        "mlp_dim": F, "mlp_activations": activations, "dropout_rate": "%DROPOUT_RATE", "logits_via_embedding": tied,
        **fields,
    }  # fmt: skip
    return "\n".join([
        "from __gin__ import dynamic_registration", "import no_such_module.models",
        "from no_such_module import network", f"ROWS = {V}", "DROPOUT_RATE = %gin.REQUIRED",
        "MODEL = @models.DecoderOnlyModel()",
        "models.DecoderOnlyModel.module = @network.DecoderWrapper()", "network.TransformerConfig:",
        *(f"  {name} = {value}" for name, value in fields.items() if value is not None),
    ]) + "\n"  # fmt: skip


def parameters(activations=GATED, tied=True, seed=0):
    """Random leaves by T5X's names, in its shapes; norms around 1, biases of positions as large as scores."""
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=None):
        return (rng.standard_normal(shape) * (shape[0] ** -0.5 if scale is None else scale)).astype(np.float32)

    leaves = {
        "decoder/token_embedder/embedding": normal(V, D, scale=1.0),
        "decoder/relpos_bias/rel_embedding": normal(N, 32, scale=1.0),
        "decoder/decoder_norm/scale": 1 + normal(D, scale=0.1),
    }
    for layer in range(L):
        name = f"decoder/layers_{layer}/"
        leaves |= {name + f"self_attention/{part}/kernel": normal(D, N * H) for part in ("query", "key", "value")}
        leaves |= {name + f"mlp/{wi}/kernel": normal(D, F) for wi in (("wi",), ("wi_0", "wi_1"))[len(activations) - 1]}
        leaves |= {
            name + "self_attention/out/kernel": normal(N * H, D),
            name + "mlp/wo/kernel": normal(F, D),
            name + "pre_self_attention_layer_norm/scale": 1 + normal(D, scale=0.1),
            name + "pre_mlp_layer_norm/scale": 1 + normal(D, scale=0.1),
        }
    if not tied:
        leaves["decoder/logits_dense/kernel"] = normal(D, V)
    return leaves


def stacked(leaves, axis=1, prefix="decoder/decoder/", heads=True):
    """The same as a scanned network has them: layers on an axis, attention's heads on one of their own."""
    split = {"query": (D, N, H), "key": (D, N, H), "value": (D, N, H), "out": (N, H, D)} if heads else {}
    first = "decoder/layers_0/"
    found = {name: array for name, array in leaves.items() if "/layers_" not in name}
    for name in [name.removeprefix(first) for name in leaves if name.startswith(first)]:
        layers = [leaves[f"decoder/layers_{layer}/{name}"] for layer in range(L)]
        shape = split.get(name.split("/")[1], layers[0].shape)
        found[prefix + name] = np.stack([layer.reshape(shape) for layer in layers], axis=axis)
    return found


def write_zarr(folder, array, compressor="gzip", parts=2):
    chunks = [-(-size // parts) for size in array.shape]
    tensorstore.open(
        {
            "driver": "zarr", "dtype": array.dtype.name, "kvstore": {"driver": "file", "path": f"{folder}/"},
            "metadata": {"shape": list(array.shape), "chunks": chunks, "compressor": {"id": compressor}},
        },
        create=True,
    ).result().write(array).result()  # fmt: skip


def reference(name, array, **kvstore):
    """What T5X writes instead of a leaf: its TensorStore spec."""
    return {
        "driver": "zarr", "dtype": array.dtype.name, "kvstore": {"driver": "file", "path": f"{name}/", **kvstore},
        "metadata": {"shape": list(array.shape), "chunks": list(array.shape), "compressor": {"id": "gzip", "level": 1}},
    }  # fmt: skip


def write_msgpack(folder, target, **more):
    tree = {"version": 3, "optimizer": {"target": unflatten(target), "state": {"step": np.int32(7)}, **more}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint").write_bytes(msgpack_serialize(tree))


def write_native(folder, leaves, inline=()):
    """T5X's own format: zarr folders, and a msgpack tree of references to them or of the arrays themselves."""
    names = {leaf: "target." + leaf.replace("/", ".") for leaf in leaves}
    for leaf, array in leaves.items():
        if leaf not in inline:
            write_zarr(folder / names[leaf], array)
    moment = np.zeros(4, np.float32)
    write_zarr(folder / "state.param_states.x.v", moment)
    write_msgpack(
        folder,
        {leaf: array if leaf in inline else reference(names[leaf], array) for leaf, array in leaves.items()},
        state={"step": np.int32(7), "param_states": {"x": {"v": reference("state.param_states.x.v", moment)}}},
    )
    return folder


def write_orbax(folder, leaves, ocdbt):
    """T5X's other format: what its OrbaxCheckpointManagerInterface writes below ``state``."""
    import orbax.checkpoint as ocp

    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt)
    with ocp.Checkpointer(handler) as checkpointer:
        tree = {"target": unflatten(leaves), "state": {"step": np.int32(7)}}
        checkpointer.save(folder / "state", args=ocp.args.PyTreeSave(jax.tree.map(jax.numpy.asarray, tree)))
    return folder


def write_gin(folder, text=None, name="config.gin", **fields):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(gin_text(**fields) if text is None else text)
    return folder / name


def carried_out(plan):
    """The tower's leaves, every element of which was written."""
    flat = {leaf: np.full(shape, np.nan, dtype) for leaf, (dtype, shape) in plan.leaves.items()}
    sizes = []

    def put(leaf, array, layer):
        flat[leaf][... if layer is None else layer] = array

    plan.write(put, sizes.append)
    assert sum(sizes) == plan.count
    assert not any(np.isnan(array).any() for array in flat.values())
    return flat


def expected(leaves, activations=GATED):
    """The tower's leaves, each by its own line of numpy."""

    def layers(name, shape):
        return np.stack([leaves[f"decoder/layers_{layer}/{name}"].reshape(shape) for layer in range(L)])

    wi = {"gate": "wi_0", "up": "wi_1"} if len(activations) == 2 else {"up": "wi"}
    flat = {
        "embedding/table": leaves["decoder/token_embedder/embedding"],
        "relative_bias/table": leaves["decoder/relpos_bias/rel_embedding"].T,
        "final_norm/scale": leaves["decoder/decoder_norm/scale"],
        "blocks/attention_norm/scale": layers("pre_self_attention_layer_norm/scale", (D,)),
        "blocks/mlp_norm/scale": layers("pre_mlp_layer_norm/scale", (D,)),
        "blocks/attention/output/kernel": layers("self_attention/out/kernel", (N, H, D)),
        "blocks/mlp/down/kernel": layers("mlp/wo/kernel", (F, D)),
    }
    for part in ("query", "key", "value"):
        flat[f"blocks/attention/{part}/kernel"] = layers(f"self_attention/{part}/kernel", (D, N, H))
    for part, name in wi.items():
        flat[f"blocks/mlp/{part}/kernel"] = layers(f"mlp/{name}/kernel", (D, F))
    if "decoder/logits_dense/kernel" in leaves:
        flat["head/table"] = leaves["decoder/logits_dense/kernel"].T
    return flat


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for leaf, array in wanted.items():
        np.testing.assert_array_equal(found[leaf], array, err_msg=leaf)


@pytest.fixture
def native(tmp_path):
    """(folder, leaves) of a checkpoint with its gin file beside it."""
    leaves = parameters()
    write_gin(tmp_path)
    return write_native(tmp_path / "checkpoint_7", leaves), leaves


@pytest.mark.parametrize(
    "activations, tied, lay",
    [
        (GATED, True, lambda leaves: leaves),
        (PLAIN, False, lambda leaves: leaves),
        (GATED, False, stacked),
        (PLAIN, True, lambda leaves: stacked(leaves, prefix="decoder/layers/", heads=False)),
    ],
    ids=["layer by layer", "plain, untied", "stacked, heads apart", "stacked, heads joined"],
)
def test_every_leaf_is_stored_where_it_belongs(tmp_path, activations, tied, lay):
    leaves = parameters(activations, tied)
    write_gin(tmp_path, activations=activations, tied=tied)
    plan = t5x.plan(write_native(tmp_path / "checkpoint_7", lay(leaves)))
    assert_same(carried_out(plan), expected(leaves, activations))
    assert plan.count == plan.reader.count == sum(array.size for array in leaves.values())
    tower = plan.tower
    assert (tower.gated_mlp, tower.activation, tower.tied_head) == (len(activations) == 2, activations[0], tied)
    assert (tower.positions, tower.attention_scale, tower.norm_epsilon) == ("relative", 1.0, 1e-6)
    assert tower.logit_scale == (D**-0.5 if tied else 1.0)
    assert plan.left_out.keys() == {"state", "version"}
    text = "\n".join(plan.lines())
    assert "self_attention/query/kernel -> blocks/attention/query/kernel  (3 layers)" in text
    assert f"{plan.count:,} in the tower" in text
    assert "state: skipped, the optimizer's" in text


def test_the_linear_half_of_the_mlp_may_come_first(tmp_path):
    leaves = parameters()
    write_gin(tmp_path, activations=("linear", "swish"))
    plan = t5x.plan(write_native(tmp_path / "checkpoint_7", leaves))
    found = carried_out(plan)
    assert plan.tower.activation == "silu"
    np.testing.assert_array_equal(found["blocks/mlp/gate/kernel"][1], leaves["decoder/layers_1/mlp/wi_1/kernel"])
    np.testing.assert_array_equal(found["blocks/mlp/up/kernel"][1], leaves["decoder/layers_1/mlp/wi_0/kernel"])


@pytest.mark.parametrize("limit", [1, 2 * 4 * D * F, 2**30])
@pytest.mark.parametrize("axis", [0, 1])
def test_stacked_layers_are_read_some_at_a_time(tmp_path, monkeypatch, axis, limit):
    monkeypatch.setattr(t5x_checkpoint, "_READ_BYTES", limit)
    leaves = parameters()
    write_gin(tmp_path, param_scan_axis=axis)
    folder = write_native(
        tmp_path / "checkpoint_7", stacked(leaves, axis), inline=("decoder/decoder/pre_mlp_layer_norm/scale",)
    )
    plan = t5x.plan(folder)
    read, most = plan.reader._read, []
    monkeypatch.setattr(plan.reader, "_read", lambda name, index: most.append(read(name, index)) or most[-1])
    assert_same(carried_out(plan), expected(leaves))
    layers = [array.shape[axis] for array in most if array.ndim > 2]
    assert max(layers) == {1: 1, 2**30: L}.get(limit, 2 if max(layers) == 2 else L)
    assert max(array.nbytes for array in most if array.ndim > 2) <= max(limit, 4 * D * F)


def test_dtypes_are_the_checkpoints(tmp_path):
    leaves = parameters()
    stored = {leaf: array.astype(ml_dtypes.bfloat16) for leaf, array in leaves.items()}
    stored["decoder/decoder_norm/scale"] = leaves["decoder/decoder_norm/scale"].astype(np.float64)
    stored["decoder/layers_1/mlp/wo/kernel"] = leaves["decoder/layers_1/mlp/wo/kernel"].astype(np.float16)
    write_gin(tmp_path)
    plan = t5x.plan(write_native(tmp_path / "checkpoint_7", stored, inline=("decoder/layers_0/mlp/wi_0/kernel",)))
    mixed = {"final_norm/scale", "blocks/mlp/down/kernel"}
    assert {leaf for leaf, (dtype, _) in plan.leaves.items() if dtype == np.float32} == mixed
    assert {dtype for leaf, (dtype, _) in plan.leaves.items() if leaf not in mixed} == {np.dtype(ml_dtypes.bfloat16)}
    found = carried_out(plan)
    assert_same(found, expected({leaf: array.astype(np.float32) for leaf, array in stored.items()}))
    assert found["blocks/mlp/gate/kernel"].dtype == ml_dtypes.bfloat16


@pytest.mark.filterwarnings("ignore")  # Orbax has its own
@pytest.mark.parametrize("ocdbt", [True, False], ids=["one store", "folders"])
def test_orbax_checkpoints_are_read(tmp_path, ocdbt):
    leaves = parameters(PLAIN, tied=False)
    write_gin(tmp_path, activations=PLAIN, tied=False)
    plan = t5x.plan(write_orbax(tmp_path / "checkpoint_7", leaves, ocdbt))
    assert_same(carried_out(plan), expected(leaves, PLAIN))
    assert plan.left_out.keys() == {"state"}
    if ocdbt:
        largest = max((tmp_path / "checkpoint_7" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
        largest.unlink()
        with pytest.raises(UserError, match=r"is damaged .*download it again"):
            carried_out(t5x.plan(tmp_path / "checkpoint_7"))


# gin


def test_gin_files_include_each_other_and_later_bindings_win(native, tmp_path):
    folder, leaves = native
    checkout = tmp_path / "checkout"
    write_gin(checkout / "t5x/models", name="base.gin", emb_dim=512, mlp_activations=None)
    run = write_gin(
        checkout / "t5x/runs",
        "include 't5x/models/base.gin'\nimport __main__ as train_script\ninclude \"more.gin\"\n"
        "network.TransformerConfig.mlp_activations = (%ACTIVATION, 'linear')\nROWS = 7\ntrain/utils.Data.seed = 0\n",
        "run.gin",
    )
    write_gin(checkout / "t5x/runs", "ACTIVATION = 'relu'\nx.network.TransformerConfig.emb_dim = 48\n", "more.gin")
    (tmp_path / "config.gin").unlink()
    plan = t5x.plan(folder, [run], ["ROWS = 96", "ACTIVATION = %ANOTHER", "ANOTHER/macro.value = 'gelu'"])
    assert (plan.tower.activation, plan.tower.gated_mlp, plan.tower.embed_dim, plan.tower.vocab_size) == (
        "gelu", True, 48, 96,
    )  # fmt: skip
    assert_same(carried_out(plan), expected(leaves))


def test_missing_fields_have_t5xs_defaults(tmp_path):
    gin = write_gin(tmp_path, "network.TransformerConfig.vocab_size = 100\n")
    tower = t5x.read_network([gin]).tower
    assert (tower.vocab_size, tower.embed_dim, tower.num_heads, tower.num_kv_heads) == (100, 512, 8, 8)
    assert (tower.num_layers, tower.head_dim, tower.mlp_dim) == (6, 64, 2048)
    assert (tower.activation, tower.gated_mlp, tower.tied_head) == ("relu", False, False)


def test_reading_gin_imports_nothing_and_leaves_gins_state_alone(tmp_path, monkeypatch):
    import gin

    (tmp_path / "t5x_probe.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = (gin.config_str(), dict(gin.config._REGISTRY.items()), list(gin.config._IMPORTS))
    path = write_gin(tmp_path, "import t5x_probe\n" + gin_text())
    assert t5x.read_network([path]).tower.embed_dim == D
    assert "t5x_probe" not in sys.modules
    assert before == (gin.config_str(), dict(gin.config._REGISTRY.items()), list(gin.config._IMPORTS))


def test_bidirectional_inputs_are_noted(native, tmp_path):
    assert not t5x.plan(native[0]).network.notes
    write_gin(tmp_path, gin_text() + "models.DecoderOnlyModel.inputs_bidirectional_attention = True\n")
    assert any("note: " in line and "bidirectional" in line for line in t5x.plan(native[0]).lines())


NETWORK = "network.TransformerConfig."


@pytest.mark.parametrize(
    "more, message",
    [
        (f"{NETWORK}use_rope = True", r"config.gin, line 20: TransformerConfig.use_rope = True is no field"),
        (f"{NETWORK}emb_dims = 4", r"emb_dims = 4 is no field .* did you mean 'emb_dim'\?.*--ignore_field emb_dims"),
        (f"{NETWORK}emb_dim = 64", r"token_embedder/embedding has shape \[96, 48\].* implies \[96, 64\]"),
        (f"{NETWORK}num_heads = 4", r"relpos_bias/rel_embedding has shape \[8, 32\].* implies \[4, 32\]"),
        (f"{NETWORK}head_dim = 8", r"query/kernel has shape \[48, 32\].* implies \[48, 64\] or \[48, 8, 8\]"),
        (f"{NETWORK}mlp_dim = 57", r"layers_0/mlp/w._?.?/kernel has shape \[.*56.*\].* implies \[.*57.*\]"),
        (f"{NETWORK}num_layers = 2", r"leaf 'decoder/layers_2/.* \(TransformerConfig.num_layers is 2\)"),
        (f"{NETWORK}num_layers = 4", r"has no leaf 'decoder/layers_3/.*config.gin requires"),
        (f"{NETWORK}num_layers = 2.0", r"num_layers = 2.0 must be a whole number"),
        (f"{NETWORK}num_layers = -2", r"TowerConfig.num_layers = -2 must be positive"),
        (f"{NETWORK}vocab_size = @vocabulary_size()", r"vocab_size = @vocabulary_size\(\) must be a whole number"),
        (f"{NETWORK}vocab_size = %NOWHERE", r"line 20: TransformerConfig.vocab_size = %NOWHERE must be a whole number"),
        (f"{NETWORK}mlp_activations = ('relu',)", r"has no leaf 'decoder/layers_0/mlp/wi/kernel'"),
        (f"{NETWORK}mlp_activations = 'relu'", r"mlp_activations = 'relu' must be"),
        (f"{NETWORK}mlp_activations = ('gelu', 'gelu')", r"mlp_activations = \('gelu', 'gelu'\) must be"),
        (f"{NETWORK}mlp_activations = ('elu', 'linear')", r"mlp_activations = \('elu', 'linear'\) must be"),
        (f"{NETWORK}mlp_activations = (@nn.gelu, 'linear')", r"mlp_activations = \(@nn.gelu, 'linear'\) must be"),
        (f"{NETWORK}logits_via_embedding = False", r"has no leaf 'decoder/logits_dense/kernel'"),
        (f"{NETWORK}logits_via_embedding = 1", r"logits_via_embedding = 1 must be True or False"),
        (f"{NETWORK}param_scan_axis = 2", r"param_scan_axis = 2 must be 0 or 1"),
        (f"draft/{NETWORK}emb_dim = 4", r"draft/network.TransformerConfig .*several networks"),
        ("other.TransformerConfig.emb_dim = 4", r"other.TransformerConfig .*several networks"),
        ("ROWS = %AGAIN\nAGAIN = %ROWS", r"macro 'ROWS' is defined by itself: ROWS -> AGAIN"),
        ("include 'nowhere.gin'", r"config.gin, line 20: includes 'nowhere.gin', which is in none"),
        ("include 'config.gin'", r"includes 'config.gin', which includes this file again"),
        ("this is = no gin", r"config.gin, line 20: invalid gin"),
        ("x = (", r"config.gin.*: invalid gin"),
    ],
)  # fmt: skip
def test_wrong_gin_bindings_are_named(native, tmp_path, more, message):
    write_gin(tmp_path, f"{gin_text()}\n{more}\n")
    with pytest.raises(UserError, match=message) as error:
        t5x.plan(native[0])
    assert "\n" not in str(error.value)


def test_a_field_may_be_ignored_and_a_binding_is_named(native):
    assert t5x.plan(native[0], gin_bindings=[f"{NETWORK}remat = 'full'"], ignored=["remat"]).count
    with pytest.raises(UserError, match=r"^--gin.network.TransformerConfig.emb_dim='x': .* must be a whole number"):
        t5x.plan(native[0], gin_bindings=[f"{NETWORK}emb_dim = 'x'"])
    with pytest.raises(UserError, match=r"^--gin.ROWS == 4: invalid gin"):
        t5x.plan(native[0], gin_bindings=["ROWS == 4"])


def test_gin_files_that_describe_no_network(native, tmp_path):
    with pytest.raises(UserError, match=r"gin file '.*none.gin' does not exist"):
        t5x.plan(native[0], [tmp_path / "none.gin"])
    write_gin(tmp_path, "network.T5Config.emb_dim = 4\n")
    with pytest.raises(UserError, match=r"no network.TransformerConfig in it; T5Config is for encoder-decoders"):
        t5x.plan(native[0])
    write_gin(tmp_path, "network.TransformerConfig.emb_dim = 4\n")
    with pytest.raises(UserError, match="vocab_size is missing"):
        t5x.plan(native[0])
    (tmp_path / "config.gin").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"config.gin' cannot be read"):
        t5x.plan(native[0])
    (tmp_path / "config.gin").unlink()
    with pytest.raises(UserError, match=r"no network.TransformerConfig in it"):
        t5x.plan(native[0])


# Damage, and checkpoints of other things.


def refuse(folder, message):
    with pytest.raises(UserError, match=message) as error:
        carried_out(t5x.plan(folder))
    assert "\n" not in str(error.value)


def test_damaged_files_are_named(native):
    folder, leaves = native
    chunk = folder / "target.decoder.layers_1.mlp.wo.kernel" / "1.0"
    whole = chunk.read_bytes()
    damage = r"decoder/layers_1/mlp/wo/kernel is damaged \(.*\); download it again"
    for bad in (whole[:-40], whole[:50] + bytes([whole[50] ^ 255]) + whole[51:], b"not gzip", b""):
        chunk.write_bytes(bad)
        refuse(folder, damage)
    chunk.unlink()
    refuse(folder, "target/decoder/layers_1/mlp/wo/kernel lacks chunk 1.0: copy the complete")
    chunk.write_bytes(whole)
    (chunk.parent / ".zarray").rename(chunk.parent / "x")
    refuse(folder, "decoder/layers_1/mlp/wo/kernel is damaged")
    (chunk.parent / "x").rename(chunk.parent / ".zarray")
    assert_same(carried_out(t5x.plan(folder)), expected(leaves))


def test_a_damaged_tree_is_named(native):
    path = native[0] / "checkpoint"
    whole = path.read_bytes()
    for bad in (b"", whole[:-9], whole[: len(whole) // 2], b"\xc1" + whole, whole.replace(b"int32", b"inq32")):
        path.write_bytes(bad)
        refuse(native[0], r"checkpoint' is (damaged|no T5X checkpoint)")
    path.write_bytes(msgpack_serialize({"optimizer": 3}))
    refuse(native[0], "is no T5X checkpoint: it holds no tree")
    path.write_bytes(msgpack_serialize({"version": 3, "optimizer": {"state": {"step": 3}}}))
    refuse(native[0], "has no parameters")
    path.write_bytes(b'model_checkpoint_path: "model.ckpt-1"')
    refuse(native[0], "is a TensorFlow checkpoint")


def test_references_do_not_leave_the_folder(native, tmp_path):
    folder, leaves = native
    leaf = "decoder/decoder_norm/scale"
    outside = write_native(tmp_path / "elsewhere", {leaf: leaves[leaf]}) / f"target.{leaf.replace('/', '.')}"
    inside = {name: reference(f"target.{name.replace('/', '.')}", array) for name, array in leaves.items()}

    def refers(spec):
        write_msgpack(folder, inside | {leaf: spec})
        return folder

    array = leaves[leaf]
    for path in (f"../elsewhere/{outside.name}", str(outside), "..", ".", "", f"x/../../elsewhere/{outside.name}", 3):
        refuse(refers({**reference("", array), "kvstore": {"driver": "file", "path": path}}), "not in this folder")
    for driver in ("http", "memory", "gcs_grpc", "ocdbt"):
        refuse(refers(reference(inside[leaf]["kvstore"]["path"], array, driver=driver)), "is stored as .*not read")
    refuse(refers({**reference("x", array), "driver": "n5"}), "is stored as")
    refuse(refers({**reference("x", array), "kvstore": f"file://{outside}"}), "not in this folder|is stored as")
    # As TensorStore wrote them before 0.1.14, and in a bucket.
    name = inside[leaf]["kvstore"]["path"].removesuffix("/")
    old = {**reference("", array), "kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket"}, "path": name}
    assert_same(carried_out(t5x.plan(refers(old))), expected(leaves))


def test_leaves_that_are_not_this_networks_are_named(native, tmp_path):
    folder, leaves = native

    def holding(extra, **more):
        arrays = {**leaves, **extra}
        write_msgpack(folder, {name: array for name, array in arrays.items() if array is not None}, **more)
        return folder

    x = np.zeros((2, 3), np.float32)
    refuse(holding({"decoder/mystery/kernel": x}), r"unknown leaf 'decoder/mystery/kernel' \[2, 3\]:")
    refuse(holding({"encoder/layers_0/mlp/wi/kernel": x}), "of an encoder-decoder")
    refuse(holding({"decoder/layers_0/relpos_bias/rel_embedding": x}), "a table of positions per layer")
    refuse(holding({"decoder/layers_3/mlp/wi_0/kernel": x}), "num_layers is 3")
    refuse(holding({"decoder/logits_dense/kernel": x}), "logits_via_embedding = True excludes it")
    refuse(holding({"decoder/decoder_norm/scale": None}), "has no leaf 'decoder/decoder_norm/scale'")
    refuse(holding({"decoder/decoder_norm/scale": np.ones(D, np.int8)}), "has dtype int8, not floating-point")
    refuse(holding({"decoder/decoder_norm/scale": 3}), "decoder/decoder_norm/scale is int, not an array")
    refuse(holding({}, flax_mutables={"ema": x}), "unknown leaf 'flax_mutables/ema'")
    assert carried_out(t5x.plan(holding({}, flax_mutables={})))
    wrong = reference("target.decoder.decoder_norm.scale", np.ones(D + 1, np.float32))
    refuse(holding({"decoder/decoder_norm/scale": wrong}), r"has shape \[48\], but the file checkpoint has \[49\]")


def test_stacked_on_another_axis_or_of_another_depth(tmp_path):
    folder = write_native(tmp_path / "checkpoint_7", stacked(parameters()))
    write_gin(tmp_path, param_scan_axis=0)
    refuse(folder, r"has shape \[48, 3.*\], .* implies \[3, 48.*\] with param_scan_axis = 0")
    write_gin(tmp_path, num_layers=4)
    refuse(folder, r"has shape \[48, 3.*\], .* implies \[48, 4.*\] with param_scan_axis = 1")


def test_other_folders_are_named(native, tmp_path):
    refuse(tmp_path / "nothing", r"nothing' does not exist; copy checkpoints of gs://")
    write_native(tmp_path / "checkpoint_10", native[1])
    refuse(tmp_path, r"is no T5X checkpoint.*; give one of the checkpoints in it, e.g. '.*checkpoint_10'")
    refuse(native[0].rename(tmp_path / "checkpoint_8.tmp-1"), "is an unfinished checkpoint")


# Against T5X itself.


@pytest.fixture
def theirs():
    """T5X's decoder-only network, its checkpointing, and what both need."""
    pytest.importorskip("t5x", reason="t5x is not installed")
    from t5x import adafactor, checkpoints, partitioning, train_state
    from t5x.examples.decoder_only import network

    class T5X:
        def __init__(self, activations, tied):
            self.config = network.TransformerConfig(
                vocab_size=V, emb_dim=D, num_heads=N, num_layers=L, head_dim=H, mlp_dim=F, mlp_activations=activations,
                logits_via_embedding=tied, dropout_rate=0.0,
            )  # fmt: skip
            self.model = network.DecoderWrapper(self.config)
            one = np.ones((1, 4), np.int32)
            self.variables = jax.jit(lambda key: self.model.init(key, one, one, enable_dropout=False))(
                jax.random.key(0)
            )

        def logits(self, leaves, tokens):
            """[B, T, V]. T5X masks positions whose target is 0."""
            params = {"params": unflatten(leaves)}
            run = jax.jit(lambda params: self.model.apply(params, tokens, np.ones_like(tokens), enable_dropout=False))
            return np.asarray(run(params))

        def save(self, folder, leaves, orbax, dtype):
            partitioner = partitioning.PjitPartitioner(num_partitions=1)
            rules = adafactor.standard_logical_factor_rules()
            variables = {**self.variables, "params": jax.tree.map(jax.numpy.asarray, unflatten(leaves))}
            optimizer = adafactor.Adafactor(decay_rate=0.8, logical_factor_rules=rules)
            state = train_state.FlaxOptimTrainState.create(optimizer, variables)
            folder.mkdir(exist_ok=True)
            if orbax:
                manager = checkpoints.OrbaxCheckpointManagerInterface(str(folder), state, partitioner, save_dtype=dtype)
                manager.save(state)
                manager.close()
            else:
                checkpoints.Checkpointer(state, partitioner, str(folder), save_dtype=dtype).save(state)
            return folder / "checkpoint_0"

    return T5X


def our_logits(plan, tokens):
    """[B, T, V], float32, by the unimodal path."""
    params = {"towers": {"tower": unflatten(carried_out(plan))}}
    model = ZipperConfig(towers={"tower": plan.tower}, modalities={"tower": ModalityConfig("tower", V)})
    positions = np.tile(np.arange(tokens.shape[1], dtype=np.int32), (len(tokens), 1))
    ones = np.ones_like(tokens)
    batch = TowerBatch(tokens, tokens, ones.astype(np.float32), positions, positions, ones)
    return np.asarray(jax.jit(lambda params, batch: unimodal(model, params, "tower", batch))(params, batch))


def difference(found, wanted):
    return np.abs(found - wanted).max() / np.abs(wanted).max()


TOKENS = np.random.default_rng(1).integers(1, V, (2, LENGTH)).astype(np.int32)


@pytest.mark.filterwarnings("ignore")  # t5x has its own
@pytest.mark.parametrize(
    "activations, tied, orbax",
    [(GATED, True, False), (PLAIN, False, False), (("silu", "linear"), False, False), (GATED, True, True)],
    ids=["gated, tied", "plain, untied", "silu, untied", "gated, tied, orbax"],
)
def test_logits_are_t5xs(theirs, tmp_path, activations, tied, orbax, record_property):
    network, leaves = theirs(activations, tied), parameters(activations, tied)
    assert jax.tree.map(np.shape, network.variables["params"]) == jax.tree.map(np.shape, unflatten(leaves))
    write_gin(tmp_path, activations=activations, tied=tied)
    folder = network.save(tmp_path, leaves, orbax, np.float32)
    wanted = network.logits(leaves, TOKENS)
    found = difference(our_logits(t5x.plan(folder), TOKENS), wanted)
    record_property("difference", float(found))
    assert found < 2e-6, found
    # The last bucket matters for these logits: the test would see it if it were wrong.
    other = {**leaves, "decoder/relpos_bias/rel_embedding": leaves["decoder/relpos_bias/rel_embedding"].copy()}
    other["decoder/relpos_bias/rel_embedding"][:, -1] += 0.5
    assert difference(network.logits(other, TOKENS), wanted) > 1e-3


@pytest.mark.filterwarnings("ignore")
def test_bfloat16_checkpoints_of_t5x(theirs, tmp_path):
    network, leaves = theirs(GATED, True), parameters()
    write_gin(tmp_path)
    plan = t5x.plan(network.save(tmp_path, leaves, False, jax.numpy.bfloat16))
    assert {np.dtype(dtype) for dtype, _ in plan.leaves.values()} == {np.dtype(ml_dtypes.bfloat16)}
    rounded = {leaf: array.astype(ml_dtypes.bfloat16).astype(np.float32) for leaf, array in leaves.items()}
    found = {leaf: array.astype(np.float32) for leaf, array in carried_out(plan).items()}
    assert_same(found, expected(rounded))


@pytest.mark.filterwarnings("ignore")
def test_scanned_layers_are_t5xs(theirs, tmp_path, record_property):
    """T5X scans the layers of its scalable T5 only, so the layout is that one's decoder, the logits the other's."""
    from t5x.examples.scalable_t5 import network as scalable

    sizes = {"vocab_size": V, "emb_dim": D, "num_heads": N, "head_dim": H, "mlp_dim": F, "mlp_activations": GATED}
    model = scalable.Transformer(scalable.T5Config(num_encoder_layers=1, num_decoder_layers=L, **sizes))
    one = np.ones((1, 4), np.int32)
    shapes = jax.eval_shape(lambda key: model.init(key, one, one, one, enable_dropout=False), jax.random.key(0))
    layers = shapes["params"]["decoder"]["decoder"]
    leaves = parameters()
    scanned = stacked(leaves)
    for name, array in scanned.items():
        node = layers
        if name.startswith("decoder/decoder/"):
            for part in name.split("/")[2:]:
                node = node[part]
            assert node.shape == array.shape, name
    write_gin(tmp_path)
    plan = t5x.plan(write_native(tmp_path / "checkpoint_0", scanned))
    assert plan.stacked == "decoder/decoder/"
    found = difference(our_logits(plan, TOKENS), theirs(GATED, True).logits(leaves, TOKENS))
    record_property("difference", float(found))
    assert found < 2e-6, found


@pytest.mark.filterwarnings("ignore")
def test_the_gin_files_of_t5x(theirs):
    import t5x as package

    models = Path(package.__file__).parent / "examples" / "decoder_only" / "models"
    base, large = (t5x.read_network([models / f"{name}.gin"]).tower for name in ("base", "large"))
    assert (base.vocab_size, base.embed_dim, base.num_layers, base.mlp_dim) == (32128, 768, 12, 2048)
    assert (large.vocab_size, large.embed_dim, large.num_layers, large.mlp_dim) == (32128, 1024, 24, 2816)
    assert base.gated_mlp
    assert base.tied_head
    run = models.parent / "examples" / "base_wmt_from_scratch.gin"
    assert t5x.read_network([run]).notes


def test_gins_parser_is_as_we_know_it():
    """What `GinFiles` uses of gin's parser, which gin does not document."""
    for name in ("ConfigParser", "ParserDelegate", "BindingStatement", "IncludeStatement"):
        assert hasattr(config_parser, name)
    assert GinFiles([], ["a.b.c = 1"]).parameters("b")["c"].value == 1
    assert msgpack_restore(msgpack_serialize({"a": 1})) == {"a": 1}
