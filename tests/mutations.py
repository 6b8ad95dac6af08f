"""Small faults in the package, each of which some test must find.

    python tests/mutations.py                     # every fault, by the tests named beside it
    python tests/mutations.py --only softcap      # those whose name contains a word
    python tests/mutations.py --whole             # by all the tests of these two runs

Each fault is one replacement of text in a copy of the repository. A fault *survives* if the tests
pass with it; the exit status is then 1. It takes an hour on 2 cores, half of it with --trust.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from tqdm import tqdm

ROOT = pathlib.Path(__file__).parents[1]


class Mutation(NamedTuple):
    """One fault: `old` becomes `new` in a file of `flax_attn/`; `tests` should find it."""

    name: str
    file: str
    old: str
    new: str
    tests: str


CORE, BLOCKS = "attention/_core/", "attention/blockwise/"
ATTENTION = "tests/attention/test_dot_product.py tests/attention/test_transformations.py"
LAWS = "tests/laws tests/contracts/test_implementations.py"
MASKS = "tests/masks"
SCORES = "tests/scores"
VISION = "tests/contracts/test_vision.py -k"
SHARDING = "tests/sharding/test_under_jit.py tests/attention/test_transformations.py"
PLACEMENTS = "tests/sharding/test_placements.py"
CUDNN = "tests/attention/test_cudnn.py"
STAGED = "tests/attention/test_staged.py tests/attention/test_staged_blocks.py"
KERNEL = "tests/attention/test_pallas_tpu_calls.py tests/contracts/test_tpu_kernel.py"

MUTATIONS = [
    # what kernels share
    *(
        Mutation(f"staged: {name}", f"attention/_staged/{file}.py", old, new, STAGED)
        for name, file, old, new in (
            (
                "a gather joins tokens",
                "program",
                "return step.inputs[0].depends == Depends.HEAD",
                "return True",
            ),
            ("a rule of its own is lost", "program", "if name == CUSTOM:", "if name == '':"),
            ("a reduction of pairs", "program", "if name not in ELEMENTWISE", "if False and name"),
            ("the last keys are full", "blocks", ".min(PARTIAL)", ".min(FULL)"),
            ("partial blocks need no mask", "blocks", "axis=-1) != FULL", "axis=-1) == EMPTY"),
            (
                "tables where positions are not known",
                "pairs",
                "if tables and not problem.in_order:",
                "if False:",
            ),
        )
    ),
    Mutation(
        "staged: blocks in common",
        "masks/plan.py",
        "lowest == highest, lowest",
        "lowest <= highest, highest",
        STAGED,
    ),
    # the TPU kernel
    *(
        Mutation(f"pallas: {name}", f"attention/pallas_tpu/{file}.py", old, new, KERNEL)
        for name, file, old, new in (
            ("keys beyond the end are seen", "equations", "< length_k, scores", "< 1e9, scores"),
            ("no distance is subtracted", "tile", "stride=1,", "stride=0,"),
            ("the LSE has no cotangent", "derivatives", 'dp - tile.over_pairs("delta")', "dp"),
            ("a bad query is fine", "derivatives", 'tile.over_pairs("bad query"), ', "0.0, "),
            (
                "a sum is not summed",
                "call",
                "jnp.sum(total, axes, keep",
                "jnp.max(total, axes, keep",
            ),
            ("rows are not cleared", "sweep", "pl.when(first)(lambda: equations.begin(refs))", ""),
        )
    ),
    # cuDNN
    *(
        Mutation(f"cudnn: {name}", f"attention/cudnn/{file}.py", old, new, CUDNN)
        for name, file, old, new in (
            ("a window is too short", "inputs", "else reach.left + 1", "else reach.left"),
            (
                "what lies behind a length is read",
                "inputs",
                "return array if valid is None else jnp.where(valid[..., None, None], array, 0)",
                "return array",
            ),
            (
                "lengths are those of all",
                "inputs",
                "if valid is None:\n        return jnp",
                "if True:\n        return jnp",
            ),
            ("a window ends before the keys", "inputs", "(first[None] <", "(0 * first[None] <"),
            ("a bias hides nothing", "inputs", "seen = ~jnp.isneginf(bias)", "seen = bias == bias"),
            (
                "a bias sees the future",
                "inputs",
                "seen &= (columns[None] <= rows[:, None])[None, None]",
                "pass",
            ),
            (
                "coordinates do not matter",
                "limits",
                "if not problem.in_order and",
                "if False and",
            ),
            (
                "a wide window of coordinates is none",
                "inputs",
                "if reach is None or not problem.in_order:",
                "if reach is None:",
            ),
            (
                "rows without keys are not 0",
                "__init__",
                "jnp.where(inputs.sees[..., None], output, 0)",
                "output",
            ),
            (
                "rows without keys have an LSE",
                "__init__",
                "jnp.where(inputs.sees, lse, -jnp.inf)",
                "lse",
            ),
            ("weights of rows without keys", "__init__", "jnp.where(inputs.sees, lse, 0)", "lse"),
            (
                "gradients of rows without keys",
                "__init__",
                "jnp.where(inputs.sees[..., None], d_output, 0)",
                "d_output",
            ),
            ("the LSE's gradient is lost", "limits", "if target.lse_cotangent:", "if False:"),
            (
                "a bias's gradient is lost",
                "limits",
                "if not {*active} <= {QUERY, KEY, VALUE}:",
                "if False:",
            ),
            ("backward=False is ignored", "__init__", "if not self.backward:", "if False:"),
        )
    ),
    # placements
    Mutation(
        "a ring takes the keys of the wrong device",
        "sharded/ring.py",
        "source = (me - shift) % self.count",
        "source = (me + shift) % self.count",
        PLACEMENTS,
    ),
    Mutation(
        "gradients do not return home",
        "sharded/ring.py",
        "return self._pass_on(sums, -last), state",
        "return sums, state",
        PLACEMENTS,
    ),
    Mutation(
        "gradients of blocks are rounded one by one",
        "attention/blockwise/storage.py",
        "self.problem.scores_dtype if self.is_part else self.leaves[leaf].dtype",
        "self.leaves[leaf].dtype",
        PLACEMENTS,
    ),
    Mutation(
        "a ring leaves out a step",
        "sharded/shifts.py",
        "return tuple(sorted(found)) or (0,)",
        "return tuple(sorted(found))[:2] or (0,)",
        PLACEMENTS,
    ),
    Mutation(
        "padded keys are valid",
        "sharded/_on_mesh.py",
        "ones = jnp.ones(",
        "ones = jnp.zeros(",
        PLACEMENTS,
    ),
    Mutation(
        "dense attention recomputes the LSE of its own keys",
        "attention/dense.py",
        "weights_BNTS = problem.normalizer.weights(",
        "weights_BNTS = (lambda s, lse: problem.normalizer.normalize(s)[0])(",
        PLACEMENTS,
    ),
    Mutation(
        "an all-reduce forgets the maximum",
        "sharded/all_reduce.py",
        "weight = jnp.exp(lse - shift)[..., None]",
        "weight = jnp.exp(lse)[..., None]",
        PLACEMENTS + " tests/sharding/test_split_caches.py",
    ),
    Mutation(
        "Ulysses gives each device the first key head",
        "sharded/ulysses.py",
        "return np.arange(0, num_heads, step) // groups",
        "return 0 * np.arange(0, num_heads, step) // groups",
        PLACEMENTS,
    ),
    # attention: the blockwise equations
    Mutation(
        "forward keeps an old sum",
        BLOCKS + "equations.py",
        "a if factor is None else factor[..., None] * a",
        "a",
        ATTENTION + " " + LAWS,
    ),
    Mutation(
        "tangent adds r O",
        BLOCKS + "equations.py",
        "a = a - r[..., None]",
        "a = a + r[..., None]",
        ATTENTION + " " + LAWS,
    ),
    Mutation(
        "transpose ignores the cotangent of the LSE",
        BLOCKS + "equations.py",
        "delta = delta - _where(defined, rows.take(self.d_lse))[..., 0]",
        "delta = delta",
        ATTENTION + " " + LAWS,
    ),
    Mutation(
        "transpose leaves the scale out of dQ",
        BLOCKS + "equations.py",
        "rows.write(written[QUERY], dq * scale)",
        "rows.write(written[QUERY], dq)",
        ATTENTION + " " + LAWS,
    ),
    Mutation(
        "half-precision keys keep the scale out of dK",
        BLOCKS + "equations.py",
        "if i == KEY and factor is not None:",
        "if i == VALUE and factor is not None:",
        ATTENTION + " " + LAWS,
    ),
    Mutation(
        "undefined rows keep their LSE",
        BLOCKS + "equations.py",
        "jnp.where(defined, lse_rows, jnp.inf)",
        "lse_rows",
        ATTENTION + " " + LAWS,
    ),
    Mutation(
        "dropout does not scale",
        BLOCKS + "tile.py",
        "kept = self._grouped(weights) / share",
        "kept = self._grouped(weights)",
        "tests/attention/test_dropout.py",
    ),
    Mutation(
        "hidden scores have derivatives",
        BLOCKS + "tile.py",
        "return jnp.where(jnp.isneginf(scores), 0, derivative)",
        "return derivative",
        ATTENTION + " " + LAWS,
    ),
    Mutation(
        "a row in the overlap is written twice",
        BLOCKS + "tile.py",
        ">= first\n",
        ">= first - 1\n",
        ATTENTION + " " + LAWS,
    ),
    Mutation(
        "a key in the overlap counts twice",
        BLOCKS + "sweep.py",
        ">= wanted\n",
        ">= wanted - 1\n",
        ATTENTION + " " + LAWS,
    ),
    Mutation(
        "a ragged last block counts as full",
        BLOCKS + "schedule.py",
        "kinds = kinds.at[..., -1].min(PARTIAL)",
        "kinds = kinds",
        ATTENTION + " " + LAWS,
    ),
    Mutation(
        "groups and heads are swapped",
        BLOCKS + "storage.py",
        "shape = (heads // groups, groups) if",
        "shape = (groups, heads // groups) if",
        ATTENTION + " tests/scores",
    ),
    Mutation(
        "NaN of keys is not seen",
        BLOCKS + "undefined.py",
        "of_scores | sees_key | (block & sees_any)",
        "of_scores | (block & sees_any)",
        ATTENTION + " " + LAWS,
    ),
    Mutation(
        "a broadcast leaf's gradient is one example's",
        CORE + "batch.py",
        "values = jnp.sum(values, axis=axes, keepdims=True)",
        "values = jnp.max(values, axis=axes, keepdims=True)",
        LAWS,
    ),
    # attention: the core
    Mutation(
        "rows of groups are interleaved",
        CORE + "heads.py",
        "    return heads.reshape(",
        "    heads = heads.reshape(*batch, groups, -1, length, features).swapaxes(-4, -3)\n"
        "    return heads.reshape(",
        ATTENTION,
    ),
    Mutation(
        "lengths include one more key",
        CORE + "arguments.py",
        "valid = _count(length, batch) < seq_lengths",
        "valid = _count(length, batch) <= seq_lengths",
        ATTENTION,
    ),
    Mutation(
        "coordinates' valid is replaced by lengths",
        CORE + "arguments.py",
        'valid = valid & fields["valid"].values',
        "pass",
        ATTENTION + " " + LAWS,
    ),
    Mutation(
        "is_causal is ignored beside a mask",
        CORE + "problem.py",
        "if a.is_causal:",
        "if a.is_causal and a.mask is None:",
        ATTENTION,
    ),
    Mutation(
        "modifiers come before the bias",
        CORE + "problem.py",
        "functools.reduce(operator.rshift, modifiers)",
        "functools.reduce(operator.rshift, modifiers[::-1])",
        ATTENTION + " " + LAWS,
    ),
    Mutation(
        "dropout is the same in all heads",
        CORE + "problem.py",
        "        if drop.shared:",
        "        if True:",
        "tests/attention/test_dropout.py",
    ),
    Mutation(
        "a bad query is not marked",
        CORE + "scores.py",
        "sees_key | (bad_query_BNT & jnp.any(visible, axis=-1))",
        "sees_key",
        ATTENTION,
    ),
    Mutation(
        "second derivatives lose the linear part",
        CORE + "primitive.py",
        "terms.append(transpose_p.bind(",
        "terms and terms.append(transpose_p.bind(",
        ATTENTION + " " + LAWS,
    ),
    Mutation(
        "vmap shares a gradient",
        CORE + "primitive.py",
        "full = i <= VALUE or i >= count or i in active",
        "full = i <= VALUE or i >= count",
        ATTENTION + " " + LAWS,
    ),
    Mutation(
        "no sum over devices",
        CORE + "partition.py",
        "        if summed:\n",
        "        if False:\n",
        SHARDING,
    ),
    Mutation(
        "every device takes the first key heads",
        CORE + "partition.py",
        'first = lax.axis_index(self.split["n"]) * heads',
        "first = 0 * heads",
        SHARDING,
    ),
    Mutation(
        "dropout is not refused within shard_map",
        CORE + "normalize.py",
        "if dropout is not None and not dropout.broadcast and not numbered:",
        "if False:",
        "tests/attention/test_wrong_arguments.py",
    ),
    Mutation(
        "the order of implementations is not kept",
        CORE + "selection.py",
        "in candidates or _registry.REGISTRY:",
        "in candidates[::-1] or _registry.REGISTRY:",
        "tests/attention/test_selection.py",
    ),
    # attention: what is public
    Mutation(
        "dense rows without keys are not 0",
        "attention/dense.py",
        "output = jnp.where(sees_BTN[..., None], output, 0)",
        "pass",
        LAWS,
    ),
    Mutation(
        "the rate has no derivative",
        "attention/dropout.py",
        "return output * (lax.stop_gradient(share) / share).astype(output.dtype)",
        "return output",
        "tests/attention/test_dropout.py",
    ),
    Mutation(
        "the batch is left out of dropout",
        "attention/dropout.py",
        "threefry2x32(seed[0], seed[1], batch_ids, head_ids)",
        "threefry2x32(seed[0], seed[1], head_ids, head_ids)",
        "tests/attention/test_dropout.py",
    ),
    Mutation(
        "parts are merged by the wrong weight",
        "attention/_partial.py",
        "((lse_a, a.output), (lse_b, b.output))",
        "((lse_b, a.output), (lse_a, b.output))",
        "tests/laws flax_attn/attention",
    ),
    Mutation(
        "additive attention is linear",
        "attention/additive.py",
        "jnp.tanh(queries_TM",
        "(queries_TM",
        "tests/attention/test_additive.py",
    ),
    Mutation(
        "the norm of the keys is left out",
        "attention/multi_head.py",
        "k = k if key_norm is None else key_norm(k)",
        "pass",
        "tests/attention/test_multi_head.py tests/nnx tests/linen",
    ),
    Mutation(
        "is_causal of Flax is ignored",
        "attention/_attention_fn.py",
        '"is_causal": causal or is_causal,',
        '"is_causal": causal,',
        "tests/linen tests/nnx",
    ),
    # normalisers
    Mutation(
        "a sink takes the rest",
        "normalizers.py",
        "jax.nn.sigmoid(logit)",
        "jax.nn.sigmoid(-logit)",
        ATTENTION,
    ),
    Mutation(
        "ReLU is not divided",
        "normalizers.py",
        "return jnp.maximum(scores, 0) / float(self.length)",
        "return jnp.maximum(scores, 0)",
        "tests/test_normalizers.py",
    ),
    Mutation(
        "TopK keeps one more",
        "normalizers.py",
        "self.k)[0][..., -1:]",
        "self.k + 1)[0][..., -1:]",
        "tests/test_normalizers.py",
    ),
    # masks, coordinates
    Mutation(
        "causal hides the query's own position",
        "masks/positional.py",
        "return k.positions <= q.positions",
        "return k.positions < q.positions",
        MASKS,
    ),
    Mutation(
        "a window is one wider",
        "masks/positional.py",
        'distance <= per_head("Window: left", self.left, q)',
        'distance <= 1 + per_head("Window: left", self.left, q)',
        MASKS,
    ),
    Mutation(
        "a tree sees cousins",
        "masks/tokens.py",
        "& _is_less(q.enter, k.leave)",
        "& _is_less(k.enter, k.leave)",
        MASKS,
    ),
    Mutation(
        "an overlay joins text",
        "masks/tokens.py",
        "(q_image == k_image) & (q_image >= 0)",
        "(q_image == k_image)",
        MASKS,
    ),
    Mutation(
        "dilation is ignored",
        "masks/patterns.py",
        "self.dilation, q) == 0)",
        "self.dilation, q) >= 0)",
        MASKS,
    ),
    Mutation(
        "xor is or",
        "masks/_mask.py",
        "return self.first(q, k) ^ self.second(q, k)",
        "return self.first(q, k) | self.second(q, k)",
        MASKS,
    ),
    Mutation(
        "blocks with invalid tokens are full",
        "masks/plan.py",
        "is_full = q_valid.all & k_valid.all & truth.all",
        "is_full = truth.all",
        MASKS + " " + ATTENTION,
    ),
    Mutation(
        "a difference forgets the upper end",
        "masks/_bounds.py",
        "out = Range(a.lo - b.hi, a.hi - b.lo)",
        "out = Range(a.lo - b.lo, a.hi - b.lo)",
        MASKS,
    ),
    Mutation(
        "restarted documents keep their positions",
        "coords.py",
        "return cls(index - begin, segment_ids, numbers=index)",
        "return cls(index, segment_ids, numbers=index)",
        "tests/test_coords.py",
    ),
    Mutation(
        "zigzag is striped",
        "_orders.py",
        "for part in (i, 2 * shards - 1 - i)]",
        "for part in (i, shards + i)]",
        "tests/test_coords.py",
    ),
    Mutation(
        "striped is contiguous",
        "_orders.py",
        "np.arange(length).reshape(-1, shards).T.reshape(-1)",
        "np.arange(length).reshape(-1, shards).reshape(-1)",
        "tests/test_coords.py",
    ),
    # score modifiers, positions
    Mutation(
        "softcap is not scaled back",
        "scores/elementwise.py",
        "return cap * jnp.tanh(scores / cap)",
        "return jnp.tanh(scores / cap)",
        SCORES,
    ),
    Mutation(
        "a relative table is mirrored",
        "scores/relative.py",
        "return -reach, reach\n",
        "return reach, -reach\n",
        SCORES,
    ),
    Mutation(
        "a T5 bucket is off by one",
        "scores/relative.py",
        "exact = buckets // 2",
        "exact = buckets // 2 - 1",
        SCORES,
    ),
    # maps
    Mutation(
        "a convolution is not centred",
        "maps.py",
        "reach = (d * (size - 1) // 2 for",
        "reach = (d * size // 2 for",
        "tests/test_maps.py",
    ),
    Mutation(
        "batch_norm forgets ε",
        "maps.py",
        "lax.rsqrt(var + self.epsilon)",
        "lax.rsqrt(var)",
        "tests/test_maps.py",
    ),
    # vision
    Mutation(
        "a gate is added",
        "vision/_gates.py",
        "return functools.reduce(jnp.multiply, gates, x)",
        "return functools.reduce(jnp.add, gates, x)",
        VISION + " squeeze_excite",
    ),
    Mutation(
        "ECA's kernel is even",
        "vision/_eca.py",
        "return size if size % 2 else size + 1",
        "return size + 1",
        VISION + " eca",
    ),
    Mutation(
        "coordinate attention swaps its gates",
        "vision/_coordinate_attention.py",
        "gate_fn(expand_height(height)), gate_fn(expand_width(width))",
        "gate_fn(expand_width(height)), gate_fn(expand_height(width))",
        VISION + " coordinate_attention",
    ),
    Mutation(
        "SimAM divides by all places",
        "vision/_simam.py",
        "/ (places - 1)",
        "/ places",
        VISION + " simam",
    ),
    Mutation(
        "a window is read by columns",
        "vision/_windows.py",
        "x = reshape_places(x, len(batch), rows, size[0], columns, size[1])",
        "x = reshape_places(x, len(batch), size[0], rows, size[1], columns)",
        VISION + " 'window or grid'",
    ),
    Mutation(
        "global context is averaged",
        "vision/_global_context.py",
        "if score is None:",
        "if score is not None:",
        VISION + " global_context",
    ),
    Mutation(
        "lambda layer's softmax is over channels",
        "vision/_lambda_layer.py",
        "jax.nn.softmax(k.astype(dtype), axis=(-3, -2))",
        "jax.nn.softmax(k.astype(dtype), axis=-1)",
        VISION + " lambda_layer",
    ),
    Mutation(
        "triplet attention adds two gates only",
        "vision/_triplet_attention.py",
        "return [gate / len(gates) for gate in gates]",
        "return [gate / 2 for gate in gates]",
        VISION + " triplet_attention",
    ),
    Mutation(
        "gather-excite averages the border wrongly",
        "vision/_gather_excite.py",
        "return sums(wide) / expand_rank(sums(places), x.ndim)",
        "return sums(wide) / (2 * extent - 1) ** 2",
        "tests/vision/test_more_gates.py -k gather",
    ),
]


LONG = ("parity", "targets", "workaround", "annotations")
RUNS = {"default": (*LONG, "conformance"), "conformance": LONG}


def first_failure(copy: pathlib.Path, tests: str, run: str = "conformance") -> str | None:
    """The first of the tests that fails in a copy of the repository, which keeps its programs."""
    marks = " and ".join(f"not {mark}" for mark in RUNS[run])
    command = f"{sys.executable} -m pytest -x -q -rfE -m '{marks}' {tests}"
    done = subprocess.run(command, shell=True, cwd=copy, capture_output=True, text=True)
    if done.returncode in (0, 5):  # passed, or has no test for this run
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode not in (1, 2) or failed is None:
        raise SystemExit(f"pytest {tests} ended with {done.returncode}:\n{done.stdout[-2000:]}")
    return f"{run} run, {failed.group(1)}"


def finder(mutation: Mutation, copy: pathlib.Path, tests: str) -> str | None:
    """The test that finds a fault: one of the default run, else one of conformance."""
    path = copy / "flax_attn" / mutation.file
    text = path.read_text()
    if text.count(mutation.old) != 1:
        raise SystemExit(
            f"{mutation.name}: {mutation.old!r} must stand once in {mutation.file}, got "
            f"{text.count(mutation.old)} times. Write the text as it is now."
        )
    path.write_text(text.replace(mutation.old, mutation.new))
    try:
        return next(filter(None, (first_failure(copy, tests, run) for run in RUNS)), None)
    finally:
        path.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="", help="a word of the name")
    parser.add_argument("--whole", action="store_true", help="run all tests")
    parser.add_argument("--trust", action="store_true", help="do not run them without a fault")
    arguments = parser.parse_args()
    chosen = [m for m in MUTATIONS if arguments.only in m.name]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "repository"
        ignored = shutil.ignore_patterns(".git", "__pycache__", ".mypy_cache", "*.egg-info")
        shutil.copytree(ROOT, copy, ignore=ignored)
        suites = {m.name: "" if arguments.whole else m.tests for m in chosen}
        for tests in [] if arguments.trust else tqdm(sorted(set(suites.values())), "no fault"):
            failed = first_failure(copy, tests)
            if failed:
                raise SystemExit(f"Without any fault this test fails: {failed}")
        for mutation in tqdm(chosen, desc="faults"):
            start = time.monotonic()
            found = finder(mutation, copy, suites[mutation.name])
            took = time.monotonic() - start
            tqdm.write(f"{took:5.0f} s  {mutation.name}: {found or 'SURVIVED'}")
            if not found:
                survivors.append(mutation.name)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} found")
    if survivors:
        raise SystemExit(f"Survived: {', '.join(survivors)}.")


if __name__ == "__main__":
    main()
