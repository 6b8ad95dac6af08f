"""Descriptions of TPUs and GPUs, for which programs compile on a machine that has neither."""

import functools
import importlib.util

import pytest
from jax.experimental import topologies

# What XLA must know of an H200 to compile for it.
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 151397597184 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } device_description_str: "H200"
"""


@functools.cache
def topology(platform: str, shape: str = "2x4"):
    """The description of eight devices, or of a TPU slice: `16x16` of v5e, or `v5p:8x8x8`."""
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
            name = shape if ":" in shape else f"v5e:{shape}"
            return topologies.get_topology_desc(platform="tpu", topology_name=name)
        return topologies.get_topology_desc(
            platform="cuda", topology_name="H200", target_config=H200, topology="1x8x1"
        )
