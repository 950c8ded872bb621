"""Dictionaries of other libraries: files by hand in the fast tier, by the real packages if slow."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import rounding
from sae_helpers import sparse_rows
from safetensors.torch import save_file
from site_harvest import harvest_of

from sparse_dict.activations.store import Activations
from sparse_dict.analysis import study
from sparse_dict.config.sites import Site
from sparse_dict.errors import UserError
from sparse_dict.sae import folder as folders
from sparse_dict.sae import imported
from sparse_dict.sae.origin import Origin
from sparse_dict.tools import ending, import_sae, verify

D, N = 16, 40


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("activations")
    np.save(folder / "x.npy", 3 * sparse_rows(2000, D).numpy() + 0.5)
    return folder


def weights(seed=0):
    """Raw tensors with a bias in the decoder and rows that are no unit vectors."""
    draw = torch.Generator().manual_seed(seed)

    def tensor(*shape):
        return torch.randn(*shape, generator=draw)

    return {
        "W_enc": tensor(D, N), "b_enc": 0.3 * tensor(N), "W_dec": 0.5 * tensor(N, D),
        "b_dec": tensor(D),
    }  # fmt: skip


def saelens(folder, tensors, **config):
    folder.mkdir(parents=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "d_sae": N, **config}))
    return str(folder)


def read_rows(folder):
    return np.load(folder / "x.npy").astype(np.float32)


def same_function(dictionary, x, restored):
    found = dictionary.decode(dictionary.encode(x))
    np.testing.assert_allclose(found, restored, rtol=2e-4, atol=2e-4)


def test_a_dictionary_with_a_decoder_bias_becomes_a_folder_that_a_study_takes(rows, tmp_path):
    p = weights()
    source = saelens(tmp_path / "theirs", p, architecture="standard", apply_b_dec_to_input=True)
    dest = tmp_path / "study" / "sae" / "theirs"
    command = ["-m", "sparse_dict.import_sae", source, str(dest), "--activations", str(rows)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "40 features, FVU" in done.stdout
    x = torch.from_numpy(read_rows(rows))
    codes = ((x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]).relu()
    restored = (codes @ p["W_dec"] + p["b_dec"]).numpy()
    (entry,) = study.load(dest.parent).entries
    dictionary, metrics = entry.trained.dictionary, entry.metrics
    same_function(dictionary, x.numpy(), restored)
    np.testing.assert_allclose(np.linalg.norm(dictionary.W_dec, axis=1), 1, rtol=rounding(D))
    error = ((restored - x.numpy()) ** 2).mean() / x.numpy().var(0).mean()
    assert metrics["fvu"] == pytest.approx(error, rel=1e-4)
    assert metrics["l0"] == pytest.approx(float((codes > 0).sum(1).float().mean()), rel=1e-4)
    assert (entry.trained.fire_count == (codes > 0).sum(0).numpy()).mean() > 0.9
    assert verify.main([str(tmp_path / "study")]) == 0
    with pytest.raises(UserError, match="holds a dictionary already"):
        import_sae.run(source, dest, rows)


def test_a_scale_that_the_folder_does_not_hold_is_that_of_the_activations(rows, tmp_path):
    p = weights()
    plain = {"architecture": "standard", "apply_b_dec_to_input": False}
    source = saelens(tmp_path / "a", p, normalize_activations="expected_average_only_in", **plain)
    import_sae.run(source, tmp_path / "out", rows)
    x = torch.from_numpy(read_rows(rows))
    s = D**0.5 / x.norm(dim=1).mean()
    restored = ((s * x @ p["W_enc"] + p["b_enc"]).relu() @ p["W_dec"] + p["b_dec"]) / s
    same_function(folders.read(tmp_path / "out").dictionary, x.numpy(), restored.numpy())


def sparsify_folder(folder, tensors, **config):
    folder.mkdir(parents=True)
    named = {"encoder.weight": tensors["W_enc"].T.contiguous(), "encoder.bias": tensors["b_enc"]}
    more = {key: tensors[key] for key in tensors.keys() - {"W_enc", "b_enc"}}
    save_file(named | more, folder / "sae.safetensors")
    usual = {"d_in": D, "expansion_factor": 32, "normalize_decoder": True, "num_latents": N, "k": 5}
    (folder / "cfg.json").write_text(json.dumps({**usual, "multi_topk": True, **config}))
    return str(folder)


def dictionary_learning_folder(folder, tensors, **trainer):
    folder.mkdir(parents=True)
    state = {name: value for name, value in tensors.items() if name not in ("W_enc", "W_dec")}
    state |= {"encoder.weight": tensors["W_enc"].T, "decoder.weight": tensors["W_dec"].T}
    state |= {"encoder.bias": state.pop("b_enc"), "bias": state.pop("b_dec")}
    torch.save(state, folder / "ae.pt")  # noqa: TID251
    trainer = {"dict_class": "AutoEncoder", "trainer_class": "StandardTrainer", **trainer}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"io": "out"}}))
    return str(folder)


WRITERS = (saelens, sparsify_folder, dictionary_learning_folder)


@pytest.mark.parametrize("write", WRITERS)
def test_a_key_or_a_tensor_that_is_not_known_is_refused_by_name(tmp_path, write):
    found = imported.read(write(tmp_path / "plain", weights())).dictionary
    assert found.W_dec.shape == (N, D)
    with pytest.raises(UserError, match="mystery=False is not known: remove it"):
        imported.read(write(tmp_path / "key", weights(), mystery=False))
    with pytest.raises(UserError, match="the tensor W_mystery is not known"):
        imported.read(write(tmp_path / "tensor", weights() | {"W_mystery": torch.ones(D, D)}))


@pytest.mark.parametrize(
    "key", ["signed", "embed_skip", "gram_lookup", "skip_connection", "transcode"]
)
def test_what_sparsify_adds_to_topk_is_refused_and_harmless_where_it_is_off(tmp_path, key):
    found = imported.read(sparsify_folder(tmp_path / "off", weights(), **{key: False}))
    assert found.dictionary.k == 5
    with pytest.raises(UserError, match=f"{key}=True cannot be represented"):
        imported.read(sparsify_folder(tmp_path / "on", weights(), **{key: True}))


def test_a_dictionary_of_another_place_is_told_before_its_fvu(tmp_path, capsys):
    """By one line that names both; and `cfg.json` names neither as its own."""
    x = sparse_rows(500, D).numpy()
    rows = harvest_of(tmp_path / "activations", {"2/mlp_out": x})
    of = {"model_name": "another-model", "hook_name": "blocks.5.hook_mlp_out"}
    source = saelens(tmp_path / "theirs", weights(), architecture="standard", metadata=of)
    assert import_sae.main([source, str(tmp_path / "out"), "--activations", str(rows)]) == 0
    told = capsys.readouterr()
    assert "is of blocks.5.hook_mlp_out of another-model, but" in told.err
    assert f"{rows} holds rows of blocks.2.hook_mlp_out of a model that is not named" in told.err
    assert "FVU" in told.out
    assert "blocks.5" not in (tmp_path / "out" / "cfg.json").read_text()
    assert folders.read(tmp_path / "out").site is None


def test_a_dictionary_of_the_same_place_is_taken_for_one_of_the_activations(tmp_path, capsys):
    """By whatever name: what enters block 3 is what block 2 puts out."""
    rows = harvest_of(tmp_path / "activations", {"2/resid_post": sparse_rows(500, D).numpy()})
    of = {"model_name": "another-model", "hook_name": "blocks.3.hook_resid_pre"}
    source = saelens(tmp_path / "theirs", weights(), metadata=of)
    assert import_sae.main([source, str(tmp_path / "out"), "--activations", str(rows)]) == 0
    assert capsys.readouterr().err == ""
    trained = folders.read(tmp_path / "out")
    assert trained.site == Site("resid_post", 2)
    opened = Activations.open(rows)
    assert opened.at(trained.site).fingerprint == trained.metrics["fingerprints"]["activations"]
    other = harvest_of(tmp_path / "other", {"1/resid_post": sparse_rows(500, D).numpy()})
    with pytest.raises(UserError, match=r"2/resid_post is not in .*, which holds 1/resid_post"):
        Activations.open(other).at(trained.site)


@pytest.mark.parametrize(
    ("one", "other", "differs"),
    [
        (Origin("blocks.5.hook_resid_pre"), Origin("layers.4"), False),  # sparsify's folders
        (Origin("blocks.5.hook_mlp_out"), Origin("layers.5.mlp"), False),
        (Origin("blocks.5.hook_mlp_out"), Origin("layers.5.attn"), True),
        (Origin("blocks.5.mlp.hook_post"), Origin("model.layers.5.mlp.down_proj:in"), False),
        (Origin("blocks.5.mlp.hook_post"), Origin("model.layers.6.mlp.down_proj:in"), True),
        (Origin("blocks.5.hook_mlp_out"), Origin("mlp_out, layer 5"), False),
        (Origin("blocks.5.hook_mlp_out"), Origin("resid_post_layer_5"), True),
        (Origin("blocks.5.hook_mlp_out"), Origin("words"), False),
        (Origin(None, "gpt2-small"), Origin(None, "openai-community/gpt2"), False),
        (Origin(None, "gpt2-small"), Origin(None, "gpt2-medium"), True),
        (Origin("blocks.5.hook_mlp_out", "gpt2"), Origin(), False),
    ],
)
def test_places_are_compared_as_far_as_their_names_tell(one, other, differs):
    assert one.differs(other) == differs
    assert other.differs(one) == differs


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "temporal"}, "architecture 'temporal' cannot be represented"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations='layer_norm' cannot"),
        ({"activation_fn_str": "tanh-relu"}, "activation_fn='tanh-relu' cannot"),
        ({"architecture": "topk", "k": N + 1}, "k is 41, with 40 features"),
        ({"architecture": "topk"}, "k is 0, with 40 features"),
    ],
)
def test_what_cannot_be_represented_is_named(tmp_path, config, message):
    source = saelens(tmp_path / "a", weights(), **config)
    with pytest.raises(UserError, match=message):
        imported.read(source)


def ended(source, dest, rows):
    with pytest.raises(SystemExit) as found:
        ending(lambda: import_sae.main([source, str(dest), "--activations", str(rows)]))
    return found.value.code


def test_torn_and_missing_files_are_one_line(rows, tmp_path, capsys):
    source = saelens(tmp_path / "a", {k: v for k, v in weights().items() if k != "b_enc"})
    assert ended(source, tmp_path / "out", rows) == 1
    assert "malformed (it lacks 'b_enc')" in capsys.readouterr().err
    with pytest.raises(UserError, match="no dictionary in"):
        imported.read(str(tmp_path))
    with pytest.raises(UserError, match="is not a folder, nor a name"):
        imported.read("nothing")
    other = weights() | {"W_dec": torch.zeros(N, D + 1)}
    with pytest.raises(UserError, match="W_dec is not finite float32"):
        imported.read(saelens(tmp_path / "b", other))


LONG = "x" * 300_000
HOSTILE = {
    "l1 is nan, not": lambda at: saelens(at, weights(), l1_coefficient=float("nan")),
    "seed is .*, not": lambda at: saelens(at, weights(), seed=2**80),
    "holds 0 features of 16 columns": lambda at: saelens(at, none_of(weights())),
    "it lacks 'bias'": lambda at: without_bias(dictionary_learning_folder(at, weights())),
    "Cannot copy out of meta tensor": lambda at: dictionary_learning_folder(
        at, weights() | {"W_dec": torch.empty(N, D, device="meta")}
    ),
    "x=1 is not known: remove it": lambda at: saelens(at, weights(), **{LONG: 1}),
    "architecture 'x.*x' cannot": lambda at: saelens(at, weights(), architecture=LONG),
    "activation_fn='x.*x' cannot": lambda at: saelens(at, weights(), activation_fn_str=LONG),
    "a name is too long for this file system": lambda _: LONG,
    "fvu is inf, not": lambda at: saelens(at, weights() | {"b_dec": torch.full((D,), 1e30)}),
}


def none_of(tensors):
    return {name: t[..., :0] if "enc" in name else t for name, t in tensors.items()} | {
        "W_dec": torch.empty(0, D)
    }


def without_bias(folder):
    path = Path(folder) / "ae.pt"
    state = torch.load(path, weights_only=True)  # noqa: TID251
    torch.save({k: v for k, v in state.items() if k != "bias"}, path)  # noqa: TID251
    return folder


@pytest.mark.parametrize("message", HOSTILE)
def test_all_is_checked_before_anything_is_written(rows, tmp_path, capsys, message):
    source, dest = HOSTILE[message](tmp_path / "theirs"), tmp_path / "out"
    assert ended(source, dest, rows) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert len(line) < 3000
    assert not dest.exists()


def test_nothing_of_anybody_else_is_replaced(rows, tmp_path):
    source = saelens(tmp_path / "theirs", weights())
    for dest, message in (
        (f"{source}/../theirs", "is what is imported"),
        (saelens(tmp_path / "other", weights(1)), "holds cfg.json, which import_sae did not make"),
    ):
        before = {path: path.read_bytes() for path in Path(dest).iterdir()}
        with pytest.raises(UserError, match=f"{message}: choose another folder"):
            import_sae.run(source, Path(dest), rows)
        assert {path: path.read_bytes() for path in Path(dest).iterdir()} == before


def test_ctrl_c_is_one_line(rows, tmp_path):
    code = (
        "import sys; from sparse_dict.tools import ending, import_sae\n"
        "import_sae.measured = lambda *_, **__: (print(flush=True), sys.stdin.read())\n"
        "ending(import_sae.main)"
    )
    given = [saelens(tmp_path / "theirs", weights()), str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *given, "--activations", str(rows)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines() == ["-c: stopped by Ctrl-C"]
    assert not (tmp_path / "out").exists()


def test_a_pickle_that_holds_more_than_tensors_is_refused(tmp_path):
    torch.save({"encoder.weight": torch.zeros(2, 2), "x": Path("a")}, tmp_path / "ae.pt")  # noqa: TID251
    trainer = {"dict_class": "AutoEncoder"}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    with pytest.raises(UserError, match="cannot be read as tensors"):
        imported.read(str(tmp_path))


@pytest.mark.slow  # two seconds
def test_a_name_on_the_hub_is_read_from_the_local_cache_without_a_network(tmp_path, monkeypatch):
    """The real client with the layout of its cache; HF_HUB_OFFLINE keeps it from asking."""
    repo = tmp_path / "hub" / "models--someone--saes"
    saelens(repo / "snapshots" / ("0" * 40) / "layer_1" / "x", weights())
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    env = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": "."}
    code = (
        "import sys; from sparse_dict.sae import imported; "
        "print(imported.read(sys.argv[1]).dictionary.W_dec.shape)"
    )
    command = [sys.executable, "-c", code, "someone/saes/layer_1/x"]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=root)
    assert done.stdout.strip() == f"({N}, {D})", done.stderr


# --- files that the real packages wrote -----------------------------------------------------------


def randomised(module):
    """Every float parameter and buffer drawn anew, so that no bias is zero and no row a unit."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(0.4 * torch.randn(tensor.shape, generator=draw))
                if "threshold" in name:
                    tensor.abs_()
    return module


SAELENS = ("standard", "topk", "topk_by_norm", "jumprelu", "gated", "batchtopk", "matryoshka")


@pytest.mark.slow
@pytest.mark.parametrize("kind", SAELENS)
@pytest.mark.parametrize("centred", [True, False])
def test_a_dictionary_of_saelens_computes_the_same(tmp_path, rows, kind, centred):
    saes = pytest.importorskip("sae_lens.saes")
    common = {"d_in": D, "d_sae": N, "apply_b_dec_to_input": centred}
    if kind in ("batchtopk", "matryoshka"):
        name = {"batchtopk": "BatchTopK", "matryoshka": "MatryoshkaBatchTopK"}[kind]
        widths = {"matryoshka_widths": [10, 20, N]} if kind == "matryoshka" else {}
        config = getattr(saes, f"{name}TrainingSAEConfig")(k=5, **common, **widths)
        trained = randomised(getattr(saes, f"{name}TrainingSAE")(config))
        trained.save_inference_model(tmp_path / "a")
        trained.save_model(tmp_path / "b")
        sae = saes.SAE.load_from_disk(tmp_path / "a")
    else:
        prefix, more = {
            "standard": ("Standard", {}), "jumprelu": ("JumpReLU", {}), "gated": ("Gated", {}),
            "topk": ("TopK", {"k": 5, "rescale_acts_by_decoder_norm": False}),
            "topk_by_norm": ("TopK", {"k": 5, "rescale_acts_by_decoder_norm": True}),
        }[kind]  # fmt: skip
        config = getattr(saes, f"{prefix}SAEConfig")(**common, **more)
        sae = randomised(getattr(saes, f"{prefix}SAE")(config))
        sae.save_model(tmp_path / "a")
    x = read_rows(rows)
    with torch.no_grad():
        restored = sae(torch.from_numpy(x)).numpy()
    for folder in (tmp_path / "a", tmp_path / "b"):
        if folder.exists():
            same_function(imported.read(str(folder)).dictionary, x, restored)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder",
     "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"],
)  # fmt: skip
def test_a_dictionary_of_dictionary_learning_computes_the_same(tmp_path, rows, name):
    pytest.importorskip("dictionary_learning")
    from dictionary_learning import dictionary
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

    homes = (dictionary, top_k, batch_top_k, matryoshka_batch_top_k)
    kind = next(getattr(home, name) for home in homes if hasattr(home, name))
    more = {"k": 5} if "TopK" in name else {}
    more |= {"group_sizes": [10, 30]} if "Matryoshka" in name else {}
    ae = randomised(kind(D, N, **more))
    torch.save(ae.state_dict(), tmp_path / "ae.pt")  # noqa: TID251
    trainer = {"dict_class": name, "seed": 3, "l1_penalty": 0.1}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
    x = read_rows(rows)
    with torch.no_grad():
        restored = ae(torch.from_numpy(x)).numpy()
    found = imported.read(str(tmp_path))
    same_function(found.dictionary, x, restored)
    assert (found.seed, found.l1) == (3, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["StandardTrainer", "StandardTrainerAprilUpdate", "GatedSAETrainer", "JumpReluTrainer",
     "TopKTrainer", "BatchTopKTrainer", "MatryoshkaBatchTopKTrainer", "PAnnealTrainer"],
)  # fmt: skip
def test_what_a_trainer_of_dictionary_learning_saves_is_read(tmp_path, name):
    """Its own config holds no key that is taken for unknown."""
    pytest.importorskip("dictionary_learning")
    import importlib
    import inspect

    homes = ("standard", "gdm", "jumprelu", "top_k", "batch_top_k", "matryoshka_batch_top_k",
             "p_anneal")  # fmt: skip
    modules = [importlib.import_module(f"dictionary_learning.trainers.{home}") for home in homes]
    kind = next(getattr(module, name) for module in modules if hasattr(module, name))
    known = {
        "steps": 100, "activation_dim": D, "dict_size": N, "layer": 3, "lm_name": "gpt2", "k": 5,
        "group_fractions": [0.25, 0.75], "submodule_name": "resid_post_layer_3", "device": "cpu",
        "decay_start": 80, "warmup_steps": 10, "sparsity_warmup_steps": 10, "seed": 3,
        "sparsity_function": "Lp", "anneal_start": 10, "initial_sparsity_penalty": 0.1,
    }  # fmt: skip
    takes = inspect.signature(kind.__init__).parameters
    trainer = kind(**{key: value for key, value in known.items() if key in takes})
    torch.save(trainer.ae.state_dict(), tmp_path / "ae.pt")  # noqa: TID251
    saved = {"trainer": trainer.config, "buffer": {"io": "out"}}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    found = imported.read(str(tmp_path))
    assert found.origin.model == "gpt2"
    assert "3" in found.origin.hook


@pytest.mark.slow
def test_a_dictionary_of_sparsify_computes_the_same(tmp_path, rows):
    sparsify = pytest.importorskip("sparsify")
    config = sparsify.SparseCoderConfig(num_latents=N, k=5)
    coder = randomised(sparsify.SparseCoder(D, config))
    coder.save_to_disk(tmp_path / "layers.1")
    x = read_rows(rows)
    with torch.no_grad():
        restored = coder(torch.from_numpy(x)).sae_out.numpy()
    same_function(imported.read(str(tmp_path / "layers.1")).dictionary, x, restored)
    skip = sparsify.SparseCoderConfig(num_latents=N, k=5, skip_connection=True)
    sparsify.SparseCoder(D, skip).save_to_disk(tmp_path / "skip")
    with pytest.raises(UserError, match="skip_connection=True cannot be represented"):
        imported.read(str(tmp_path / "skip"))
