"""The C core: a checked model, its resident engine, and the decode loop."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Engine", "Job", "Rank", "cpu_variants", "cuda_devices", "int8_peak", "mxfp4_decode", "mxfp4_encode", "read_bandwidth"]

# (name, dtype as the safetensors header spells it, shape, file index, first byte, one past the last byte), absolute in the file
_Tensor = tuple[str, str, tuple[int, ...], int, int, int]

# One engine step of one job:
# (token ids, seconds since the job was submitted, [(logprob, [(token, logprob), ...])] per token or None, drafts of the step that
# were right, drafts that it verified)
_Event = tuple[list[int], float, list[tuple[float, list[tuple[int, float]]]] | None, int, int]

@final
class Engine:
    """A model and the worker threads that run it.

    The constructor checks config and tensors against each other and against the sizes of `files`; nothing is loaded.

    config: keys hidden, layers, vocab, max_positions, dense_width, expert_width, experts, top_k, norm_eps, value_scale,
      routed_scale, norm_topk, tied_head, qkv_chunks (0: split q/k/v), full and sliding (each a dict of heads, kv_heads, head_dim,
      v_head_dim, rotary_dim, window, rope_theta, sinks), layer_sliding and layer_sparse (0 or 1 for each layer). All required.
    tensors: every tensor of the text model.
    precision: "fast" or "exact". threads: 0 is one per available core. max_context: positions per sequence, 0 is the model's.
    variant: kernels by name ("ref", "avx2", "avxvnni", "avx512", "neon"), None the best this CPU runs. memory_limit: bytes that
      weights, workspace and KV caches may take together, 0 as many as the system gives; a load or job that cannot fit is a
      MemoryError.
    device: -1 is the CPU; else the number of a GPU, with `image` the file of its kernels. Its memory is then the limit.
    draft: None, or a drafter: config (keys as above; vocab is V', the ids it drafts), tensors (whose files count in `files`), taps
      (layers of the target), block (B), qk_norm, markov_rank, causal_full, causal_sliding, window_from_anchor, and target_ids (V'
      ids of the target, or None: all). All required.
    """

    def __new__(
        cls,
        config: Mapping[str, Any],
        tensors: Sequence[_Tensor],
        files: Sequence[str],
        *,
        precision: str = "fast",
        threads: int = 0,
        max_context: int = 0,
        variant: str | None = None,
        memory_limit: int = 0,
        draft: Mapping[str, Any] | None = None,
        pin: bool = False,
        device: int = -1,
        image: str | None = None,
        nodes: Sequence[Sequence[int]] = (),
    ) -> Self:
        """nodes: the cores of each memory node, if there are several: workers stay on theirs and have their weights there."""

    def load(self, progress: Callable[[int, int], object] | None = None) -> None:
        """Reads and packs the weights on all threads; progress(done_bytes, total_bytes) is called about ten times a second."""
    def close(self) -> None:
        """Cancels every job and frees the weights; calls after it raise EngineError. Idempotent."""
    def submit(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stream: int = 0,
        logprobs: int = -1,
        eos: Sequence[int] = (),
        queue_bytes: int = 65536,
        speculative: bool = False,
        width: int = 0,
        verify: str = "coupled",
        lookup: bool = False,
        argmax_drafts: bool = False,
        script: Sequence[int] | None = None,
        script_right: float = 0.0,
    ) -> Job:
        """Starts decoding after `prompt` (at least one id). logprobs: -1 none, 0 of the chosen token, n also the n most likely.

        speculative: with the engine's drafter, if it has one; lookup: and with drafts from the sequence itself. width: rows of a
        round up to `block`, 0 by cost. verify: "coupled" or "rejection". script: guesses of the answer's tokens, verified in the
        place of drafts; with script_right > 0 spoilt so that a round gives that many tokens in the mean."""
    def logits(self, tokens: Sequence[int], step: int = 0) -> NDArray[np.float32]:
        """[T, V] float32: logits after each of the T tokens; step: rows per engine step (0: the largest)."""
    def hidden_states(self, tokens: Sequence[int], layers: Sequence[int], step: int = 0) -> NDArray[np.float32]:
        """[len(layers), T, H] float32: the residual stream after each listed layer."""
    def draft_logits(self, tokens: Sequence[int], anchors: Sequence[int], step: int = 0) -> NDArray[np.float32]:
        """[len(anchors) * (B - 1), V'] float32: logits of the blocks whose anchors are tokens[anchors[i]], ascending, each with the
        tokens before it as context. A Markov head's bias follows the likeliest token of the slot before."""
    def plan(self, rows: int = 1, draft: bool = False) -> str:
        """The tape of a step of `rows` rows, as text; of the drafter, if `draft`."""
    def memory(self) -> dict[str, int]:
        """Bytes by use: weights (packed; draft_weights of them the drafter's), embedding, workspace, kv_per_position (full layers)
        and kv_fixed (windows) of a sequence, the drafter's included, total (weights + embedding + workspace), limit (0: none), and
        read_per_token: weight bytes a 1-row step reads. Until it is loaded this is a bound: BF16 matrices whose values were rounded
        from four bits before are packed in four bits, which only their values tell."""
    def profile(self, on: bool, /) -> dict[str, Any]:
        """What was counted since the last call (steps, rows, total_ns, ops: name -> calls, busy_ns and wait_ns summed over workers,
        wall_ns, bytes read, macs), all zero if nothing was; then counting starts afresh (True) or stops (False). With a drafter
        "draft" has the same of its own layers: steps are its blocks filled together, rows theirs."""
    def step_times(self, widths: Sequence[int], *, context: int = 32, repeats: int = 3) -> NDArray[np.int64]:
        """[repeats, len(widths)] int64: nanoseconds of a step of each width (1 to 128 rows of one sequence, as verification runs
        them) after `context` positions, logits of all rows included, sampling not. Real steps of made-up tokens, other ones each
        time, on the driver's thread between the steps of jobs: rounds over all widths, after one step of the widest that warms
        up. Costs about `context` tokens of prefill and (repeats + 1) times the steps."""
    def step_profile(self, width: int, *, context: int = 32, repeats: int = 3) -> dict[str, Any]:
        """What `repeats` such steps of one width counted, as `profile` tells it; counting is off afterwards."""
    @property
    def loaded(self) -> bool: ...
    @property
    def threads(self) -> int: ...
    @property
    def backend(self) -> str:
        """ "cpu" or "cuda"."""
    @property
    def variant(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def max_context(self) -> int: ...
    @property
    def block(self) -> int:
        """Most rows of a round: the drafter's block, or 8."""

@final
class Job:
    """One answer being decoded. Made by Engine.submit."""

    def next(self, timeout: float | None = None) -> _Event | None:
        """The next step's tokens, in order; waits for it without the GIL. None when the answer is complete (see
        finish_reason) or, with a timeout, when nothing came in time (see done). Several steps that are waiting come one by one."""
    def cancel(self) -> None:
        """Ends the answer within one step; from any thread; does nothing when it has ended."""
    @property
    def done(self) -> bool:
        """No event will come any more: the answer has ended and its events were taken."""
    @property
    def finish_reason(self) -> str | None:
        """None while running, then "eos", "length", "cancelled" or "error" (next raises the error once)."""
    def stats(self) -> dict[str, Any]:
        """prompt_tokens, cached_tokens, completion_tokens, steps, queue_, prefill_, decode_ and first_token_seconds; block (most
        rows of a round); rounds: None without drafting, else lists of width, drafted, accepted, emitted, lookup, draft_seconds and
        verify_seconds, one entry a round."""

@final
class Rank:
    """The share that one of `world` (1 to 8) GPUs has of an engine's model and drafter, planned without a GPU and timed on one.

    Query heads, widths of MLPs, embedding and head are divided, key heads divided or copied; weights are made up on the GPU, and
    what GPUs tell each other is left out: results mean nothing, sizes and costs are right. engine: of this module; only what it
    says of its weights is used. context: positions before every step. copied: bytes of a copy that `time_copies` times.
    """

    def __new__(cls, engine: Engine, *, world: int = 1, context: int = 1, copied: int = 268435456) -> Self: ...
    def memory(self, available: int, /) -> list[tuple[str, int]]:
        """Bytes by use, then their sum and what is available: of the GPU that is open, else as it would be with `available` bytes,
        and a MemoryError with the table if it does not fit."""
    def operations(self, /) -> list[tuple[int, str, int, int, int, int, int]]:
        """(1 of the drafter, name, layer or -1, bytes that every step reads, bytes of a chosen expert, bytes of a visible position,
        window or 0) of the tape's operations in order, then of the drafter's."""
    def stages(
        self, sms: int, shared_bytes: int, l2_bytes: int, /
    ) -> tuple[list[tuple[str, str, str, int, int, int, int, int, int, tuple[int, ...]]], int, int]:
        """Of a round lowered for a GPU: its stages (kind, kind of joins or "", operation, layer or -1, 1 of the drafter, bytes
        of pages, of one where experts are chosen, those of the SM with most, tasks, tiles of the matrix, dimensions), and bytes of
        the ring and of activations in shared memory."""
    def open(self, device: int, path: str, image: str, seed: int, /) -> str:
        """Makes weights, keys and values on GPU number `device` for a path ("plain" or "resident"), whose kernels are the file
        `image`, and returns the GPU's name. Errors are those of an Engine's device."""
    def close(self, /) -> None:
        """Gives the GPU back; `open` may follow."""
    def draw(self, experts: NDArray[np.uint16], /) -> None:
        """experts: [sets, L, 8, K], those of a row distinct: what rows choose from now on, in run i as in set i modulo sets."""
    def time_copies(self, count: int, /) -> NDArray[np.float64]:
        """[count] seconds of copies on the GPU, up to 16, one after the other."""
    def time_steps(self, rows: int, count: int, /) -> NDArray[np.float64]:
        """[count] seconds of steps of `rows` rows (1 to 8), up to 16, logits of all rows included."""
    def time_drafts(self, rows: int, count: int, /) -> NDArray[np.float64]:
        """[count] seconds of the drafter's context of `rows` rows and one block, up to 8."""
    def trace(self, rows: int, draft: bool, /) -> tuple[list[tuple[str, str, int, int, int]], NDArray[np.uint64]]:
        """One step (or context and block): its launches (kernel, operation, layer or -1, CTAs, first stamp) and the stamps [n, 3]
        of their CTAs: begin and end in ns of one clock, and the multiprocessor. On the resident path stages, tasks and joins."""
    def read(self, rows: int, /) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
        """Of the last step: [rows, K] experts of its last sparse layer, ascending, and logits [rows, V of the rank]."""

def cpu_variants() -> dict[str, str | None]:
    """Kernel variants by name; the value is None where this CPU runs it, else the reason it does not."""

def mxfp4_encode(values: NDArray[np.float32], /) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """[rows, cols] float32 -> codes [rows, cols/2] (element 2j in the low nibble) and E8M0 scales [rows, cols/32].

    Each block of 32 gets the power-of-two scale with the least squared error. cols must be a multiple of 32, values finite.
    """

def mxfp4_decode(codes: NDArray[np.uint8], scales: NDArray[np.uint8], /) -> NDArray[np.float32]:
    """The inverse of mxfp4_encode: [rows, cols] float32."""

def read_bandwidth(bytes: int, threads: int, seconds: float) -> float:
    """Bytes per second that `threads` threads read in `seconds`, each over and over its share of `bytes` bytes, which are allocated
    for it: several times the last-level cache."""

def cuda_devices() -> list[str]:
    """Names of the GPUs that this process may use (opens libcuda.so.1). NotImplementedError says what is missing."""

def int8_peak(threads: int, seconds: float) -> float:
    """Products of 8-bit integers per second that `threads` threads multiply and add in registers, with the best instructions that
    kernels have here. NotImplementedError on a CPU without any of them."""
