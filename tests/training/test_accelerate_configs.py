"""The files of `accelerate_configs/`: Accelerate reads them, and they tell of hardware alone."""

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT

FOLDER = ROOT / "accelerate_configs"
DISTRIBUTED_TYPES = {
    "cpu": "NO",
    "cpu_2_processes": "MULTI_GPU",  # which starts processes on CPUs too
    "single_gpu": "NO",
    "multi_gpu": "MULTI_GPU",
    "fsdp2": "FSDP",
    "deepspeed_zero2": "DEEPSPEED",
    "multi_node": "MULTI_GPU",
}
HARDWARE = {
    "compute_environment",
    "distributed_type",
    "use_cpu",
    "gpu_ids",
    "num_processes",
    "num_machines",
    "machine_rank",
    "main_process_ip",
    "main_process_port",
    "main_training_function",
    "same_network",
    "rdzv_backend",
    "mixed_precision",
}
SHARDING = {
    "deepspeed_config": {
        "zero_stage",
        "offload_optimizer_device",
        "offload_param_device",
        "zero3_init_flag",
        "gradient_accumulation_steps",
        "gradient_clipping",
    },
    "fsdp_config": {
        "fsdp_version",
        "fsdp_auto_wrap_policy",
        "fsdp_transformer_layer_cls_to_wrap",
        "fsdp_reshard_after_forward",
        "fsdp_offload_params",
        "fsdp_cpu_ram_efficient_loading",
        "fsdp_state_dict_type",
        "fsdp_activation_checkpointing",
    },
}


def read(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def test_there_is_a_file_for_each_case():
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.yaml" for name in DISTRIBUTED_TYPES}


@pytest.mark.parametrize("name", DISTRIBUTED_TYPES)
def test_accelerate_reads_it(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.distributed_type == DISTRIBUTED_TYPES[name]
    assert config.use_cpu == name.startswith("cpu")
    assert config.mixed_precision == ("no" if name.startswith("cpu") else "bf16")
    assert (config.num_processes == 1) == (DISTRIBUTED_TYPES[name] == "NO")
    assert config.num_machines == (2 if name == "multi_node" else 1)


@pytest.mark.parametrize("name", DISTRIBUTED_TYPES)
def test_it_holds_no_hyperparameter(name):
    settings = read(name)
    nested = {key: settings.pop(key) for key in SHARDING if key in settings}
    assert set(settings) <= HARDWARE
    for key, values in nested.items():
        assert set(values) <= SHARDING[key]
    deepspeed = nested.get("deepspeed_config", {})
    for key in ("gradient_accumulation_steps", "gradient_clipping"):
        assert deepspeed.get(key, "auto") == "auto"  # what run_stage.py is told


def test_names_of_two_kinds_of_sharding():
    assert read("fsdp2")["fsdp_config"]["fsdp_version"] == 2
    assert read("deepspeed_zero2")["deepspeed_config"]["zero_stage"] == 2
    assert read("cpu_2_processes")["num_processes"] == 2
