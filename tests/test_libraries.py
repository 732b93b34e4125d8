"""What is used of libraries beyond what they promise to keep. When a library changes, this names what changed.

A library that stands here has a range of versions in pyproject.toml with an upper end: what is used here may change with any next version,
and the range is widened when these tests, and the others, have passed with it (`make test-oldest`, `make test-newest`). What
is used of TRL is in tests/finetune/test_contract.py.
"""

import importlib.util
import inspect
import re
import tomllib
from pathlib import Path

import pytest
import torch

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HELD = {
    *("transformers", "huggingface-hub", "peft", "accelerate", "trl", "gymnasium", "mujoco"),
    *("cyclopts", "formulaic", "submitit", "bitsandbytes"),
}
"""Libraries with a contract, here or in tests/finetune/test_contract.py."""


def parameters(function):
    return list(inspect.signature(inspect.unwrap(function)).parameters)


def declared():
    """(name, specifier) of every requirement with which numbers are made."""
    extras = PROJECT["optional-dependencies"]
    lines = [
        *PROJECT["dependencies"],
        *(line for name in extras if name not in ("docs", "test") for line in extras[name]),
    ]
    return [re.fullmatch(r"([\w-]+)([^;]*)(;.*)?", line).group(1, 2) for line in lines]


def test_every_library_of_which_more_is_used_than_it_promises_has_an_upper_end():
    bounded = {name for name, specifier in declared() if "<" in specifier}
    assert bounded == HELD


def test_every_requirement_says_from_which_version_on():
    assert not [name for name, specifier in declared() if ">=" not in specifier]


# transformers


@pytest.fixture(scope="module")
def answered(llava):
    """A small model, and what its `generate` gives for one token."""
    from vlm_probe.probes.models.loading import load_model

    model = load_model(str(llava))
    settings = model._scorer._settings(1)
    return model._model, model._model.generate(**model.probe_inputs(), generation_config=settings)


def test_generate_gives_a_cache_under_the_keyword_under_which_models_take_it(answered):
    from vlm_probe.probes.models.option_scoring import find_cache

    network, out = answered
    keyword, cache = find_cache(out)
    assert keyword in parameters(type(network).forward) and keyword in parameters(type(network.get_decoder()).forward)
    assert int(cache.get_seq_length()) > 1 and hasattr(cache, "batch_select_indices")
    assert all(layer.keys.ndim == layer.values.ndim == 4 for layer in cache.layers)


def test_a_cache_that_is_copied_layer_by_layer_grows_by_itself(answered):
    from vlm_probe.probes.models.option_scoring import _branch, find_cache

    _, cache = find_cache(answered[1])
    length, branch = int(cache.get_seq_length()), _branch(cache, [0], 1)
    for number, layer in enumerate(cache.layers):
        branch.update(layer.keys[:, :, :1], layer.values[:, :, :1], number)
    assert (int(branch.get_seq_length()), int(cache.get_seq_length())) == (length + 1, length)


def test_decoders_are_called_with_keywords_and_have_their_parts_where_they_are_looked_for(answered):
    network, _ = answered
    decoder = network.get_decoder()
    assert isinstance(decoder.layers, torch.nn.ModuleList)
    assert all(isinstance(getattr(decoder.layers[-1], name), torch.nn.Module) for name in ("self_attn", "mlp"))
    assert isinstance(decoder.layers[-1].self_attn.o_proj, torch.nn.Linear)
    assert network.base_model.get_decoder() is decoder and hasattr(type(network), "_from_config")
    assert isinstance(network.config._attn_implementation, str)


def test_positions_of_pictures_are_kept_where_they_are_looked_for():
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

    assert "self.rope_deltas = " in inspect.getsource(qwen.Qwen2_5_VLModel)


def test_the_token_that_stands_for_a_picture_in_a_text_is_the_image_token():
    """Gemma writes another one than it reads: before transformers 5.15, `image_token` was the latter."""
    from transformers import Gemma3Processor

    assert "self.image_token = tokenizer.boi_token" in inspect.getsource(Gemma3Processor.__init__)


def test_trainers_have_what_is_overridden_read_or_set():
    from transformers import PreTrainedModel, Trainer, TrainingArguments

    assert parameters(Trainer._load_from_checkpoint) == ["self", "resume_from_checkpoint", "model"]
    assert parameters(Trainer.save_model) == ["self", "output_dir", "_internal_call"]
    assert parameters(Trainer.training_step) == ["self", "model", "inputs", "num_items_in_batch"]
    source = inspect.getsource(Trainer)
    names = ("model_accepts_loss_kwargs", "current_gradient_accumulation_steps", "compute_loss_func")
    assert not [name for name in names if f"self.{name}" not in source]
    assert "_n_gpu" in inspect.getsource(TrainingArguments)
    assert hasattr(PreTrainedModel, "_keys_to_ignore_on_save")


# huggingface-hub


def test_the_cache_names_a_file_by_the_hash_of_its_contents():
    """Of large files: the hub's etag is their SHA-256, so that the weights of a model need not be read again to be known."""
    from huggingface_hub import file_download

    source = inspect.getsource(file_download)
    assert re.search(r"""blob_path = os\.path\.join\(storage_folder, ["']blobs["'], etag\)""", source)


# PEFT


def test_peft_places_keys_and_says_which_it_could_not_place(llava, save_adapter, tmp_path):
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText

    folder = save_adapter(llava, tmp_path / "adapter")
    stored = load_file(folder / "adapter_model.safetensors")
    assert all(re.fullmatch(r"base_model\.model\..*\.lora_[AB]\.weight", name) for name in stored)
    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(llava), folder)
    assert model.active_adapter == "default" and set(get_peft_model_state_dict(model)) == set(stored)
    strange = {"base_model.model.nowhere.lora_A.weight": torch.zeros(1)}
    found = set_peft_model_state_dict(model, stored | strange, adapter_name="default")
    assert [name for name in found.unexpected_keys if "nowhere" in name]


def test_peft_imports_by_a_name_in_the_configuration_only_what_is_refused():
    import peft

    from vlm_probe.probes.models.adapter_folder import IMPORTS

    # AutoPeftModel, which is not used, imports what `auto_mapping` names.
    files = (path for path in Path(peft.__file__).parent.rglob("*.py") if path.name != "auto.py")
    named = {
        name for path in files for name in re.findall(r"import_module\((\w[\w.]*)", path.read_text(encoding="utf-8"))
    }
    assert IMPORTS == ("megatron_config",) and {name.rpartition(".")[2] for name in named} <= {"megatron_core"}


# accelerate


def test_accelerate_launches_a_module_on_a_number_of_processes():
    from accelerate.commands.launch import launch_command_parser

    given = ["--config_file", "gpus.yaml", "--num_processes", "2", "-m", "vlm_probe", "train", "--seed", "1"]
    read = launch_command_parser().parse_args(given)
    assert (read.module, read.training_script, read.num_processes) == (True, "vlm_probe", 2)
    assert read.training_script_args == ["train", "--seed", "1"]


def test_accelerate_gathers_and_reduces_among_processes():
    from accelerate import Accelerator, PartialState
    from accelerate.utils import gather_object, reduce

    assert gather_object([("towers", 1.0)]) == [("towers", 1.0)]
    assert parameters(reduce)[:2] == ["tensor", "reduction"] and "reduction" in parameters(Accelerator.reduce)
    assert {"num_processes", "process_index"} <= set(dir(PartialState()))
    assert hasattr(Accelerator, "sync_gradients")


# Gymnasium


def test_gymnasium_reads_shared_memory_by_the_kind_of_space():
    from gymnasium import spaces
    from gymnasium.vector.utils.shared_memory import read_from_shared_memory

    assert callable(read_from_shared_memory.dispatch(spaces.Text)) and callable(read_from_shared_memory.register)
    assert parameters(read_from_shared_memory) == ["space", "shared_memory", "n"]


# MuJoCo


def test_mujoco_names_the_parts_of_a_model_and_its_pictures():
    mujoco = pytest.importorskip("mujoco")
    xml = "<mujoco><worldbody><body name='b' pos='0 0 1'><freejoint/><geom name='g' size='.1'/></body></worldbody></mujoco>"
    model = mujoco.MjModel.from_xml_string(xml)
    body = model.body("b")
    assert (body.geomadr[0], body.geomnum[0], model.jnt_qposadr[body.jntadr[0]]) == (0, 1, 0)
    assert model.geom("g").id == 0 and mujoco.MjData(model).qpos.shape == (7,)
    assert parameters(mujoco.Renderer.__init__)[:4] == ["self", "model", "height", "width"]
    methods = (
        "update_scene",
        "render",
        "enable_depth_rendering",
        "disable_depth_rendering",
        "enable_segmentation_rendering",
    )
    assert not [name for name in methods if not hasattr(mujoco.Renderer, name)]


# cyclopts


def test_cyclopts_hands_the_arguments_of_a_command_to_sources_of_values():
    from cyclopts import App, ArgumentCollection, CycloptsError, Token

    seen = []

    def source(app, commands, arguments):
        seen.append((type(app), commands, type(arguments)))
        (argument,) = [one for one in arguments if one.name == "--seed"]
        assert not argument.tokens
        argument.append(Token(keyword="SEED", value="7", source="the environment", index=0))

    app = App(name="probe", config=(source,))

    @app.command
    def run(*, seed: int = 0):
        return seed

    assert app(["run"], exit_on_error=False, print_error=False, result_action="return_value") == 7
    assert seen == [(App, ("run",), ArgumentCollection)]
    names = [argument.name for argument in app["run"].assemble_argument_collection(parse_docstring=False)]
    assert "--seed" in names and app["run"].default_command is run
    error = CycloptsError(msg="a slip", command_chain=("run",))
    error.verbose = False
    assert str(error).strip() == "a slip"


# formulaic


def test_formulaic_takes_formulas_apart_and_keeps_how_they_were_coded():
    import pandas as pd
    from formulaic import Formula, ModelSpec
    from formulaic.transforms import contrasts

    found = {(str(f.expr), f.eval_method.value) for term in Formula("a + np.log(b)") for f in term.factors}
    assert found == {("1", "literal"), ("a", "lookup"), ("np.log(b)", "python")}
    frame = pd.DataFrame({"a": pd.Categorical(["x", "y", "z"])})
    context = {"coding": contrasts.TreatmentContrasts(base="y")}
    spec = ModelSpec.from_spec(Formula("1 + C(a, coding)"), na_action="ignore")
    matrix = spec.get_model_matrix(frame, context=context)
    assert list(matrix.model_spec.column_names) == ["Intercept", "C(a, coding)[T.x]", "C(a, coding)[T.z]"]
    assert matrix.model_spec.get_model_matrix(frame[2:], context=context).to_numpy().tolist() == [[1, 0, 1]]
    kinds = ("SumContrasts", "HelmertContrasts", "PolyContrasts", "DiffContrasts", "CustomContrasts")
    assert not [name for name in kinds if not hasattr(contrasts, name)]


# submitit


def test_submitit_puts_jobs_back_and_takes_them_up_again(tmp_path):
    submitit = pytest.importorskip("submitit")
    from submitit.helpers import DelayedSubmission

    assert {"folder", "job_id", "tasks"} <= set(parameters(submitit.SlurmJob.__init__))
    assert Path(submitit.AutoExecutor(folder=tmp_path, cluster="local").folder) == tmp_path
    assert parameters(DelayedSubmission.__init__)[:2] == ["self", "function"]


# bitsandbytes


def test_bitsandbytes_keeps_the_shape_of_what_it_packs():
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn import Params4bit

    assert "shape" in parameters(QuantState.__init__) and "quant_state" in inspect.getsource(Params4bit)
    assert importlib.util.find_spec("bitsandbytes.backends.cpu.ops") is not None
