"""Memory: how far compressing a language model by islands raises the peak of a process, in sizes of the model.

    python benchmarks/memory.py [--layers 16] [--width 1024]

The model is transformers' LlamaForCausalLM with random weights; each figure is measured in a process of its own, on
Linux. Prints a Markdown table.
"""

import argparse
import multiprocessing
import platform
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

import fxcompress
from fxcompress.graph import capture

GROUPS = {"weight": {"bits": 4, "per": "group", "group_size": 128}}
TUNINGS: dict[str, list[str]] = {"nearest": [], "GPTQ": ["gptq"]}
WORDS, SEQUENCES, LENGTH = 4096, 4, 64


def policy(tune: list[str]) -> dict[str, Any]:
    """Quantize the weights of the decoder's linear layers to 4 bits in groups of 128."""
    rule = {"select": {"ops": ["linear"], "names": ["*layers.*"]}} | GROUPS
    return {"version": 1, "steps": [{"kind": "quantize", "rules": [rule]}], "tune": tune}


def llama(layers: int, width: int) -> LlamaForCausalLM:
    """Return a model with random weights; its MLPs have 2.75 times the width."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 64,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def kilobytes(kind: str) -> int:
    """Return what Linux says of this process: VmRSS is what it takes, VmHWM the most that it took."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(kind)))


def run(what: str, model: LlamaForCausalLM, tokens: list[dict[str, torch.Tensor]], options: dict[str, Any]) -> Any:
    """Do what is measured."""
    if what == "forward":
        with torch.no_grad():
            return [model(**batch) for batch in tokens]
    if what == "capture":
        return capture(model, tokens[0], way="islands", **options)
    return fxcompress.transform(
        model, policy(TUNINGS[what]), example_inputs=tokens[0], data=tokens, capture="islands", **options
    )


def peak(what: str, layers: int, width: int, options: dict[str, Any]) -> None:
    """Print the peak of this process over its memory without the model, in sizes of the model; the model counts 1."""
    torch.set_num_threads(1)
    ids = torch.randint(0, WORDS, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(0))
    tokens = [{"input_ids": ids}]
    run(what, llama(1, 64), tokens, options)  # imports and caches
    model = llama(layers, width)
    size = sum(parameter.nbytes for parameter in model.parameters())
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    before, start = kilobytes("VmRSS") * 1024, time.perf_counter()
    run(what, model, tokens, options)
    seconds, top = time.perf_counter() - start, kilobytes("VmHWM") * 1024
    said = ", ".join(f"{name}={value}" for name, value in options.items())
    ratio = 1 + (top - before) / size
    print(f"| {what} | {said} | {size / 2**20:.0f} MiB | {ratio:.2f} | {seconds:.0f} s |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    arguments = parser.parse_args()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{platform.machine()}, 1 thread, Python {platform.python_version()}, {versions}\n")
    print("| what | options | weights | peak, in sizes of the model | time |\n|---|---|---:|---:|---:|", flush=True)
    for what in ("forward", "capture", *TUNINGS):
        for options in ({}, {"copy": False}):
            if what != "forward" or not options:
                said = (what, arguments.layers, arguments.width, options)
                process = multiprocessing.get_context("spawn").Process(target=peak, args=said)
                process.start()
                process.join()


if __name__ == "__main__":
    main()
