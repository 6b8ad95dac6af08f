"""Options of XLA: most tests compile quickly, some as users do."""

from importlib import metadata

QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
AS_USERS = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}
# XLA aborts at an option that it does not know, so this one is used only where it is known to
# exist. Without it, tests take a quarter to a third longer there. Later versions have removed it.
if metadata.version("jaxlib").startswith("0.10."):
    QUICK["xla_cpu_use_fusion_emitters"] = False
    AS_USERS["xla_cpu_use_fusion_emitters"] = True


def flags(options: dict[str, int]) -> str:
    """The options in the form of the variable XLA_FLAGS."""
    return " ".join(f"--{name}={str(value).lower()}" for name, value in options.items())
