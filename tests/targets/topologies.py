"""Descriptions of TPUs and GPUs, for which programs compile on a machine that has neither."""

import functools
import importlib.util

import pytest
from jax.experimental import topologies

# What XLA must know of a GPU to compile for it.
GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {shared_memory}
  shared_memory_per_block_optin: {shared_memory_of_block} core_count: {cores}
  fpus_per_core: {units} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: {cache}
  clock_rate_ghz: {clock} device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{name}"
"""
AMPERE = {
    "shared_memory": 167936, "shared_memory_of_block": 166912, "cores": 108, "units": 64,
    "cache": 41943040, "clock": 1.41, "major": 8,
}  # fmt: skip
HOPPER = {
    "shared_memory": 233472, "shared_memory_of_block": 232448, "cores": 132, "units": 128,
    "cache": 52428800, "clock": 1.98, "major": 9,
}  # fmt: skip
GPUS = {
    "NVIDIA A100-SXM4-40GB": AMPERE | {"bandwidth": 1555000000000, "memory": 42405855232},
    "NVIDIA H100 80GB HBM3": HOPPER | {"bandwidth": 3350000000000, "memory": 85045870592},
    "NVIDIA H200": HOPPER | {"bandwidth": 4800000000000, "memory": 151397597184},
}


@functools.cache
def topology(platform: str, shape: str | None = None):
    """The description of eight devices, of a TPU slice or of eight GPUs.

    TPU slices are `16x16` of v5e, or `v5p:8x8x8`; GPUs are those of `GPUS`.
    """
    needed = {"tpu": "libtpu", "cuda": "jax_cuda12_plugin"}[platform]
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {  # or libtpu asks the network what it runs on
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v5litepod-8",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # or only one process at a time compiles for TPUs
        }.items():
            patch.setenv(name, value)
        if platform == "tpu":
            shape = "2x4" if shape is None else shape
            name = shape if ":" in shape else f"v5e:{shape}"
            return topologies.get_topology_desc(platform="tpu", topology_name=name)
        name = "NVIDIA H200" if shape is None else shape
        return topologies.get_topology_desc(
            platform="cuda",
            topology_name=name,
            target_config=GPU.format(name=name, **GPUS[name]),
            topology="1x8x1",
        )
